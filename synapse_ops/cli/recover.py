"""`synapse-ops recover`: the whole stack back from the bucket, with a person's approval before anything is replaced."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from synapse_ops.cli.options import Place, stack_options
from synapse_ops.cli.tables import show_table
from synapse_ops.cli.terminal import echo, print_json
from synapse_ops.errors import ConfigError

if TYPE_CHECKING:
    from synapse_ops.domain.recovery.impact import Impact
    from synapse_ops.domain.recovery.recovery_record import RecoveryRecord
    from synapse_ops.operations.recovery.place import RecoveryPlace
    from synapse_ops.operations.stack import Stack


@click.command()
@click.option(
    "--plan", "prepare", is_flag=True, help="Restore a copy beside what runs, check it, and print its digest."
)
@click.option("--apply", "digest", metavar="DIGEST", help="Put the copy of that digest into service, and try it.")
@click.option(
    "--until",
    default=None,
    metavar="MOMENT",
    help="latest, or time:2026-11-30T08:15:00Z; collections come from the newest proven backup before it. "
    "Default: latest.",
)
@click.option(
    "--old-nodes-gone",
    "gone",
    default="",
    metavar="TEXT",
    help="Of servers that are not on this host: the statement of a person that the old nodes cannot come back.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@stack_options
def command(place: Place, *, prepare: bool, digest: str | None, until: str | None, gone: str, as_json: bool) -> None:
    """Bring the whole stack back when nothing is left to fail over to.

    Without --plan or --apply: what is down, each way back with its time and its loss, and the recommended one. Nothing
    is changed. --plan replaces nothing either; only --apply does, with the digest that --plan printed.
    Each may be repeated after it was cut: it goes on from there. docs/recovery.md tells the whole.

    \b
    Examples:
      synapse-ops recover
      synapse-ops recover --plan
      synapse-ops recover --plan --until time:2026-11-30T08:15:00Z
      synapse-ops recover --apply 3f9a1c0d5b7e2a44
    """
    if digest is not None and (prepare or until is not None):
        raise ConfigError("--apply takes the digest of a copy that is there: --plan and --until made it")
    from synapse_ops.local.recovery_place import place_of

    stack = place.stack()
    where = place_of(stack)
    if digest is not None:
        _show_done(_apply(stack, where, digest, gone), as_json=as_json)
    elif prepare:
        _show_prepared(_prepare(stack, where, until or "latest", as_json=as_json), as_json=as_json)
    else:
        from synapse_ops.operations.recovery.impact import assess_impact

        impact, _ = assess_impact(stack, where, until or "latest", datetime.now(UTC))
        print_json(impact.as_json()) if as_json else show_impact(impact)


def _prepare(stack: Stack, where: RecoveryPlace, until: str, *, as_json: bool) -> RecoveryRecord:
    from synapse_ops.cli.progress_bar import progress_bar
    from synapse_ops.operations.recovery.prepare import prepare_recovery

    def tell(impact: Impact) -> None:
        if not as_json:
            show_impact(impact)

    with progress_bar() as progress:
        return prepare_recovery(stack, where, until, tell, progress)


def _apply(stack: Stack, where: RecoveryPlace, digest: str, gone: str) -> RecoveryRecord:
    from synapse_ops.cli.progress_bar import progress_bar
    from synapse_ops.operations.recovery.switch import apply_recovery

    with progress_bar() as progress:
        return apply_recovery(stack, where, digest, gone, progress)


def show_impact(impact: Impact) -> None:
    for line in impact.situation.down or ("every endpoint and server is healthy",):
        echo(f"  {line}")
    rows = [one.row() for one in impact.options]
    show_table(tuple(rows[0]), [tuple(row.values()) for row in rows])
    echo(f"recommended: {impact.recommended or 'nothing'}: {impact.because}")
    if impact.command:
        echo(f"next:  {impact.command}")


def _show_prepared(record: RecoveryRecord, *, as_json: bool) -> None:
    from synapse_ops.domain.recovery.sentences import prepared_lines

    print_json(record.as_json()) if as_json else echo("\n".join(prepared_lines(record)))


def _show_done(record: RecoveryRecord, *, as_json: bool) -> None:
    from synapse_ops.domain.recovery.sentences import done_lines

    print_json(record.as_json()) if as_json else echo("\n".join(done_lines(record)))
