"""The ways back from a disaster, what each store is restored from, and the document of a recovery."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from synapse_ops.domain.backup.proof_record import Verdict
from synapse_ops.domain.database.recovery_target import RecoveryTarget
from synapse_ops.domain.recovery.choice import choose_proven, still_backed_up, usable_bases
from synapse_ops.domain.recovery.drill_score import Expected, Of, Scenario
from synapse_ops.domain.recovery.impact import (
    FAILOVER,
    RESTART,
    TO_LATEST,
    TO_MOMENT,
    Node,
    Situation,
    plan_options,
)
from synapse_ops.domain.recovery.prediction import Prediction
from synapse_ops.domain.recovery.reconciliation import reconcile
from synapse_ops.domain.recovery.recovery_record import INTEGRITY, RESTORED, Chosen, RecoveryRecord
from tests.domain.recovery.test_recoverability import entry

NOW = datetime(2026, 11, 30, 8, 30, tzinfo=UTC)
FIRST, LAST = NOW - timedelta(days=3), NOW - timedelta(seconds=4)
LATEST = RecoveryTarget("latest")
GONE = Situation(
    nodes=(Node("db-primary", runs=False), Node("db-standby", runs=False)),
    down=("db: no answer",),
    from_at=FIRST,
    to_at=LAST,
    because="",
    moment_because="",
    restore=Expected(Scenario.RECOVERY, Of.SYSTEM, 2, None),
    restore_s=7.0,
    failover=Expected(Scenario.FAILOVER, Of.SYSTEM, 0, None),
    armed=False,
    armed_because="no standby streams",
)


@pytest.mark.parametrize(
    ("primary", "standby", "recommended"),
    [
        (Node("db-primary", runs=False), Node("db-standby", runs=False), TO_LATEST),
        (Node("db-primary", runs=False, has_data=True), Node("db-standby", runs=False), RESTART),
        (Node("db-primary", runs=False, has_data=True, fence="i-1"), Node("db-standby", runs=True), FAILOVER),
        (Node("db-primary", runs=False, has_data=True, fence="i-1"), Node("db-standby", runs=False), TO_LATEST),
        (Node("db-primary", runs=True, takes_writes=True, has_data=True), Node("db-standby", runs=True), ""),
    ],
    ids=["all gone", "stopped", "fenced beside a standby", "fenced alone", "well"],
)
def test_the_way_that_loses_least_is_recommended(primary: Node, standby: Node, recommended: str) -> None:
    """In the order restart, failover, restore; and nothing while a node takes writes."""
    found = plan_options(replace(GONE, nodes=(primary, standby)), LATEST, NOW, "UTC")

    assert found.recommended == recommended
    assert [one.name for one in found.options] == [RESTART, FAILOVER, TO_LATEST, TO_MOMENT]


def test_whoever_asks_for_a_moment_is_not_told_to_restart() -> None:
    """The newest state lacks what is to come back, however well its server is."""
    well = (Node("db-primary", runs=True, takes_writes=True, has_data=True), Node("db-standby", runs=True))
    situation = replace(GONE, nodes=well)

    inside = plan_options(situation, RecoveryTarget.parse("time:2026-11-29T08:00:00Z"), NOW, "UTC")
    refused = replace(situation, moment_because="the oldest base backup ended at 08:30")
    outside = plan_options(refused, RecoveryTarget.parse("time:2026-11-01T08:00:00Z"), NOW, "UTC")

    assert inside.recommended == TO_MOMENT
    assert inside.command == "synapse-ops recover --plan --until time:2026-11-29T08:00:00+00:00"
    assert (outside.recommended, outside.command) == ("", "")
    assert outside.because == "no way back to that moment is known: the oldest base backup ended at 08:30"


def test_before_the_tenth_recovery_only_restoring_has_a_time() -> None:
    """The time of a restore is not that of a recovery, and is not shown as one."""
    [latest] = [one for one in plan_options(GONE, LATEST, NOW, "UTC").options if one.name == TO_LATEST]
    tenth = replace(GONE, restore=replace(GONE.restore, runs=9, predicted=Prediction(30.0, 21.0, 43.0)))
    [known] = [one for one in plan_options(tenth, LATEST, NOW, "UTC").options if one.name == TO_LATEST]

    assert latest.takes == "no prediction yet: 2 recoveries, 9 are needed; restoring alone about 7.0 s"
    assert (latest.as_json()["predicted_s"], latest.as_json()["restore_s"]) == (None, 7.0)
    assert known.takes == "30.0 s (21.0 to 43.0), by 9 recoveries"
    assert known.as_json()["predicted_interval_s"] == [21.0, 43.0]


def test_a_way_that_is_not_possible_has_no_time() -> None:
    impact = plan_options(replace(GONE, from_at=None, to_at=None), LATEST, NOW, "UTC")

    assert {one.takes for one in impact.options} == {"-"}


def test_without_a_backup_no_way_back_is_made_up() -> None:
    found = plan_options(replace(GONE, from_at=None, to_at=None, because="no backup"), LATEST, NOW, "UTC")

    assert (found.recommended, found.because) == ("", "no way back is known")
    assert {one.why for one in found.options[2:]} == {"no backup"}


def test_a_damaged_base_backup_is_never_used_and_one_with_a_failed_proof_only_alone() -> None:
    proven = entry(LAST, proven_at=NOW)
    damaged = entry(LAST, proven_at=None, doubt="damaged: base.tar is missing")
    failed = entry(LAST, proven_at=None, doubt="newest proof: differs", verdict=Verdict.DIFFERS)
    new = entry(LAST, proven_at=None)

    assert usable_bases([damaged, failed, new, proven], ())[0] == (new, proven)
    assert usable_bases([damaged, failed], ())[0] == (failed,)
    assert usable_bases([damaged], ()) == (
        (),
        (f"base backup {damaged.place.backup_id} is not used: damaged: base.tar is missing",),
    )
    assert usable_bases([proven], {proven.place.backup_id})[0] == ()


def test_no_store_is_newer_than_the_moment() -> None:
    """A vector of a row that does not exist yet would be an orphan at best."""
    early, late = entry(NOW - timedelta(hours=2), proven_at=NOW), entry(NOW - timedelta(hours=1), proven_at=NOW)
    unproven = entry(NOW - timedelta(minutes=30), proven_at=None)

    assert choose_proven([unproven, late, early], None, NOW) == late
    assert choose_proven([unproven, late, early], NOW - timedelta(hours=1, seconds=1), NOW) == early
    assert choose_proven([late], NOW - timedelta(days=1), NOW) is None


def test_a_collection_that_is_no_longer_backed_up_is_left_out() -> None:
    assert still_backed_up((NOW, FIRST), NOW, timedelta(days=1))
    assert not still_backed_up((NOW, FIRST), FIRST, timedelta(days=1))


def test_orphans_are_counted_on_both_sides() -> None:
    found = reconcile("documents", "docs", {"1", "2", "3"}, {"2", "3", "9"})

    assert (found.without_point, found.without_row) == (("1",), ("9",))
    assert found.sentence.startswith("documents: 1 of 3 rows have no point in docs, 1 of 3 points have no row")
    assert "every one of 2 rows" in reconcile("t", "c", {"1", "2"}, {"1", "2"}).sentence


def test_the_digest_is_of_what_was_restored_and_found_and_of_nothing_later() -> None:
    """An approval of one copy is none of another; a step that follows does not change it."""
    record = RecoveryRecord("20261130T083000Z-3f9a1c", "latest", NOW, "1-0a0b0c0d", (Chosen("cluster", "b-1", None),))
    prepared = record.with_step(RESTORED, {"parts": {}}).with_step(INTEGRITY, {"faults": []})

    assert RecoveryRecord.from_json(json.loads(json.dumps(prepared.as_json()))) == prepared
    assert prepared.with_step("traffic_switch", {"seconds": 1.0}).digest == prepared.digest
    assert prepared.with_step(INTEGRITY, {"faults": ["x"]}).digest != prepared.digest
    assert not record.is_prepared
