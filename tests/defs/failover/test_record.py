"""`failover_record` shows each incident once for each step, and the check says whether failover is armed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from synapse_ops.defs.failover.record import look
from synapse_ops.domain.failover.incident import Entry, Incident, Limits, objection
from synapse_ops.domain.failover.transitions import Event, State
from synapse_ops.operations.failover.status import FailoverStatus
from synapse_ops.spec import Spec

AT = datetime(2026, 11, 30, 12, tzinfo=UTC)
FIRST = {"old": "db-primary", "new": "db-standby", "first_failed_at": AT.isoformat(), "evidence": "nobody listens"}


def incident(*steps: tuple[State, Event, dict[str, Any]]) -> Incident:
    entries = [Entry("20261130T120001Z-3f9a1c", State.CONFIRMED, Event.WINDOW_PASSED, AT + timedelta(seconds=1), FIRST)]
    for number, (state, event, facts) in enumerate(steps, 2):
        entries.append(Entry(entries[0].incident, state, event, AT + timedelta(seconds=number / 2 + 1), facts))
    return Incident(tuple(entries))


def status(*incidents: tuple[Incident, dict[str, Any] | None], unarmed: str = "", refused: str = "") -> FailoverStatus:
    return FailoverStatus(unarmed, "healthy", "db-primary", "db-standby", refused, incidents)


def ticked(cursor: str | None, found: FailoverStatus, now_s: float = 0.0) -> dg.SensorResult:
    result = look(cursor, found, now_s)
    assert isinstance(result, dg.SensorResult)
    return result


def test_each_step_of_an_incident_is_an_event_of_its_partition() -> None:
    """Once each; the rejoin is one more. Nothing new is no event."""
    begun = incident()
    first = ticked(None, status((begun, None), unarmed="the primary does not answer"))
    done = incident((State.DONE, Event.VERIFIED, {"lost_commits": 3, "lost_bytes": 200}))
    second = ticked(first.cursor, status((done, None)))
    back = {"how": "rewound", "seconds": 2.1, "at": "x", "node": "db-primary"}
    third = ticked(second.cursor, status((done, back)))

    assert first.dynamic_partitions_requests
    assert not second.dynamic_partitions_requests
    events = [one.asset_events[0] for one in (first, second, third)]
    assert all(isinstance(event, dg.AssetMaterialization) for event in events)
    assert {event.partition for event in events} == {begun.id}  # type: ignore[union-attr]
    assert events[2].description == (
        "db-primary died; db-standby took writes 2.0 s later. Lost: 3 commits. db-primary: it is back (rewound)."
    )
    assert events[2].metadata["done_s"].value == 2.0
    assert isinstance(look(third.cursor, status((done, back)), 10.0), dg.SkipReason)


def test_a_refused_failover_is_red_and_says_what_a_person_must_do() -> None:
    refused = incident((State.REFUSED, Event.NOT_ALLOWED, {"reason": "the last failover was 3 min ago"}))
    found = ticked(None, status((refused, None), refused="the last failover was 3 min ago"))
    record, check = found.asset_events

    assert "NOT failed over: the last failover was 3 min ago" in (record.description or "")
    assert isinstance(check, dg.AssetCheckEvaluation)
    assert not check.passed
    assert "waits for a person" in (check.description or "")


def test_a_failover_that_a_person_starts_is_never_green_and_only_a_warning() -> None:
    """`failover.automatic: false` was chosen: what else would stop a failover is an alarm beside it."""
    chosen = objection(Limits.of(Spec.model_validate({"failover": {"automatic": False}})), (), AT)
    passing = ticked(ticked(None, status(), 1000.0).cursor, status(unarmed=chosen), 1100.0)
    found = ticked(passing.cursor, status(unarmed=chosen), 1200.0)  # it stands for more than a minute
    [check] = found.asset_events
    worse = ticked(found.cursor, status(unarmed="db-standby does not stream from db-primary"), 1300.0)
    refused = ticked(found.cursor, status(unarmed=chosen, refused=f"{chosen}; `synapse-ops failover run` goes on"), 1.0)

    assert isinstance(check, dg.AssetCheckEvaluation)
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert check.description == (
        "NOT armed, and waits for a person: if db-primary dies, `synapse-ops failover run` has db-standby take writes "
        "(failover.automatic is false: a person decides)"
    )
    for result in (worse, refused):
        [event] = result.asset_events
        assert (event.passed, event.severity) == (False, dg.AssetCheckSeverity.ERROR)  # type: ignore[union-attr]


def test_the_check_is_told_at_each_change_and_now_and_then() -> None:
    armed = ticked(None, status(), 1000.0)
    assert [event.passed for event in armed.asset_events] == [True]  # type: ignore[union-attr]
    assert isinstance(look(armed.cursor, status(), 1299.0), dg.SkipReason)
    assert len(ticked(armed.cursor, status(), 1300.0).asset_events) == 1


def test_what_is_not_armed_for_a_moment_is_no_alarm() -> None:
    """A start or a rejoin passes through it. After a minute it is red, and green again at once."""
    cursor = ticked(None, status(), 1000.0).cursor
    first = ticked(cursor, status(unarmed="db-standby does not stream"), 1010.0)
    assert first.asset_events == []
    assert isinstance(look(first.cursor, status(unarmed="db-standby does not stream"), 1069.0), dg.SkipReason)
    red = ticked(first.cursor, status(unarmed="db-standby does not stream"), 1070.0)
    assert [event.passed for event in red.asset_events] == [False]  # type: ignore[union-attr]
    assert [event.passed for event in ticked(red.cursor, status(), 1075.0).asset_events] == [True]  # type: ignore[union-attr]
    passing = ticked(first.cursor, status(), 1015.0)
    assert passing.asset_events == []


def test_a_switchover_is_told_as_one() -> None:
    """Nobody died. What was rolled back says why."""
    first = Entry("20261130T120001Z-3f9a1c", State.ASKED, Event.SWITCHOVER_ASKED, AT, {**FIRST, "first_failed_at": ""})
    stopping = Incident((first,)).followed_by(Event.ALLOWED, AT + timedelta(seconds=1))
    back = Incident((first, stopping)).followed_by(Event.GIVEN_UP, AT + timedelta(seconds=12), {"reason": "it hung"})
    [record, *_] = ticked(None, status((Incident((first, stopping, back)), None))).asset_events

    assert record.description == "Switchover: db-primary hands over to db-standby: NOT done (rolled_back): it hung"
