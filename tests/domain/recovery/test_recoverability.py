"""The sentence of the night, and when a subject is as promised. Unknown is never good."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from synapse_ops.domain.backup.catalog import CatalogEntry
from synapse_ops.domain.backup.proof_record import Verdict
from synapse_ops.domain.recovery.recoverability import (
    Evidence,
    NextStep,
    Objectives,
    Recoverability,
    Row,
    evidence_of,
    table_rows,
)
from tests.stored_backups import place_of

NOW = datetime(2026, 11, 30, 22, 10, tzinfo=UTC)
DAILY = Objectives(rpo=timedelta(hours=26), rto=timedelta(hours=1))
MAX_AGE = timedelta(days=30)


def entry(at: datetime, *, proven_at: datetime | None, doubt: str = "", verdict: Verdict | None = None) -> CatalogEntry:
    """Return a backup of the moment `at`; without a proof its doubt says why."""
    return CatalogEntry(
        place=place_of(at),
        size_bytes=1000,
        listing_digest=b"",
        finished_at=at + timedelta(seconds=30),
        database_time=at,
        source_size_bytes=4000,
        item_count=100,
        duration_s=30.0,
        is_encrypted=False,
        not_in_backup=(),
        proven_at=proven_at,
        last_verdict=verdict or (Verdict.PROVEN if proven_at else None),
        last_proof_at=None,
        restore_s=7.4 if proven_at else None,
        not_attempted_at=None,
        doubt=doubt or ("" if proven_at else "not proven yet"),
        pins=(),
        held_at=None,
        unreadable_reason="",
    )


def row_of(evidence: Evidence, *, name: str = "synapse", objectives: Objectives | None = DAILY) -> Row:
    return Row("database", name, name, evidence, objectives, NextStep("backup", NOW + timedelta(hours=2)), NOW)


LAST = datetime(2026, 11, 30, 22, 6, 20, tzinfo=UTC)
PROVEN = evidence_of([entry(LAST, proven_at=LAST + timedelta(seconds=40))], MAX_AGE, NOW)
page = partial(Recoverability, at=NOW, time_zone="UTC")


def test_the_first_line_says_to_when_in_how_long_and_proven_when() -> None:
    """What a tired person needs, in one sentence."""
    found = page((row_of(PROVEN),))

    assert found.sentence == ("You can restore synapse to 22:06:20 UTC; it takes about 7 s; proven at 22:07:00 UTC.")
    assert found.is_met


def test_moments_are_of_the_specs_time_zone_and_of_another_day_with_its_date() -> None:
    """Half past twelve of yesterday is not read as today's."""
    yesterday = NOW - timedelta(days=1)
    evidence = evidence_of([entry(yesterday, proven_at=yesterday + timedelta(minutes=1))], MAX_AGE, NOW)

    said = row_of(evidence).sentence("Europe/Berlin")

    assert "to 29 Nov 23:10:00 CET;" in said


def test_several_subjects_are_promised_no_more_than_the_worst_of_them() -> None:
    """The oldest moment, the longest time, the oldest proof."""
    earlier = evidence_of([entry(LAST - timedelta(hours=3), proven_at=LAST - timedelta(hours=2))], MAX_AGE, NOW)
    found = page((row_of(PROVEN), row_of(replace(earlier, restore_s=90.0), name="orders")))

    assert found.sentence == (
        "You can restore synapse and orders to 19:06:20 UTC or later; it takes about 1 min 30 s at most; "
        "proven at 20:06:20 UTC or later."
    )


def test_what_cannot_be_restored_is_said_before_what_can() -> None:
    """Somebody who reads only the beginning reads what is wrong."""
    none = evidence_of([], MAX_AGE, NOW)
    found = page((row_of(PROVEN), row_of(none, name="orders")))

    assert found.sentence.startswith("You cannot restore orders: there is no backup of it. You can restore synapse to")
    assert not found.is_met
    assert [row["what"] for row in table_rows(found.rows, "UTC")] == ["database/orders", "database/synapse"]


