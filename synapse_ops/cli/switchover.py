"""`synapse-ops switchover`: the standby becomes the primary on purpose; nothing is lost."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from synapse_ops.cli.options import state_dir_option
from synapse_ops.cli.terminal import echo


@click.command()
@state_dir_option("State directory of the stack; the ledger lies in failover/ below it.")
@click.option("--end-sessions", is_flag=True, help="End transactions and base backups that are older than 10 s.")
def command(state_dir: Path, *, end_sessions: bool) -> None:
    """Have the standby take writes, and the primary follow it.

    The prober does it, and goes on or takes it back whatever happens to this command. Refused, with everything as it
    was, while the standby does not stream or lags, and while a long transaction or a base backup would be ended.
    Writes are away for about a second, between the stop of the old primary and the promotion. What is not clean until
    then is rolled back: the old primary is started again.

    \b
    Examples:
      synapse-ops switchover
      synapse-ops switchover --end-sessions
    """
    from synapse_ops.cli.incident_progress import shown_since
    from synapse_ops.operations.failover.steering import switch_over

    now = datetime.now(UTC)
    incident, back = switch_over(state_dir.resolve(), end_sessions=end_sessions, now=now, tell=shown_since(now))
    facts = incident.facts
    echo(f"{facts['new']} takes writes, {incident.phases_s()['done']:.2f} s after {facts['old']} was stopped")
    echo(f"{facts['old']} follows it ({back['how']} in {back['seconds']} s)")
