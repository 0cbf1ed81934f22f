"""`synapse-ops wal sync [on|off]`: for whom commits wait, and the switch for the day when that one is away.

`wal push` and `wal fetch`: what a server's archive_command and restore_command call (docs/wal.md). The resident process
answers both, through `cli/entry.py`; here is what is left: their help, and a fetch while no process answers.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from synapse_ops.cli.options import Place, stack_options
from synapse_ops.cli.terminal import echo, print_json
from synapse_ops.errors import SynapseOpsError, Unhealthy, Unreachable, counted

if TYPE_CHECKING:
    from synapse_ops.operations.database.synchronous import SynchronousReport


@click.group()
def command() -> None:
    """Show and steer how WAL of the primary is kept, and move it for a server.

    \b
    Examples:
      synapse-ops wal sync
      synapse-ops wal sync off
      synapse-ops wal push pg_wal/000000010000000000000001
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


@command.command()
@click.argument("path", type=click.Path(path_type=Path))
@stack_options
def push(place: Place, path: Path) -> None:
    """Store a file of WAL: for `archive_command`, with `backup.database.wal_archiving: command`.

    Exit code 0 once the repository has it. Anything else, and the server hands it over again; never above 125.

    \b
    Examples:
      archive_command = 'synapse-ops wal push --state-dir /var/lib/synapse-ops %p'
    """
    raise Unreachable(f"no WAL receiver of {place.state_dir} takes {path}", hint="See docs/wal.md.")


@command.command()
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--identity", help="Whose WAL, where the repository holds that of several generations of the server.")
@stack_options
def fetch(place: Place, name: str, path: Path, identity: str | None) -> None:
    """Write a file of WAL where a server wants it: for `restore_command`.

    Exit code 0; 1 where WAL ends before it; 255, which ends a recovery, for everything else: damage, WAL that was
    stored and is gone, a store that does not answer for 5 minutes. A standby asks again: then that is 12.

    \b
    Examples:
      restore_command = 'synapse-ops wal fetch --state-dir /var/lib/synapse-ops %f %p'
    """
    from synapse_ops.domain.backup.layout import Identity
    from synapse_ops.operations.database.wal_restore import FATAL, WalFiles, answer

    data_dir = Path.cwd()
    try:
        stack = place.stack()
        keys = stack.age_identities()
        wanted = Identity.parse(identity) if identity is not None else None
        files = WalFiles(stack.database_repository(), age_identities=keys, identity=wanted)
        code, said = answer(lambda: files.write(name, data_dir / path, data_dir), data_dir)
    except (SynapseOpsError, ValueError) as error:
        code, said = FATAL, error.render() if isinstance(error, SynapseOpsError) else f"error: {error}"
    if said:
        echo(said, err=True)
    if code:
        raise click.exceptions.Exit(code)


def _sentence(report: SynchronousReport) -> str:
    found = report.found
    if not found.awaited:
        return "commits wait for the primary's disk alone"
    waiting = f"; {counted(report.waiting, 'commit')} waiting now" if report.waiting else ""
    return f"commits wait for {', '.join(found.awaited)}{waiting}"
