"""What a command shows while the watcher carries out what was asked of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from synapse_ops.cli.terminal import echo
from synapse_ops.errors import DeadlineExceeded, Refused

if TYPE_CHECKING:
    from synapse_ops.domain.failover.incident import Incident
    from synapse_ops.operations.failover.ledger import Ledger, Request

TAKEN_LIMIT_S = 10.0
END_LIMIT_S = 300.0
POLL_S = 0.1


def ask_and_await_end(ledger: Ledger, request: Request) -> Incident:
    """Ask the watcher, print each entry of the incident that follows, and return it when it has ended.

    Raises Refused when nobody took the request up: then it is withdrawn. Raises DeadlineExceeded when there is no end.
    """
    known = {one.id for one in ledger.incidents()}
    ledger.ask(request)

    def new() -> Incident | None:
        return next((one for one in ledger.incidents() if one.id not in known), None)

    began_s = time.monotonic()
    while (incident := new()) is None:
        if time.monotonic() - began_s > TAKEN_LIMIT_S:
            if ledger.take_request(datetime.now(UTC), request.what) is not None:
                raise Refused(
                    f"nothing was done: no prober took it up within {TAKEN_LIMIT_S:g} s",
                    hint="Is it running? `synapse-ops local status`; `synapse-ops failover status`",
                )
            raise DeadlineExceeded("the prober took it up and said nothing", hint="`synapse-ops failover status`")
        time.sleep(POLL_S)
    return await_end(lambda: new() or incident, since=request.at)


def await_end(find: Callable[[], Incident], since: datetime, shown: int = 0) -> Incident:
    """Print each entry of an incident behind the first ones that were shown; return it when it has ended."""
    began_s = time.monotonic()
    while True:
        incident = find()
        for entry in incident.entries[shown:]:
            echo(f"{(entry.at - since).total_seconds():6.2f} s  {entry.state}", err=True)
        shown = len(incident.entries)
        if not incident.is_open:
            return incident
        if time.monotonic() - began_s > END_LIMIT_S:
            raise DeadlineExceeded(f"not ended within {END_LIMIT_S:g} s", hint="`synapse-ops failover status`")
        time.sleep(POLL_S)
