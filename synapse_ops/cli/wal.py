"""`synapse-ops wal sync [on|off]`: for whom commits wait, and the switch for the day when that one is away."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from synapse_ops.cli.options import Place, stack_options
from synapse_ops.cli.terminal import echo, print_json
from synapse_ops.errors import Unhealthy, counted

if TYPE_CHECKING:
    from synapse_ops.operations.database.synchronous import SynchronousReport


@click.group()
def command() -> None:
    """Show and steer how WAL of the primary is kept.

    \b
    Examples:
      synapse-ops wal sync
      synapse-ops wal sync off
    """


@command.command()
@click.argument("switch", type=click.Choice(["on", "off"]), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@stack_options
def sync(place: Place, switch: str | None, *, as_json: bool) -> None:
    """Show for whom commits wait; `off` ends the waiting, `on` takes that back.

    With `failover.synchronous: standby` or `backup.database.wal.synchronous: true` a commit is acknowledged once the
    standby, or the repository, has its WAL. When that one is away, commits stand still until it is back, or until
    `off`: then they wait for the primary's disk alone, and what is acknowledged may be lost with the primary. It stays
    off, over failovers too, until `on`. Exit code 17 while commits do not wait as the spec wants.

    \b
    Examples:
      synapse-ops wal sync --json
      synapse-ops wal sync off --spec infrastructure.yaml
    """
    from synapse_ops.domain.database.synchronous import unprotected
    from synapse_ops.operations.database.synchronous import read_report, turn_off, turn_on

    stack = place.stack()
    if switch == "off":
        before = turn_off(stack, datetime.now(UTC))
        if before.waiting and not as_json:
            echo(f"{counted(before.waiting, 'commit')} waited for {', '.join(before.found.awaited)}")
    report = turn_on(stack) if switch == "on" else read_report(stack)
    fault = unprotected(report.found)
    if as_json:
        print_json(
            {
                "wanted": report.found.is_wanted,
                "awaited": list(report.found.awaited),
                "waiting": report.waiting,
                "escaping": [{"who": who, "synchronous_commit": value} for who, value in report.escaping],
                "off": report.found.off or None,
                "fault": fault or None,
            }
        )
    else:
        echo(_sentence(report))
        for who, value in report.escaping if report.found.is_wanted else ():
            echo(f"commits of {who} do not wait: synchronous_commit = {value}")
    if fault and switch is None:
        raise Unhealthy(fault)


def _sentence(report: SynchronousReport) -> str:
    found = report.found
    if not found.awaited:
        return "commits wait for the primary's disk alone"
    waiting = f"; {counted(report.waiting, 'commit')} waiting now" if report.waiting else ""
    return f"commits wait for {', '.join(found.awaited)}{waiting}"
