"""What the verdicts of a probe say about the thing probed: four states, with hysteresis, and when each began.

Theory of operation. A probe gives one verdict per interval. A single verdict is weak evidence: a packet is lost, a page
is slow once. So a state follows its verdicts late, and later upwards than downwards:

    to a worse state     as many of the last three verdicts as the table says are at least that bad
    to a better state    as many verdicts in a row as the table says are at least that good
    out of `unknown`     the first verdict that knows: nothing is lost by believing it

Of several states reached at once the mildest worse one that the count carries, and the worst better one, is taken. It
follows that one odd verdict between good ones changes nothing, that two of the same kind always decide, and that an
endpoint which fails every other time is failed until it stands still.

`unknown` means that no check could run (the prober's own trouble, or no prober). It is never good, and lies between
degraded and failed. Pure: `now` is passed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum


class State(StrEnum):
    """How a probed thing is. Also the level of one verdict."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNKNOWN = "unknown"
    FAILED = "failed"


BADNESS: Mapping[State, int] = {State.HEALTHY: 0, State.DEGRADED: 1, State.UNKNOWN: 2, State.FAILED: 3}

WINDOW = 3  # verdicts that are remembered

# state -> state reached -> how many verdicts that takes: of the last WINDOW downwards, in a row upwards
TRANSITIONS: Mapping[State, Mapping[State, int]] = {
    State.HEALTHY: {State.DEGRADED: 2, State.UNKNOWN: 2, State.FAILED: 2},
    State.DEGRADED: {State.HEALTHY: 2, State.UNKNOWN: 2, State.FAILED: 2},
    State.FAILED: {State.HEALTHY: 2, State.DEGRADED: 2, State.UNKNOWN: 2},
    State.UNKNOWN: {State.HEALTHY: 1, State.DEGRADED: 1, State.FAILED: 1},
}

NEVER_PROBED = "not probed yet"


@dataclass(frozen=True, slots=True)
class ProbeVerdict:
    """What one probe found. reason: one line, empty only when healthy. latency_s: None when there was no answer.

    measurements: by name with its unit; what `/metrics` and the health page show beside the state.
    """

    state: State
    reason: str = ""
    latency_s: float | None = None
    measurements: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Condition:
    """The state of one probed thing: since when (aware UTC), why, and the last verdicts, the oldest first."""

    state: State
    since: datetime
    reason: str
    recent: tuple[State, ...] = ()


def initial_condition(now: datetime) -> Condition:
    """Return the condition of something that was never probed."""
    return Condition(State.UNKNOWN, now, NEVER_PROBED)


def next_condition(before: Condition, verdict: ProbeVerdict, now: datetime) -> Condition:
    """Return the condition after one more verdict."""
    recent = (*before.recent, verdict.state)[-WINDOW:]
    state = reached_state(before.state, recent)
    if state is not before.state:
        return Condition(state, now, _reason_of(before, verdict, state), recent)
    reason = verdict.reason if verdict.state is state else before.reason
    since = min(before.since, now)  # a clock that was set back begins no state in the future
    return Condition(state, since, reason, recent)


def reached_state(state: State, recent: tuple[State, ...]) -> State:
    """Return the state that the table leads to. recent: the last verdicts, the oldest first, at most WINDOW."""
    needed = TRANSITIONS[state]
    if state is State.UNKNOWN:
        return recent[-1] if recent and needed.get(recent[-1], 2) <= 1 else state
    here = BADNESS[state]
    worse = [
        target
        for target, count in needed.items()
        if BADNESS[target] > here and sum(BADNESS[seen] >= BADNESS[target] for seen in recent) >= count
    ]
    if worse and BADNESS[recent[-1]] > here:
        return max(worse, key=BADNESS.__getitem__)
    better = [
        target
        for target, count in needed.items()
        if BADNESS[target] < here
        and len(recent) >= count
        and all(BADNESS[seen] <= BADNESS[target] for seen in recent[-count:])
    ]
    return min(better, key=BADNESS.__getitem__, default=state)


def _reason_of(before: Condition, verdict: ProbeVerdict, state: State) -> str:
    """Return why a new state began: the verdict's words, or the former ones where the verdict is of another level."""
    if state is State.HEALTHY:
        return ""
    return verdict.reason or before.reason


def condition_now(
    condition: Condition, last_verdict_at: datetime | None, *, interval: timedelta, timeout: timedelta, now: datetime
) -> Condition:
    """Return the condition as it may be believed now: unknown once a verdict is overdue, whatever the last one said.

    A prober that died leaves a table full of old good verdicts, which must not be believed. A verdict of a time
    in the future means that the clock was set back: its age is unknown.
    """
    if last_verdict_at is None:
        return condition
    if last_verdict_at > now + OVERDUE_GRACE:
        at = last_verdict_at.isoformat(timespec="seconds")
        return Condition(State.UNKNOWN, now, f"the clock was set back: the last verdict is of {at}", condition.recent)
    overdue_at = last_verdict_at + interval + timeout + OVERDUE_GRACE
    if now <= overdue_at:
        return condition
    reason = f"no verdict since {last_verdict_at.isoformat(timespec='seconds')}; it was {condition.state}"
    return Condition(State.UNKNOWN, overdue_at, reason, condition.recent)


OVERDUE_GRACE = timedelta(seconds=5)  # a loaded host wakes late; five times what a verdict may be late


@dataclass(frozen=True, slots=True)
class TimeInStates:
    """Seconds that were spent in each state; time without a prober is in none of them.

    uptime_ratio: the part of the time with a known state in which it was healthy or degraded; None without any.
    """

    healthy_s: float = 0.0
    degraded_s: float = 0.0
    unknown_s: float = 0.0
    failed_s: float = 0.0

    @property
    def known_s(self) -> float:
        return self.healthy_s + self.degraded_s + self.failed_s

    @property
    def uptime_ratio(self) -> float | None:
        return (self.healthy_s + self.degraded_s) / self.known_s if self.known_s > 0 else None

    def coverage_ratio(self, window: timedelta) -> float:
        """Return the part of a window in which the state was known, 0 to 1; 0 of an empty window."""
        return min(1.0, self.known_s / window.total_seconds()) if window > timedelta() else 0.0

    def unobserved_ratio(self, window: timedelta) -> float:
        """Return the part of a window for which no state is known: no prober ran, or it could not check."""
        return 1.0 - self.coverage_ratio(window)
