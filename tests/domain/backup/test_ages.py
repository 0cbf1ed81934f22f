"""Each subject is late by itself, and what waits for a proof waits no longer than a window of proofs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from synapse_ops.domain.backup.ages import SLACK, backup_ages, proof_ages
from synapse_ops.domain.backup.catalog import CatalogEntry
from synapse_ops.domain.backup.proof_record import Verdict
from tests.domain.recovery.test_recoverability import entry

NOW = datetime(2026, 11, 30, 3, 0, tzinfo=UTC)
DAY = timedelta(days=1)
LIMIT = DAY + SLACK
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(("age", "passed"), [(LIMIT, True), (LIMIT + SECOND, False)])
def test_a_subject_is_late_just_past_its_promise(age: timedelta, passed: bool) -> None:
    """A schedule's longest gap and two hours; the others do not matter."""
    young = [entry(NOW - SECOND, proven_at=None)]

    verdict = backup_ages({"orders": [entry(NOW - age, proven_at=None)], "synapse": young}, DAY, NOW, "UTC")

    assert verdict.passed is passed
    assert ("orders has no backup since 29 Nov 00:59:59 UTC" in verdict.sentence) is not passed


def test_a_subject_without_any_backup_is_late() -> None:
    """Nothing is not young."""
    assert backup_ages({"orders": []}, DAY, NOW, "UTC").late == ("orders has no backup at all",)
    assert not backup_ages({}, DAY, NOW, "UTC").passed


OLD = NOW - LIMIT - SECOND


@pytest.mark.parametrize(
    ("backups", "passed"),
    [
        ([entry(OLD, proven_at=None)], False),
        ([entry(OLD + 2 * SECOND, proven_at=None)], True),
        ([entry(OLD + SECOND, proven_at=NOW), entry(OLD, proven_at=None)], True),
        ([entry(NOW, proven_at=None), entry(OLD, proven_at=None), entry(OLD - DAY, proven_at=OLD)], False),
        ([entry(OLD, proven_at=None, doubt="newest proof: differs", verdict=Verdict.DIFFERS)], True),
    ],
    ids=["waits too long", "waits", "overtaken", "a younger one waits too", "judged: restore_proven is red"],
)
def test_a_backup_waits_for_its_proof_until_it_has_one_or_is_overtaken(
    backups: list[CatalogEntry], passed: bool
) -> None:
    """What a proof has judged is another check's matter."""
    assert proof_ages({"orders": backups}, DAY, NOW, "UTC").passed is passed
