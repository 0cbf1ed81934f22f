"""When a primary counts as dead. Pure: what was seen, and when, are arguments; times are of one monotonic clock.

CONFIRMED needs two views that say dead, and none that says alive since the suspicion began: our own sessions with the
primary, and the standby's WAL receiver. Hard evidence (the kernel of the primary's host says that nobody listens any
more) needs a window of one second, time-outs five. Any answer of the server is life, a refusal too: it comes from a
living postmaster. So is WAL that it writes while nobody can ask it: clients with open sessions still work. A server
that says that it starts (after a crash, say) is alive for `primary_start_timeout`, and then as good as silent. A
watcher that was late by half a second saw nothing meanwhile: its window begins again.
Source of the numbers: measured; docs/failover.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from synapse_ops.domain.failover.transitions import Event, State, next_state

HARD_WINDOW_S = 1.0
SOFT_WINDOW_S = 5.0
LATE_S = 0.5
FRESH_S = 2.0  # the standby's position was read at most this long before the first failed probe


class Sign(StrEnum):
    """What one question to the primary came to."""

    ALIVE = "answers"
    STARTING = "it is starting up"
    REFUSED = "nobody listens"
    ENDED = "the session was ended"
    SILENT = "no answer in time"

    @property
    def is_hard(self) -> bool:
        return self in {Sign.REFUSED, Sign.ENDED}


class View(StrEnum):
    """What others show of the primary: its standby, and its own WAL. UNKNOWN: no answer, or not noticed yet."""

    ALIVE = "hears from it"
    DEAD = "does not stream from it"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Look:
    """One look at both nodes. late_s: by how much it came later than it was due."""

    at_s: float
    primary: Sign
    standby: View
    late_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Watch:
    """What the watcher knows. since_s: when the window began; is_soft: whether a time-out was among what was seen;
    starting_since_s: since when the primary has said nothing but that it starts.
    """

    state: State = State.HEALTHY
    since_s: float | None = None
    is_soft: bool = False
    last: Look | None = None
    starting_since_s: float | None = None

    @property
    def window_s(self) -> float:
        return SOFT_WINDOW_S if self.is_soft else HARD_WINDOW_S


def next_watch(watch: Watch, look: Look, start_timeout_s: float = 0.0) -> Watch:
    """Return what is known after one more look; its state becomes CONFIRMED when both views agreed long enough.

    start_timeout_s: for how long a server that says that it starts is alive.
    """
    starting_s = (watch.starting_since_s or look.at_s) if look.primary is Sign.STARTING else None
    starts = starting_s is not None and look.at_s - starting_s < start_timeout_s
    if look.primary is Sign.ALIVE or starts:
        return Watch(next_state(watch.state, Event.SIGN_OF_LIFE), last=look, starting_since_s=starting_s)
    watch = replace(watch, starting_since_s=starting_s)
    begins_again = replace(watch, since_s=look.at_s, last=look, is_soft=not look.primary.is_hard)
    if watch.since_s is None:
        return replace(begins_again, state=next_state(watch.state, Event.PROBE_FAILED))
    if look.late_s >= LATE_S:
        return replace(begins_again, state=next_state(watch.state, Event.LOOKED_LATE))
    if look.standby is View.ALIVE:  # cut from us alone: somebody else still hears it
        return replace(begins_again, state=next_state(watch.state, Event.PROBE_FAILED))
    seen = replace(watch, last=look, is_soft=watch.is_soft or not look.primary.is_hard)
    if look.standby is View.DEAD and look.at_s - watch.since_s >= seen.window_s:
        return replace(seen, state=next_state(watch.state, Event.WINDOW_PASSED))
    return replace(seen, state=next_state(watch.state, Event.PROBE_FAILED))
