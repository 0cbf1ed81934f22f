"""States follow verdicts late, and later upwards than downwards; nothing unknown is ever good."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_ops.domain.health.availability import month_window, outages
from synapse_ops.domain.health.states import (
    BADNESS,
    OVERDUE_GRACE,
    TRANSITIONS,
    WINDOW,
    Condition,
    ProbeVerdict,
    State,
    TimeInStates,
    condition_now,
    initial_condition,
    next_condition,
)

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
H, D, U, F = State.HEALTHY, State.DEGRADED, State.UNKNOWN, State.FAILED
levels = st.sampled_from(list(State))


def verdict(state: State) -> ProbeVerdict:
    return ProbeVerdict(state, "" if state is H else f"says {state}")


def walk(verdicts: list[State], start: Condition | None = None) -> Condition:
    """Return the condition after verdicts, one a minute."""
    condition = start or initial_condition(NOW)
    begin = condition.since
    for minute, state in enumerate(verdicts):
        condition = next_condition(condition, verdict(state), begin + timedelta(minutes=minute))
    return condition


@given(st.lists(levels, max_size=12), st.sampled_from([H, D, F]))
def test_two_equal_verdicts_always_decide(before: list[State], state: State) -> None:
    """Whatever was before, two verdicts of one kind in a row lead to exactly that state."""
    assert walk([*before, state, state]).state is state


@given(st.lists(levels, max_size=6), levels)
def test_one_odd_verdict_between_good_ones_changes_nothing(before: list[State], odd: State) -> None:
    """A lost packet is not an outage, and does not make `since` younger."""
    good = walk([*before, H, H, H])

    after = walk([odd, H, H], good)

    assert (after.state, after.since) == (H, good.since)


@given(st.lists(levels, max_size=6), st.sampled_from([D, F]))
def test_what_fails_every_other_time_is_not_healthy(before: list[State], bad: State) -> None:
    """Flapping counts as the bad state until it stands still."""
    condition = walk([*before, bad, H, bad])

    for _ in range(5):
        condition = walk([H, bad], condition)
        assert condition.state is bad


@given(st.lists(levels, min_size=1, max_size=20))
def test_a_state_is_one_that_was_or_one_that_was_seen(verdicts: list[State]) -> None:
    """Nothing is made up: each step leads to the state before or to the level of a verdict in the window."""
    condition = initial_condition(NOW)
    for state in verdicts:
        after = next_condition(condition, verdict(state), NOW)
        assert after.state in {condition.state, *after.recent}
        assert len(after.recent) <= WINDOW
        condition = after


@given(st.lists(levels, min_size=1, max_size=20))
def test_a_condition_says_why_exactly_when_it_is_not_healthy(verdicts: list[State]) -> None:
    """`since` moves with the state only."""
    condition = initial_condition(NOW)
    for minute, state in enumerate(verdicts, 1):
        now = NOW + timedelta(minutes=minute)
        after = next_condition(condition, verdict(state), now)
        assert bool(after.reason) == (after.state is not H)
        assert after.since == (now if after.state is not condition.state else condition.since)
        condition = after


@given(st.lists(levels, min_size=1, max_size=20))
def test_healthy_needs_two_good_verdicts_in_a_row_unless_nothing_was_known(verdicts: list[State]) -> None:
    """Recovery is believed late."""
    condition = initial_condition(NOW)
    for state in verdicts:
        after = walk([state], condition)
        if after.state is H and condition.state in {D, F}:
            assert after.recent[-2:] == (H, H)
        condition = after


@pytest.mark.parametrize("first", [H, D, F])
def test_the_first_verdict_counts_at_once(first: State) -> None:
    """Out of unknown nothing is lost by believing it."""
    assert walk([first]).state is first


def test_every_pair_of_states_has_a_row() -> None:
    """The table is whole: from each state, each other known state can be reached."""
    for state, row in TRANSITIONS.items():
        assert set(row) >= {other for other in State if other not in {state, U}}


def test_a_mixed_bad_streak_leads_to_the_milder_state() -> None:
    """One failed and one degraded verdict are two that are at least degraded, and one that is failed."""
    assert walk([H, H, F, D]).state is D
    assert walk([H, H, D, F]).state is D
    assert walk([H, H, D, F, F]).state is F


def test_an_overdue_verdict_reads_as_unknown_whatever_it_was() -> None:
    """A prober that died leaves old good news: nobody may take it for the truth."""
    good = Condition(H, NOW, "", (H,))
    interval, timeout = timedelta(seconds=30), timedelta(seconds=5)
    due = NOW + interval + timeout + OVERDUE_GRACE

    def at(moment: datetime) -> Condition:
        return condition_now(good, NOW, interval=interval, timeout=timeout, now=moment)

    assert at(due) == good
    assert at(due + timedelta(seconds=1)).state is U
    assert at(due + timedelta(seconds=1)).since == due
    assert "it was healthy" in at(due + timedelta(days=1)).reason


def test_a_clock_that_was_set_back_leaves_nothing_to_believe() -> None:
    """A verdict of the future could be of any age; and no state begins in the future."""
    good = Condition(H, NOW, "", (H,))
    interval, timeout = timedelta(seconds=30), timedelta(seconds=5)
    back = NOW - timedelta(hours=1)

    read = condition_now(good, NOW, interval=interval, timeout=timeout, now=back)

    assert (read.state, read.since) == (U, back)
    assert "the clock was set back" in read.reason
    assert next_condition(good, verdict(H), back).since == back


def test_badness_orders_unknown_between_degraded_and_failed() -> None:
    """Unknown is never better than anything known to work."""
    assert sorted(State, key=BADNESS.__getitem__) == [H, D, U, F]


def test_uptime_is_of_the_known_time_alone() -> None:
    """Time without a verdict is neither up nor down; without any there is no figure."""
    time = TimeInStates(healthy_s=50, degraded_s=40, failed_s=10, unknown_s=1000)

    assert time.uptime_ratio == pytest.approx(0.9)
    assert time.coverage_ratio(timedelta(seconds=200)) == pytest.approx(0.5)
    assert TimeInStates(unknown_s=60).uptime_ratio is None


def test_outages_are_clipped_to_the_window() -> None:
    """One that began before counts from the start, one that goes on counts to the end."""
    hour = timedelta(hours=1)
    changes = [(NOW + hour, F, H), (NOW + 3 * hour, H, F), (NOW + 4 * hour, F, U), (NOW + 9 * hour, H, F)]

    found = outages(changes, NOW, NOW + 12 * hour)

    assert (found.count, found.longest) == (3, 3 * hour)
    assert outages([], NOW, NOW + hour).count == 0


@pytest.mark.parametrize(
    ("month", "zone", "since", "until"),
    [
        ("2026-12", "UTC", "2026-12-01T00:00:00+00:00", "2027-01-01T00:00:00+00:00"),
        ("", "UTC", "2026-10-01T00:00:00+00:00", "2026-11-01T00:00:00+00:00"),
        ("2026-03", "Europe/Berlin", "2026-03-01T00:00:00+01:00", "2026-04-01T00:00:00+02:00"),
    ],
)
def test_a_month_is_the_calendars_in_the_specs_time_zone(month: str, zone: str, since: str, until: str) -> None:
    """A change of clock makes March an hour shorter, not a report an hour off."""
    assert [moment.isoformat() for moment in month_window(month, NOW, zone)] == [since, until]


def test_the_last_month_of_january_is_december() -> None:
    """The year turns with it."""
    since, until = month_window("", datetime(2027, 1, 1, 0, 10, tzinfo=UTC), "UTC")

    assert (since.isoformat(), until.isoformat()) == ("2026-12-01T00:00:00+00:00", "2027-01-01T00:00:00+00:00")
