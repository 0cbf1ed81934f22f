"""`synapse-ops switchover`: the standby becomes the primary on purpose; nothing is lost."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import click

from synapse_ops.cli.options import state_dir_option
from synapse_ops.cli.terminal import echo
from synapse_ops.errors import DeadlineExceeded, Refused


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
    from synapse_ops.cli.incident_progress import END_LIMIT_S, POLL_S, ask_and_await_end
    from synapse_ops.domain.failover.transitions import State
    from synapse_ops.operations.failover.ledger import Asked, Ledger, Request
    from synapse_ops.operations.failover.status import read_status

    folder, now = state_dir.resolve(), datetime.now(UTC)
    found = read_status(folder, now)
    if found.state != "healthy" or found.primary is None:
        raise Refused(f"nothing was done: {found.sentence}", hint="`synapse-ops failover status` shows what is known.")
    ledger = Ledger.of(folder)
    incident = ask_and_await_end(ledger, Request(now, Asked.SWITCHOVER, end_sessions=end_sessions))
    if incident.state is not State.DONE:
        raise Refused(f"not switched over ({incident.state}): {incident.facts['reason']}")
    facts = incident.facts
    echo(f"{facts['new']} takes writes, {incident.phases_s()['done']:.2f} s after {facts['old']} was stopped")
    began_s = time.monotonic()
    while (back := ledger.rejoin(incident.id)) is None:
        if time.monotonic() - began_s > END_LIMIT_S:
            raise DeadlineExceeded(f"{facts['old']} is not back", hint="`synapse-ops failover status`")
        time.sleep(POLL_S)
    if "seconds" not in back:
        raise Refused(f"{facts['old']} did not come back: {back['fault']}", hint="`synapse-ops failover rejoin`")
    echo(f"{facts['old']} follows it ({back['how']} in {back['seconds']} s)")
