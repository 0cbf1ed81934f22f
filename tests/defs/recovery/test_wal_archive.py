"""`wal_archive` says what is stored, and is red where nobody can say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from synapse_ops.defs.recovery.wal_archive import look
from synapse_ops.domain.backup.layout import Identity
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal_chain import ArchivedTimeline, WalArchive
from synapse_ops.domain.database.wal_facts import SegmentFacts
from synapse_ops.domain.database.wal_plan import Chunk
from synapse_ops.operations.database.wal_report import WalReport
from synapse_ops.operations.database.wal_status import WalStatus

NOW = datetime(2026, 11, 30, 9, tzinfo=UTC)
SIZE = 16 * 2**20
MINUTE = timedelta(minutes=1)


def report(
    chunks: dict[int, tuple[Chunk, ...]],
    *,
    lag_s: float | None,
    unknown: str = "",
    base_start: Lsn | None = None,
    timeline: int = 1,
) -> WalReport:
    facts = SegmentFacts(
        segment=f"{1:024X}", size_bytes=0, sha256="0" * 64, etag="", max_commit_at=NOW - timedelta(seconds=7)
    )
    row = ArchivedTimeline(1, SIZE, chunks=chunks, stored_at=NOW, open_facts=facts)
    archive = WalArchive(Identity("7", "ab12cd34"), (row,), NOW)
    status = WalStatus(archive, "127.0.0.1:5432", timeline, Lsn(2 * SIZE), row.last_lsn, NOW, lag_s)
    return WalReport(archive, None if unknown else status, unknown, MINUTE, base_start, left_s=7500, base_timeline=1)


WHOLE = {1: (Chunk(0, SIZE),)}


def test_wal_that_is_stored_up_to_the_end_is_well() -> None:
    found = report(WHOLE, lag_s=0.0)

    assert found.faults == ()
    assert found.facts()["stored_to_lsn"] == str(Lsn(2 * SIZE))
    assert found.facts()["rpo_observed_s"] == 7


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (report(WHOLE, lag_s=61.0), "1 min 1 s ago"),
        (report({}, lag_s=None), "no WAL of timeline 1 is stored"),
        (report({1: (Chunk(0, 100), Chunk(200, SIZE))}, lag_s=0.0), "0/1000064 to 0/10000C8"),
        (report(WHOLE, lag_s=0.0, unknown="could not reach PostgreSQL"), "could not reach PostgreSQL"),
    ],
    ids=["late", "nothing", "gap", "unknown"],
)
def test_what_is_late_missing_or_unknown_is_a_fault(found: WalReport, said: str) -> None:
    assert said in " ".join(found.faults)
    assert found.sentence != report(WHOLE, lag_s=0.0).sentence


def test_who_reads_that_wal_waits_reads_for_how_long_it_may() -> None:
    """Also while the store does not answer, which is when it matters."""
    for found in (report(WHOLE, lag_s=61.0), report(WHOLE, lag_s=0.0, unknown="could not reach the object store")):
        assert "; at the present pace some is lost in 2 h 5 min" in found.sentence
        assert found.facts()["time_left_s"] == 7500


def test_what_is_missing_before_the_newest_base_backup_wakes_nobody() -> None:
    """It was lost once, or has expired around a pinned base backup: nothing mends it, and a newer one is there."""
    chunks = {1: (Chunk(0, 100), Chunk(200, SIZE))}
    before = report(chunks, lag_s=0.0, base_start=Lsn(SIZE + 200))
    behind = report(chunks, lag_s=0.0, base_start=Lsn(SIZE + 50))

    assert before.faults == ()
    assert before.broken_at == ""
    assert "0/1000064 to 0/10000C8" in behind.broken_at
    assert behind.faults


def test_a_gap_starts_one_base_backup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each gap, however often the sensor looks; nobody is asked to while the primary does not answer."""
    chunks = {1: (Chunk(0, 100), Chunk(200, SIZE))}
    found = report(chunks, lag_s=0.0, base_start=Lsn(SIZE + 50))
    monkeypatch.setattr("synapse_ops.operations.database.wal_report.read_wal_report", lambda stack: found)
    first = look(None, Opened(), 1000.0)  # type: ignore[arg-type]
    assert isinstance(first, dg.SensorResult)
    again = look(first.cursor, Opened(), 1060.0)  # type: ignore[arg-type]

    assert [one.run_key for one in first.run_requests or ()] == [f"wal gap {found.broken_at}"]
    assert [one.partition_key for one in first.run_requests or ()] == ["cluster"]
    assert isinstance(again, dg.SkipReason)
    found = report(chunks, lag_s=0.0, unknown="could not reach PostgreSQL", base_start=Lsn(SIZE + 50))
    silent = look(None, Opened(), 1000.0)  # type: ignore[arg-type]
    assert isinstance(silent, dg.SensorResult)
    assert not silent.run_requests


def test_a_promotion_starts_one_base_backup(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore from the one before would replay everything across the fork."""
    found = report(WHOLE, lag_s=0.0, base_start=Lsn(SIZE), timeline=2)
    monkeypatch.setattr("synapse_ops.operations.database.wal_report.read_wal_report", lambda stack: found)
    first = look(None, Opened(), 1000.0)  # type: ignore[arg-type]
    assert isinstance(first, dg.SensorResult)

    assert [one.run_key for one in first.run_requests or ()] == ["wal timeline 2"]
    assert isinstance(look(first.cursor, Opened(), 1060.0), dg.SkipReason)  # type: ignore[arg-type]
    assert report(WHOLE, lag_s=0.0, base_start=Lsn(SIZE)).base_wanted == ""


class Opened:
    def open(self) -> None:
        """The report is given."""
