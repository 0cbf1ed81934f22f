"""Two views, long enough, with no sign of life in between: anything less is no death."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_ops.domain.failover.evidence import (
    HARD_WINDOW_S,
    LATE_S,
    SOFT_WINDOW_S,
    Look,
    Sign,
    View,
    Watch,
    next_watch,
)
from synapse_ops.domain.failover.transitions import State


def after(*looks: Look) -> Watch:
    watch = Watch()
    for look in looks:
        if watch.state is State.CONFIRMED:
            break
        watch = next_watch(watch, look)
    return watch


def dead(at_s: float, sign: Sign = Sign.REFUSED, standby: View = View.DEAD, late_s: float = 0.0) -> Look:
    return Look(at_s, sign, standby, late_s)


ALIVE = Look(0.0, Sign.ALIVE, View.ALIVE)


def test_hard_evidence_of_both_views_for_one_second_confirms() -> None:
    assert after(ALIVE, dead(0.1, Sign.ENDED), dead(0.6), dead(1.05)).state is State.SUSPECT
    assert after(ALIVE, dead(0.1, Sign.ENDED), dead(0.6), dead(1.1)).state is State.CONFIRMED


def test_one_time_out_among_it_asks_for_five_seconds() -> None:
    looks = [ALIVE, dead(0.1), dead(0.5, Sign.SILENT), *(dead(1.0 + n / 2) for n in range(8))]
    assert after(*looks).state is State.SUSPECT
    assert after(*looks, dead(5.1)).state is State.CONFIRMED


@pytest.mark.parametrize("view", [View.ALIVE, View.UNKNOWN])
def test_a_primary_that_only_we_cannot_reach_is_never_dead(view: View) -> None:
    assert after(ALIVE, *(dead(n / 5, standby=view) for n in range(1, 1000))).state is State.SUSPECT


def test_one_sign_of_life_begins_everything_anew() -> None:
    assert after(ALIVE, dead(0.1), dead(0.9), Look(1.0, Sign.ALIVE, View.DEAD), dead(1.2)).state is State.SUSPECT
    assert after(dead(0.1), dead(0.9, standby=View.ALIVE), dead(1.5), dead(1.8)).state is State.SUSPECT
    assert after(dead(0.1), dead(0.9, standby=View.ALIVE), dead(1.5), dead(1.95)).state is State.CONFIRMED


def test_a_server_that_starts_is_alive_for_its_time_and_then_as_good_as_silent() -> None:
    """After a crash it says so (57P03) until it has recovered; `primary_start_timeout` says how long that may take."""
    starting = [Look(n / 5, Sign.STARTING, View.DEAD) for n in range(1, 200)]
    watch, confirmed_s = Watch(), None
    for look in starting:
        watch = next_watch(watch, look, start_timeout_s=10.0)
        if watch.state is State.CONFIRMED:
            confirmed_s = look.at_s
            break
    assert confirmed_s == pytest.approx(0.2 + 10.0 + SOFT_WINDOW_S)
    assert after(*starting[:25]).state is State.SUSPECT
    assert after(*starting[:27]).state is State.CONFIRMED


def test_a_watcher_that_was_held_up_has_seen_nothing_meanwhile() -> None:
    assert after(dead(0.1), dead(3.0, late_s=LATE_S), dead(3.9)).state is State.SUSPECT
    assert after(dead(0.1), dead(3.0, late_s=LATE_S), dead(4.0)).state is State.CONFIRMED


LOOKS = st.builds(
    Look,
    at_s=st.just(0.0),
    primary=st.sampled_from(Sign),
    standby=st.sampled_from(View),
    late_s=st.sampled_from([0.0, 0.1, LATE_S, 3.0]),
)


@given(st.lists(st.tuples(LOOKS, st.floats(0.05, 3.0)), max_size=30))
def test_whatever_is_seen_confirmed_means_an_unbroken_window_of_death(steps: list[tuple[Look, float]]) -> None:
    """An oracle of its own: going back from the last look, how long nobody said alive and we were on time."""
    watch, at_s, seen = Watch(), 0.0, []
    for look, pause_s in steps:
        at_s += pause_s
        look = Look(at_s, look.primary, look.standby, look.late_s)
        seen.append(look)
        watch = next_watch(watch, look)
        if watch.state is State.CONFIRMED:
            break
    if watch.state is not State.CONFIRMED:
        return
    begin_s, is_soft = at_s, False
    for look in reversed(seen):
        if look.primary is Sign.ALIVE:
            break
        begin_s, is_soft = look.at_s, is_soft or look.primary in {Sign.SILENT, Sign.STARTING}
        if look.late_s >= LATE_S or look.standby is View.ALIVE:
            break
    assert seen[-1].standby is View.DEAD
    assert at_s - begin_s >= (SOFT_WINDOW_S if is_soft else HARD_WINDOW_S)
