"""`synapse-ops restore`: a backup of any kind into a new target. It prints its plan first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from synapse_ops.cli.options import Place, repository_options, subject_of, timeout_option, work_dir_option
from synapse_ops.cli.tables import fact_lines
from synapse_ops.cli.terminal import echo, print_json
from synapse_ops.errors import ConfigError

if TYPE_CHECKING:
    from synapse_ops.domain.backup.layout import BackupPlace
    from synapse_ops.domain.backup.record import Fact
    from synapse_ops.operations.backup.restoring import RestorePlan, RestoreReport
    from synapse_ops.operations.backup_kinds import BackupKind
    from synapse_ops.operations.repository import Repository


@click.command()
@click.argument("backup_id", metavar="ID")
@click.option(
    "--to",
    "target",
    required=True,
    metavar="TARGET",
    help="The new target, which must not exist yet. For a database: a name, a conninfo without a password, "
    "or a data directory, which starts with / or ./; for a collection: a name; for Redis and the cluster: a directory.",
)
@click.option(
    "--server",
    metavar="REFERENCE",
    help="The server of a new database, as superuser: env:NAME or file:PATH of a libpq URL, or service:NAME. "
    "Default: database.admin of the spec.",
)
@click.option(
    "--until",
    metavar="MOMENT",
    help="Of the cluster: latest, immediate (the end of the base backup), time:2026-11-30T08:15:00Z, lsn:0/5012DD0, "
    "name:RESTORE_POINT or xid:771. Default: latest for `cluster`, immediate for the id of a base backup.",
)
@click.option("--timeline", type=click.IntRange(1), help="Of the cluster: the timeline to follow. Default: the newest.")
@click.option("--go-live", "goes_live", is_flag=True, help="Of the cluster: make the copy a server of its own.")
@click.option("--plan", "only_plan", is_flag=True, help="Print what would be done. The default.")
@click.option("--apply", "apply", is_flag=True, help="Carry it out.")
@timeout_option("the restore. Default: a day.")
@work_dir_option("Directory where the backup is staged.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/json/restore.schema.json).")
@repository_options
def command(
    place: Place,
    backup_id: str,
    target: str,
    server: str | None,
    until: str | None,
    timeline: int | None,
    goes_live: bool,
    only_plan: bool,
    apply: bool,
    timeout_s: float | None,
    work_dir: Path | None,
    as_json: bool,
) -> None:
    """Restore a backup into a new target and compare it there. Nothing that exists is ever replaced.

    ID is that of a backup; or `cluster`, for the whole PostgreSQL cluster at the moment of --until.

    \b
    Examples:
      synapse-ops restore 20261123T201726Z-3f9a1c --to synapse_yesterday --plan
      synapse-ops restore 20261123T201726Z-3f9a1c --to synapse_yesterday --apply
      synapse-ops restore 20261123T201726Z-3f9a1c --to /var/lib/postgresql/restored --apply
      synapse-ops restore cluster --until time:2026-11-30T08:15:00Z --to /var/lib/postgresql/restored --apply
      synapse-ops restore ID --repository s3://backups/database/ --to copy --server env:TARGET_DSN --apply
    """
    from synapse_ops.cli.progress_bar import progress_bar
    from synapse_ops.operations.backup.restoring import DEFAULT_TIMEOUT_S, RestoreRequest

    if only_plan and apply:
        raise ConfigError("--plan and --apply are mutually exclusive")
    if not target:
        raise ConfigError("--to is empty", hint="Name a target that does not exist yet.")
    if backup_id == "cluster":
        until = until or "latest"
        repository, found, kind = _locate_cluster(place, until, timeline)
    else:
        repository, found, kind = place.locate(backup_id)
    request = RestoreRequest(
        repository=repository,
        place=found,
        target=target,
        open_stack=place.stack if place.has_spec else None,
        work_dir=work_dir or place.work_dir,
        server=server,
        until=until,
        timeline=timeline,
        goes_live=goes_live,
        identities=place.age_identities(),
        timeout_s=timeout_s or DEFAULT_TIMEOUT_S,
    )
    plan = kind.plan_restore(request)
    if not apply:
        print_json(plan.as_json()) if as_json else echo(_render_plan(plan))
        return
    if not as_json:
        echo(_render_plan(plan), err=True)
    with progress_bar() as progress:
        report = kind.apply_restore(replace(request, progress=progress), plan)
    print_json(report.as_json()) if as_json else echo(_render_report(report))


def _locate_cluster(place: Place, until: str, timeline: int | None) -> tuple[Repository, BackupPlace, BackupKind]:
    """Return the base backup from which the cluster is restored to a moment."""
    from synapse_ops.operations.backup_kinds import BASES
    from synapse_ops.operations.database.restore_cluster import newest_place

    [source] = place.sources("cluster")
    return source.repository, newest_place(source.repository, until, timeline, place.age_identities()), BASES


def _render_plan(plan: RestorePlan) -> str:
    """Return a plan as an operator reads it."""
    predicted: Fact = "unknown: no restore was measured yet" if plan.predicted_s is None else plan.predicted_s
    facts: dict[str, Fact] = {
        "state_of": plan.record.data_time,
        "items": plan.record.item_count,
        "into": f"{plan.where} (new)",
        "server_version": plan.server_version,
        "reads_bytes": plan.stored_bytes,
        "writes_bytes": plan.size_bytes,
        "predicted_s": predicted,
        **plan.facts(),
    }
    lines = [f"restore {plan.place.backup_id} of {subject_of(plan.place)}", *fact_lines(facts)]
    return "\n".join([*lines, *(f"  note: {note}" for note in plan.notes)])


def _render_report(report: RestoreReport) -> str:
    """Return a finished restore as an operator reads it, with the step that makes it live."""
    lines = [
        f"{report.outcome}: {report.plan.where}",
        *fact_lines({"items": report.item_count, "usable_after_s": report.restore_s}),
        *(f"  note: {note}" for note in report.notes),
        *(f"  to make it live:  {step}" for step in report.next_steps()),
    ]
    return "\n".join(lines)
