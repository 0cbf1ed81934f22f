"""`failover drill`: kill the primary of a disposable copy under a writer, and measure until the old one is back.

The writer is a client of the application: it posts one document after another and notes which were acknowledged. What
was acknowledged and is not there afterwards is lost. Nothing of the system itself is touched.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, TypeVar

from synapse_ops import __version__
from synapse_ops.domain.failover.incident import Incident
from synapse_ops.domain.failover.transitions import State
from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.domain.recovery.drill_score import DrillScore, Of, Scenario
from synapse_ops.errors import DeadlineExceeded, SynapseOpsError
from synapse_ops.local.disposable_copy import disposable_copy
from synapse_ops.local.embedded_stack import RunningStack
from synapse_ops.local.failover_place import primary_processes
from synapse_ops.local.layout import find_layout
from synapse_ops.local.servers.api import conninfo_file
from synapse_ops.operations.failover.ledger import Ledger
from synapse_ops.operations.failover.status import read_status
from synapse_ops.operations.recovery.drills import failed_score, only_drill
from synapse_ops.operations.stack import Stack
from synapse_ops.systems.postgres.connection import postgres_errors

STEP_LIMIT_S = 180.0  # of each step: a busy host starts, fails over and rejoins within seconds
REQUEST_LIMIT_S = 10.0
POLL_S, PAUSE_S = 0.05, 0.005
WRITES_FIRST = 100  # acknowledged before the kill, so that there is something to lose
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Write:
    """An acknowledged write: its text; when it was sent and acknowledged, by our clock."""

    text: str
    sent_s: float
    acknowledged_s: float


@dataclass
class Writer:
    """Writes through the application until it is stopped, as a client that tries again would."""

    port: int
    acknowledged: list[Write] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def work(self) -> None:
        number, connection = 0, None
        while not self.stopping.is_set():
            number += 1
            text, sent_s = f"drill {number}", time.time()
            try:
                connection = connection or HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_LIMIT_S)
                headers = {"Content-Type": "application/json"}
                connection.request("POST", "/generate", json.dumps({"prompt": text}), headers)
                reply = connection.getresponse()
                reply.read()
                if reply.status == 200:
                    self.acknowledged.append(Write(text, sent_s, time.time()))
            except (OSError, HTTPException):
                connection = None
            self.stopping.wait(PAUSE_S)

    def since(self, moment_s: float) -> Write | None:
        """Return the first write that was sent after a moment and acknowledged."""
        return next((one for one in self.acknowledged if one.sent_s > moment_s), None)

    @contextmanager
    def working(self) -> Iterator[None]:
        thread = threading.Thread(target=self.work, name="drill-writer", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            thread.join(REQUEST_LIMIT_S)


def drill_failover(stack: Stack, progress: ReportProgress = ignore_progress) -> DrillScore:
    """Fail over a disposable copy of the embedded stack and return the score; it is not stored. Leaves nothing else.

    What went wrong on the copy is a failed score. Raises Refused where another failover drill runs.
    """
    began_at = datetime.now(UTC)
    with only_drill(stack.state_dir, "failover"):
        try:
            with disposable_copy(stack.state_dir, "failover", stack.spec, progress) as copy:
                return _measure(copy, began_at, progress, waits=stack.spec.failover.synchronous == "standby")
        except SynapseOpsError as error:
            return failed_score(Scenario.FAILOVER_DRILL, began_at, error.message)


def _measure(copy: RunningStack, began_at: datetime, progress: ReportProgress, *, waits: bool) -> DrillScore:
    """waits: commits wait for the standby, as the spec promises."""
    layout = find_layout(copy.state_dir)
    ledger = Ledger.of(layout.root)
    writer = Writer(copy.state.ports["api"])
    application = conninfo_file(layout).read_text(encoding="utf-8").strip()

    def step(number: int, what: str, look: Callable[[], _Found | None]) -> _Found:
        progress(Progress(what, number, 4, "steps"))
        end_s = time.monotonic() + STEP_LIMIT_S
        while not (found := look()):
            if time.monotonic() > end_s:
                why = read_status(layout.root, datetime.now(UTC)).sentence
                raise DeadlineExceeded(f"{what}: not within {STEP_LIMIT_S:g} s ({why})")
            time.sleep(POLL_S)
        return found

    with writer.working():
        step(0, "waiting until the failover is armed", lambda: read_status(layout.root, datetime.now(UTC)).is_armed)
        if waits:
            step(0, "waiting until commits wait for the standby", lambda: _standby_is_waited_for(application))
        before = len(writer.acknowledged)
        step(1, "writing through the application", lambda: len(writer.acknowledged) >= before + WRITES_FIRST)
        killed_s, gone_s = _kill_primary(copy.state_dir)
        incident = step(2, "waiting for the end of the failover", lambda: _ended(ledger))
        if incident.state is not State.DONE:
            reason = f"not failed over ({incident.state}): {incident.facts.get('reason', '')}"
            return failed_score(Scenario.FAILOVER_DRILL, began_at, reason)
        first = step(3, "waiting for the first write", lambda: writer.since(gone_s))
        back = step(4, "waiting for the old primary", lambda: ledger.rejoin(incident.id))
    there, size_bytes = _read_back(application)
    lost = [one for one in writer.acknowledged if one.text not in there]
    return DrillScore(
        scenario=Scenario.FAILOVER_DRILL,
        of=Of.COPY,
        at=began_at,
        reason="" if "seconds" in back else f"{back['node']} did not come back: {back['fault']}",
        phases=_phases(killed_s, incident, first, back),
        predicted=None,
        lost_writes=len(lost),
        rto_s=round(first.acknowledged_s - killed_s, 3),
        rpo_s=round(max((killed_s - one.sent_s for one in lost), default=0.0), 3),
        size_bytes=size_bytes,
        code_version=__version__,
    )


def _kill_primary(state_dir: Path) -> tuple[float, float]:
    """kill -9 of every process of the node that takes writes; return when it began and when all of them were gone."""
    _, marks = primary_processes(state_dir)
    killed_s, end_s = time.time(), time.monotonic() + STEP_LIMIT_S
    for mark in marks:
        mark.signal(signal.SIGKILL)
    while any(mark.is_alive() for mark in marks):
        if time.monotonic() > end_s:
            raise DeadlineExceeded("the primary of the copy was killed and is still there")
        time.sleep(PAUSE_S)
    return killed_s, time.time()


def _ended(ledger: Ledger) -> Incident | None:
    return next((one for one in ledger.incidents() if not one.is_open), None)


def _phases(killed_s: float, incident: Incident, first: Write, back: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    """Return each step and its seconds from the end of the one before, in the order in which they ended."""
    detected = incident.facts.get("first_failed_at")
    moments = {
        "detected": datetime.fromisoformat(detected) if detected else None,
        "confirmed": incident.at(State.CONFIRMED),
        "fenced": incident.at(State.FENCED),
        "promoted": incident.at(State.SWITCHING),
        "verified": incident.at(State.DONE),
    }
    ends = {name: at.timestamp() for name, at in moments.items() if at is not None}
    ends["first write"] = first.acknowledged_s
    with suppress(KeyError, ValueError):
        ends["rejoined"] = datetime.fromisoformat(back["at"]).timestamp()
    phases, before_s = [], killed_s
    for name, end_s in sorted(ends.items(), key=lambda one: one[1]):
        phases.append((name, round(max(0.0, end_s - before_s), 3)))
        before_s = max(before_s, end_s)
    return tuple(phases)


def _standby_is_waited_for(application: str) -> bool:
    import psycopg

    with postgres_errors("the database of the copy"), psycopg.connect(application, connect_timeout=10) as connection:
        return connection.execute("show synchronous_standby_names").fetchone() != ("",)


def _read_back(application: str) -> tuple[set[str], int]:
    """Return the texts that are there after the failover, and the size of the database."""
    import psycopg

    with postgres_errors("the database of the copy"), psycopg.connect(application, connect_timeout=10) as connection:
        rows = connection.execute("select prompt from documents where prompt like 'drill %'").fetchall()
        size = connection.execute("select pg_database_size(current_database())").fetchone()
    return {text for (text,) in rows}, size[0] if size is not None else 0