def test_an_unproven_backup_restores_nothing_and_an_older_proven_one_is_what_counts() -> None:
    """A backup counts once a proof of exactly its bytes exists."""
    alone = evidence_of([entry(LAST, proven_at=None)], MAX_AGE, NOW)
    older = LAST - timedelta(hours=10)
    both = evidence_of([entry(LAST, proven_at=None), entry(older, proven_at=older)], MAX_AGE, NOW)

    assert alone.to_at is None
    assert not row_of(alone).is_met
    assert both.to_at == older
    assert row_of(both).lost_now == NOW - older
    assert row_of(both).is_met  # its proof is on its way


def test_a_newest_proof_that_failed_is_a_fault_although_an_older_backup_can_be_restored() -> None:
    """Green would hide that the last backup is broken."""
    older = LAST - timedelta(hours=10)
    broken = entry(LAST, proven_at=None, doubt="newest proof: differs: 3 rows", verdict=Verdict.DIFFERS)
    row = row_of(evidence_of([broken, entry(older, proven_at=older)], MAX_AGE, NOW))

    assert not row.is_met
    assert row.sentence("UTC").startswith("You can restore synapse to 12:06:20 UTC;")
    assert "But backup" in row.sentence("UTC")
    assert "differs: 3 rows" in row.sentence("UTC")


def test_a_later_proof_of_an_older_backup_that_failed_is_a_fault_too() -> None:
    """Whoever proves last week's backup again and sees it differ must find that on the page."""
    older = LAST - timedelta(days=7)
    again = replace(
        entry(older, proven_at=None, doubt="newest proof: differs: 3 rows", verdict=Verdict.DIFFERS), last_proof_at=NOW
    )
    newest = replace(entry(LAST, proven_at=LAST), last_proof_at=LAST)
    row = row_of(evidence_of([newest, again], MAX_AGE, NOW))

    assert row.evidence.to_at == LAST
    assert not row.is_met
    assert "differs: 3 rows" in row.sentence("UTC")


@pytest.mark.parametrize(
    ("objectives", "wrong"),
    [
        (Objectives(timedelta(minutes=3, seconds=39), timedelta(hours=1)), "3 min 40 s of work would be lost now"),
        (Objectives(timedelta(hours=26), timedelta(seconds=7)), "a restore takes about 7 s, and at most 7 s may pass"),
    ],
)
def test_an_objective_that_is_missed_by_little_is_missed(objectives: Objectives, wrong: str) -> None:
    """And the sentence gives both values."""
    row = row_of(PROVEN, objectives=objectives)

    assert not row.is_met
    assert wrong in row.sentence("UTC")


def test_an_objective_that_is_just_met_is_met() -> None:
    """The limit itself is allowed."""
    assert row_of(PROVEN, objectives=Objectives(NOW - LAST, timedelta(seconds=8))).is_met


def test_nothing_is_promised_of_what_nobody_could_read_or_measure() -> None:
    """Unknown is never good."""
    unread = row_of(Evidence(unread="the repository could not be read: no answer"))
    unmeasured = row_of(replace(PROVEN, restore_s=None))

    assert not unread.is_met
    assert unread.sentence("UTC").startswith("It is unknown whether synapse can be restored: the repository could not")
    assert not unmeasured.is_met
    assert not page(()).is_met


def test_what_the_spec_no_longer_names_is_shown_and_not_judged() -> None:
    """A database that was dropped on purpose keeps its last backup for ever, and is no alarm."""
    old = NOW - timedelta(days=200)
    kept = row_of(evidence_of([entry(old, proven_at=old)], MAX_AGE, NOW), name="gone", objectives=None)
    found = page((row_of(PROVEN), kept))

    assert found.is_met
    assert "gone" not in found.sentence
    assert {row["what"]: row["promise"] for row in table_rows(found.rows, "UTC")}["database/gone"].startswith(
        "not judged"
    )
