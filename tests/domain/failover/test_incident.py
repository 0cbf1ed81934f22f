"""What lets a confirmed outage be failed over, and what does not: each refusal has both values."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from synapse_ops.domain.failover.incident import Entry, Incident, Limits, ended_by, incidents_of, objection
from synapse_ops.domain.failover.transitions import Event, IllegalTransition, State

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
LIMITS = Limits(
    automatic=True, manager="synapse", cool_down=timedelta(minutes=10), max_per_hour=2, max_lag_bytes=1 << 20
)


def incident(
    ago: timedelta, last: State = State.DONE, *, promoted: bool = True, first: State = State.CONFIRMED
) -> Incident:
    at = NOW - ago
    states = [first, *([State.PROMOTING] if promoted else []), last]
    facts = {"first_failed_at": at.isoformat()}
    return Incident(tuple(Entry(f"{at:%Y%m%dT%H%M%SZ}-000000", state, None, at, facts) for state in states))


@pytest.mark.parametrize(
    ("limits", "earlier", "why"),
    [
        (LIMITS, [], ""),
        (replace(LIMITS, automatic=False), [], "failover.automatic is false"),
        (replace(LIMITS, manager="external"), [], "external"),
        (replace(LIMITS, paused_until=NOW + timedelta(minutes=1), pause_reason="upgrade"), [], "upgrade"),
        (replace(LIMITS, paused_until=NOW - timedelta(minutes=1)), [], ""),
        (LIMITS, [incident(timedelta(minutes=5))], "ago, failover.cool_down is 10 min"),
        (LIMITS, [incident(timedelta(minutes=5), State.REFUSED, promoted=False)], ""),
        (LIMITS, [incident(timedelta(minutes=5), first=State.ASKED)], ""),  # a switchover is no sign of trouble
        (LIMITS, [incident(timedelta(minutes=15))], ""),
        (
            LIMITS,
            [incident(timedelta(minutes=15)), incident(timedelta(minutes=59))],
            "2 failovers in the last hour, failover.max_per_hour is 2",
        ),
        (LIMITS, [incident(timedelta(minutes=15)), incident(timedelta(minutes=61))], ""),
    ],
)
def test_a_refusal_names_both_values(limits: Limits, earlier: list[Incident], why: str) -> None:
    found = objection(limits, earlier, NOW)
    assert (why in found) if why else found == ""


CLUSTER = ("7300000000000000001", 4)


def ended(*states: State, old: str = "db-primary", cluster: tuple[str, int] = CLUSTER) -> Incident:
    facts = {"old": old, "system_identifier": cluster[0], "timeline": cluster[1]}
    return Incident(tuple(Entry("ours", state, None, NOW, facts) for state in states))


@pytest.mark.parametrize(
    ("incidents", "holder", "by"),
    [
        ([], None, ""),
        ([], "theirs", "theirs"),
        ([ended(State.CONFIRMED, State.PROMOTING, State.SWITCHING, State.DONE)], None, "ours"),
        ([ended(State.CONFIRMED, State.PROMOTING, State.SWITCHING, State.DONE)], "ours", "ours"),
        ([ended(State.CONFIRMED, State.FENCING, State.UNPROVEN)], "ours", ""),  # nobody was promoted
        ([ended(State.ASKED, State.STOPPING, State.ROLLED_BACK)], "ours", ""),
        ([ended(State.CONFIRMED, State.SWITCHING, old="db-standby")], "ours", ""),  # it is the one that was promoted
        ([ended(State.CONFIRMED, State.SWITCHING, cluster=("7300000000000000002", 4))], None, ""),
        ([ended(State.CONFIRMED, State.SWITCHING, cluster=(CLUSTER[0], 3))], None, ""),
        ([ended(State.CONFIRMED, State.REFUSED)], "theirs", "theirs"),
    ],
)
def test_a_timeline_is_ended_by_a_promotion_or_by_a_claim_that_nobody_here_knows(
    incidents: list[Incident], holder: str | None, by: str
) -> None:
    """The old primary of such a timeline must not go on with it; everybody else may."""
    assert ended_by("db-primary", CLUSTER, incidents, holder) == by


def test_a_ledger_is_read_back_as_it_was_written_and_a_closed_incident_takes_nothing_more() -> None:
    first = Entry("a", State.CONFIRMED, Event.WINDOW_PASSED, NOW, {"first_failed_at": NOW.isoformat(), "lag_bytes": 0})
    one = Incident((first,))
    second = one.followed_by(Event.NOT_ALLOWED, NOW + timedelta(seconds=1.5), {"reason": "paused"})
    [found] = incidents_of([Entry.from_json(entry.as_json()) for entry in (first, second)])

    assert found.entries == (first, second)
    assert not found.is_open
    assert found.facts["reason"] == "paused"
    assert found.phases_s() == {"confirmed": 0.0, "refused": 1.5}
    with pytest.raises(IllegalTransition):
        found.followed_by(Event.ALLOWED, NOW)


def test_the_seconds_of_a_switchover_count_from_the_stop() -> None:
    """What it did before cost no writes."""
    asked = Entry("a", State.ASKED, Event.SWITCHOVER_ASKED, NOW)
    stopping = Incident((asked,)).followed_by(Event.ALLOWED, NOW + timedelta(seconds=4))
    promoting = Incident((asked, stopping)).followed_by(Event.STOPPED_CLEANLY, NOW + timedelta(seconds=4.5))

    assert Incident((asked, stopping, promoting)).phases_s() == {"asked": -4.0, "stopping": 0.0, "promoting": 0.5}
