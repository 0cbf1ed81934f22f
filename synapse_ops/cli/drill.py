"""`synapse-ops drill`: rehearse a failover or a recovery on a disposable copy, and show what former ones measured."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.options import Place, stack_options
from synapse_ops.cli.tables import show_table
from synapse_ops.cli.terminal import echo
from synapse_ops.errors import Unproven

if TYPE_CHECKING:
    from synapse_ops.domain.progress import ReportProgress
    from synapse_ops.domain.recovery.drill_score import DrillScore
    from synapse_ops.operations.stack import Stack

    Drill = Callable[[Stack, ReportProgress], DrillScore]

_json = click.option("--json", "as_json", is_flag=True, help="Print the score as docs/repository-format.md says.")


@click.group()
def command() -> None:
    """Rehearse on a disposable copy. Nothing of the system is touched; each drill leaves a score in the bucket.

    A drill shows that the code works and how long it takes on this host. Whether the system itself fails over, only
    `synapse-ops switchover` shows.

    \b
    Examples:
      synapse-ops drill failover
      synapse-ops drill recovery
      synapse-ops drill scores
    """


@command.command()
@_json
@stack_options
def failover(place: Place, *, as_json: bool) -> None:
    """Kill the primary of a small copy under a writer, and measure until the old primary is back.

    The copy has its own ports, data and store: primary, standby, application and prober. About a minute. Exit code 14
    when the drill failed.
    """
    from synapse_ops.local.failover_drill import drill_failover

    _run(place, drill_failover, as_json=as_json)


@command.command()
@_json
@stack_options
def recovery(place: Place, *, as_json: bool) -> None:
    """Restore what the bucket holds into a folder that is thrown away, and measure it.

    Exit code 14 when the drill failed.
    """
    from synapse_ops.operations.recovery.drills import drill_recovery

    _run(place, drill_recovery, as_json=as_json)


def _run(place: Place, drill: Drill, *, as_json: bool) -> None:
    from synapse_ops.cli.progress_bar import progress_bar
    from synapse_ops.operations.recovery.drills import keep_score, refuse_beside_backup

    stack = place.stack()
    repository = stack.database_repository()
    refuse_beside_backup(repository)
    with progress_bar() as progress:
        score = drill(stack, progress)
    score, url = keep_score(repository, score)
    if as_json:
        echo(score.to_bytes().decode(), nl=False)
    elif score.passed:
        for line in _lines(score):
            echo(line)
        echo(f"score: {url}")
    if not score.passed:
        raise Unproven(f"the {score.scenario} failed: {score.reason}", detail=f"score: {url}")


def _lines(score: DrillScore) -> list[str]:
    lines = [f"{name:<14}{seconds:8.2f} s" for name, seconds in score.phases]
    lines.append(f"{'in all':<14}{score.rto_s:8.2f} s, {score.expected}")
    if score.lost_writes is not None:
        lines.append(f"lost writes   {score.lost_writes:5}")
    return lines


@command.command()
@stack_options
def scores(place: Place) -> None:
    """Show the scores of drills, and of real failovers, switchovers and recoveries, the newest first."""
    from synapse_ops.operations.recovery.scores import read_scores

    found = read_scores(place.stack().database_repository())
    now = datetime.now(UTC)
    if found.scores:
        show_table(
            ("scenario", "of", ">age", "result", ">seconds", "predicted", ">lost writes"),
            [_row(score, now) for score in found.scores],
        )
    else:
        echo("no drill yet")
    for fault in found.unreadable:
        echo(f"not read: {fault}", err=True)


def _row(score: DrillScore, now: datetime) -> tuple[Any, ...]:
    from synapse_ops.domain.durations import format_age

    return (
        str(score.scenario),
        str(score.of),
        format_age(now - score.at),
        "passed" if score.passed else f"failed: {score.reason}",
        "-" if score.rto_s is None else f"{score.rto_s:.2f}",
        score.expected,
        "-" if score.lost_writes is None else str(score.lost_writes),
    )
