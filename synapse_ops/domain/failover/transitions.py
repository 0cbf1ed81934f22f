"""The states of a failover and the events that lead from one to the next, as data.

A pair that is not in the table is illegal and raises: no event can be forgotten, and none can be misread. No way leads
to PROMOTING except through FENCE_PROVEN or, in a switchover, through STOPPED_CLEANLY (a test walks the whole table).
`docs/failover.md` shows the table as a diagram, generated from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class State(StrEnum):
    """Where a failover is. `HEALTHY` and `SUSPECT` are the watcher's alone; an incident begins with `CONFIRMED`.

    A switchover begins with `ASKED`, and shares what follows the promotion.
    """

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    CONFIRMED = "confirmed"
    FENCING = "fencing"
    FENCED = "fenced"
    PROMOTING = "promoting"
    SWITCHING = "switching"
    VERIFYING = "verifying"
    DONE = "done"
    REFUSED = "refused"
    UNPROVEN = "unproven"
    ASKED = "asked"
    STOPPING = "stopping"
    ROLLED_BACK = "rolled_back"


class Event(StrEnum):
    """What happened."""

    PROBE_FAILED = "probe failed"
    SIGN_OF_LIFE = "sign of life"
    LOOKED_LATE = "looked late"
    WINDOW_PASSED = "window passed"
    ALLOWED = "allowed"
    NOT_ALLOWED = "not allowed"
    FENCE_PROVEN = "fence proven"
    FENCE_UNPROVEN = "fence unproven"
    LOSS_ACCEPTABLE = "loss acceptable"
    LOSS_TOO_LARGE = "loss too large"
    PROMOTED = "promoted"
    NOT_PROMOTED = "not promoted"
    SWITCHED = "switched"
    VERIFIED = "verified"
    NOT_VERIFIED = "not verified"
    SWITCHOVER_ASKED = "switchover asked"
    STOPPED_CLEANLY = "stopped and all of it received"
    GIVEN_UP = "given up"


ENDS = frozenset({State.DONE, State.REFUSED, State.UNPROVEN, State.ROLLED_BACK})

TRANSITIONS: Mapping[tuple[State, Event], State] = MappingProxyType(
    {
        (State.HEALTHY, Event.SIGN_OF_LIFE): State.HEALTHY,
        (State.HEALTHY, Event.PROBE_FAILED): State.SUSPECT,
        (State.HEALTHY, Event.LOOKED_LATE): State.HEALTHY,
        (State.SUSPECT, Event.SIGN_OF_LIFE): State.HEALTHY,
        (State.SUSPECT, Event.PROBE_FAILED): State.SUSPECT,
        (State.SUSPECT, Event.LOOKED_LATE): State.SUSPECT,
        (State.SUSPECT, Event.WINDOW_PASSED): State.CONFIRMED,
        (State.CONFIRMED, Event.ALLOWED): State.FENCING,
        (State.CONFIRMED, Event.NOT_ALLOWED): State.REFUSED,
        (State.FENCING, Event.FENCE_PROVEN): State.FENCED,
        (State.FENCING, Event.FENCE_UNPROVEN): State.UNPROVEN,
        (State.FENCED, Event.LOSS_ACCEPTABLE): State.PROMOTING,
        (State.FENCED, Event.LOSS_TOO_LARGE): State.REFUSED,
        (State.PROMOTING, Event.PROMOTED): State.SWITCHING,
        (State.PROMOTING, Event.NOT_PROMOTED): State.UNPROVEN,
        (State.SWITCHING, Event.SWITCHED): State.VERIFYING,
        (State.VERIFYING, Event.VERIFIED): State.DONE,
        (State.VERIFYING, Event.NOT_VERIFIED): State.UNPROVEN,
        (State.HEALTHY, Event.SWITCHOVER_ASKED): State.ASKED,
        (State.ASKED, Event.ALLOWED): State.STOPPING,
        (State.ASKED, Event.NOT_ALLOWED): State.REFUSED,
        (State.STOPPING, Event.STOPPED_CLEANLY): State.PROMOTING,
        (State.STOPPING, Event.GIVEN_UP): State.ROLLED_BACK,
    }
)


class IllegalTransition(RuntimeError):
    """A fault of ours: this event cannot happen in this state."""


def next_state(state: State, event: Event) -> State:
    """Return the state after an event; raises IllegalTransition for a pair without a row."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f'a failover that is {state} cannot take the event "{event}"') from None
