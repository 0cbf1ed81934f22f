"""The table of failover: no way around the fence, no state without a way out."""

from __future__ import annotations

import pytest

from synapse_ops.domain.failover.transitions import ENDS, TRANSITIONS, Event, IllegalTransition, State, next_state


def reachable(*without: Event) -> set[State]:
    found, waiting = {State.HEALTHY}, [State.HEALTHY]
    while waiting:
        state = waiting.pop()
        for (before, event), after in TRANSITIONS.items():
            if before is state and event not in without and after not in found:
                found.add(after)
                waiting.append(after)
    return found


@pytest.mark.parametrize("proof", [Event.WINDOW_PASSED, Event.ALLOWED, Event.FENCE_PROVEN, Event.LOSS_ACCEPTABLE])
def test_no_way_leads_to_a_promotion_without_each_proof(proof: Event) -> None:
    assert not {State.PROMOTING, State.DONE} & reachable(proof, Event.SWITCHOVER_ASKED)


@pytest.mark.parametrize("proof", [Event.ALLOWED, Event.STOPPED_CLEANLY])
def test_no_switchover_promotes_before_the_old_primary_has_ended_in_order(proof: Event) -> None:
    assert not {State.PROMOTING, State.DONE} & reachable(proof, Event.WINDOW_PASSED)
    assert State.ROLLED_BACK in reachable(Event.STOPPED_CLEANLY)


def test_every_state_can_be_reached_and_every_state_but_the_ends_can_be_left() -> None:
    assert reachable() == set(State)
    assert {before for before, _ in TRANSITIONS} == set(State) - ENDS


@pytest.mark.parametrize("state", sorted(State))
@pytest.mark.parametrize("event", sorted(Event))
def test_a_pair_has_a_row_or_is_refused(state: State, event: Event) -> None:
    """An end takes no event at all: a closed incident is never opened again."""
    if (state, event) in TRANSITIONS:
        assert next_state(state, event) is TRANSITIONS[state, event]
        assert state not in ENDS
    else:
        with pytest.raises(IllegalTransition, match=str(state)):
            next_state(state, event)
