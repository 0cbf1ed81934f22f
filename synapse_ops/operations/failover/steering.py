"""What a person asks of the watcher: to fail over after it refused, to switch over, to rejoin, to pause.

The watcher does it, and goes on or takes it back whatever happens to the one who asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from synapse_ops.domain.failover.incident import Entry, Incident
from synapse_ops.domain.failover.transitions import State
from synapse_ops.errors import ConfigError, DeadlineExceeded, Refused
from synapse_ops.operations.failover.ledger import Asked, Ledger, Pause, Request
from synapse_ops.operations.failover.status import EXTERNAL, read_status

TAKEN_LIMIT_S = 10.0
END_LIMIT_S = 300.0
POLL_S = 0.1
LONGEST_PAUSE = timedelta(days=7)

Tell = Callable[[Entry], None]  # is given each entry of the incident that follows


def ask_and_await_end(ledger: Ledger, request: Request, tell: Tell) -> Incident:
    """Ask the watcher, and return the incident that follows when it has ended.

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
    return await_end(lambda: new() or incident, tell)


def await_end(find: Callable[[], Incident], tell: Tell, shown: int = 0) -> Incident:
    """Tell of each entry behind the first ones that were shown; return the incident when it has ended."""
    began_s = time.monotonic()
    while True:
        incident = find()
        for entry in incident.entries[shown:]:
            tell(entry)
        shown = len(incident.entries)
        if not incident.is_open:
            return incident
        if time.monotonic() - began_s > END_LIMIT_S:
            raise DeadlineExceeded(f"not ended within {END_LIMIT_S:g} s", hint="`synapse-ops failover status`")
        time.sleep(POLL_S)


def fail_over(state_dir: Path, accept_loss_bytes: int | None, now: datetime, tell: Tell) -> Incident:
    """Let the watcher go on with a failover that it refused. accept_loss_bytes: None: the spec's limit.

    Raises Refused, with the reason, where it did not.
    """
    found = read_status(state_dir, now)
    if found.state == EXTERNAL:
        raise Refused(f"nothing was done: {found.sentence}")
    if found.state not in {"suspect", "confirmed"}:
        raise Refused(
            f"nothing was done: {found.primary or 'the primary'} is {found.state or 'not watched'}",
            hint="A primary that answers is not failed over. `synapse-ops failover status` shows what is known.",
        )
    ended = ask_and_await_end(Ledger.of(state_dir), Request(now, accept_loss_bytes=accept_loss_bytes), tell)
    if ended.facts.get("reason"):
        raise Refused(f"not failed over: {ended.facts['reason']}")
    return ended


def switch_over(state_dir: Path, *, end_sessions: bool, now: datetime, tell: Tell) -> tuple[Incident, dict[str, Any]]:
    """Have the standby take writes on purpose; return the incident, and how the old primary came back."""
    found = read_status(state_dir, now)
    if found.state != "healthy" or found.primary is None:
        raise Refused(f"nothing was done: {found.sentence}", hint="`synapse-ops failover status` shows what is known.")
    ledger = Ledger.of(state_dir)
    incident = ask_and_await_end(ledger, Request(now, Asked.SWITCHOVER, end_sessions=end_sessions), tell)
    if incident.state is not State.DONE:
        raise Refused(f"not switched over ({incident.state}): {incident.facts['reason']}")
    began_s = time.monotonic()
    while (back := ledger.rejoin(incident.id)) is None:
        if time.monotonic() - began_s > END_LIMIT_S:
            raise DeadlineExceeded(f"{incident.facts['old']} is not back", hint="`synapse-ops failover status`")
        time.sleep(POLL_S)
    if "seconds" not in back:
        raise Refused(
            f"{incident.facts['new']} takes writes; {incident.facts['old']} did not come back: {back['fault']}",
            hint="`synapse-ops failover rejoin`",
        )
    return incident, back


def pause(state_dir: Path, span: timedelta, reason: str, now: datetime) -> datetime:
    """Have nothing failed over by itself for a while; return until when. Raises ConfigError for no such length."""
    if not timedelta(0) < span <= LONGEST_PAUSE:
        raise ConfigError(f"a pause of {span.total_seconds():g} s is not between 1 s and 7 d")
    until = now + span
    existing_ledger(state_dir).set_pause(Pause(until, reason))
    return until


def resume(state_dir: Path) -> None:
    """End a pause."""
    existing_ledger(state_dir).set_pause(None)


def rejoin(state_dir: Path) -> str:
    """Have the watcher try again to bring the old primary back as a standby; return its name."""
    ledger = Ledger.of(state_dir)
    incidents = ledger.incidents()
    back = ledger.rejoin(incidents[-1].id) if incidents else None
    if not incidents or incidents[-1].state is not State.DONE:
        raise Refused("nothing to rejoin: the last incident of the ledger promoted nothing")
    if back is not None and "seconds" in back:
        raise Refused(f"{back['node']} is back already: {back['how']} in {back['seconds']} s")
    ledger.forget_rejoin(incidents[-1].id)
    return str(incidents[-1].facts["old"])


def existing_ledger(state_dir: Path) -> Ledger:
    """Return the ledger of a state directory in which a watcher has worked; raises ConfigError for another one."""
    ledger = Ledger.of(state_dir)
    if not ledger.folder.is_dir():
        raise ConfigError(
            f"no watcher has worked in {state_dir}: there is nothing to pause",
            hint="Name the state directory of the stack with --state-dir; `synapse-ops local up` starts its watcher.",
        )
    return ledger
