"""How the stack is, now: from the prober's history, or asked here once where no prober runs. Needs no Dagster."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from synapse_ops.domain.health.states import (
    BADNESS,
    Condition,
    State,
    TimeInStates,
    initial_condition,
    next_condition,
)
from synapse_ops.operations.health.asker import Asker, Probe
from synapse_ops.operations.health.history import (
    SPAN_S,
    Change,
    ProbeRow,
    believed_condition,
    full_disk,
    reading_history,
)
from synapse_ops.systems.probe_clients import HttpClients

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class HealthRow:
    """One probed thing. condition: as it may be believed now. day: its last 24 hours; empty without a prober.

    day_window: the whole five minutes of these 24 hours, up to the last verdict while one is not overdue.
    """

    probe: ProbeRow
    condition: Condition
    day: TimeInStates
    day_window: timedelta = DAY

    @property
    def unobserved_ratio(self) -> float:
        """The part of the last day for which no state is known; `day.uptime_ratio` is of the rest alone."""
        return self.day.unobserved_ratio(self.day_window)

    @property
    def is_healthy(self) -> bool:
        return self.condition.state is State.HEALTHY


@dataclass(frozen=True, slots=True)
class HealthReport:
    """All probed things at one moment. is_watched: a prober runs; otherwise the verdicts are single ones, asked now.

    changes: of the last day, the newest first. protection: what the prober read of the repository; None: not yet.
    prober_fault: why a prober that runs was not believed; "" for none.
    """

    rows: tuple[HealthRow, ...]
    read_at: datetime
    is_watched: bool
    changes: tuple[Change, ...] = ()
    protection: Mapping[str, Any] | None = None
    prober_fault: str = ""

    @property
    def is_overdue(self) -> bool:
        """Whether a prober has stored nothing of any probe for longer than was due."""
        return bool(self.rows) and all(row.condition is not row.probe.condition for row in self.rows)

    def of(self, state: State) -> tuple[HealthRow, ...]:
        return tuple(row for row in self.rows if row.condition.state is state)

    @property
    def worst(self) -> State:
        """The worst state of any row; unknown when there is none."""
        return max((row.condition.state for row in self.rows), key=BADNESS.__getitem__, default=State.UNKNOWN)


def read_health(state_dir: Path, now: datetime) -> HealthReport:
    """Return what the prober of a state directory knows. Verdicts that are overdue read as unknown.

    Raises Refused when no prober has run there, IntegrityError or Unreachable when its history cannot be read.
    """
    with reading_history(state_dir) as history:
        probes = history.probes()
        days = history.spans(now - DAY, now + timedelta(minutes=5))
        changes = history.changes(since=now - DAY)
        protection = history.note("protection")
    times = {name: span.time for name, span in days.items()}
    rows = tuple(_row_of(probe, times.get(probe.name, TimeInStates()), now) for probe in probes)
    if any(row.condition is not row.probe.condition for row in rows):
        rows = tuple(_with_cause(row, full_disk(state_dir)) for row in rows)
    return HealthReport(rows, now, is_watched(state_dir), tuple(reversed(changes)), protection)


def _row_of(probe: ProbeRow, day: TimeInStates, now: datetime) -> HealthRow:
    condition = believed_condition(probe, now)
    is_current = condition is probe.condition and probe.at is not None
    until_s = (probe.at if is_current and probe.at is not None else now).timestamp()
    since_s = -(-(now - DAY).timestamp() // SPAN_S) * SPAN_S
    return HealthRow(probe, condition, day, timedelta(seconds=max(0.0, until_s - since_s)))


def _with_cause(row: HealthRow, cause: str) -> HealthRow:
    if row.condition is row.probe.condition:
        return row
    return replace(row, condition=replace(row.condition, reason=row.condition.reason + cause))


def is_watched(state_dir: Path) -> bool:
    """Say whether a prober holds the state directory's lock."""
    try:
        with (state_dir / "watch" / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def ask_once(probes_with: Callable[[HttpClients], Sequence[Probe]]) -> HealthReport:
    """Ask every probe once, all at the same time, and return what each said. Writes nothing here."""
    return asyncio.run(_ask_all(probes_with))


async def _ask_all(probes_with: Callable[[HttpClients], Sequence[Probe]]) -> HealthReport:
    clients = HttpClients()
    try:
        probes = probes_with(clients)
        verdicts = await asyncio.gather(*(Asker(probe).ask() for probe in probes))
    finally:
        await clients.close()
    now = datetime.now(UTC)
    rows = []
    for probe, verdict in zip(probes, verdicts, strict=True):
        condition = next_condition(initial_condition(now), verdict, now)
        row = replace(
            _new_row(probe, condition),
            at=now,
            verdict=verdict.state,
            verdict_reason=verdict.reason,
            latency_s=verdict.latency_s,
            measurements=verdict.measurements,
        )
        rows.append(HealthRow(row, condition, TimeInStates()))
    return HealthReport(tuple(rows), now, is_watched=False)


def _new_row(probe: Probe, condition: Condition) -> ProbeRow:
    return ProbeRow(
        probe.name, probe.kind, probe.target, probe.interval_s, probe.timeout_s, condition, None, None, "", None, {}
    )


def summary_of(rows: Sequence[HealthRow]) -> str:
    """Return one line: `11 of 12 healthy; failed: server/redis`."""
    bad = [
        f"{state}: {', '.join(row.probe.name for row in rows if row.condition.state is state)}"
        for state in sorted(State, key=BADNESS.__getitem__, reverse=True)
        if state is not State.HEALTHY and any(row.condition.state is state for row in rows)
    ]
    healthy = sum(row.is_healthy for row in rows)
    return "; ".join([f"{healthy} of {len(rows)} healthy", *bad])
