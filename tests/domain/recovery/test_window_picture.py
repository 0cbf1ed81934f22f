"""The picture of the restorable window: what it shows is what a restore would say, and it is seen without a click."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from synapse_ops.defs.event_metadata import MOST_MARKDOWN
from synapse_ops.domain.backup.layout import Identity
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Fork, Segment, TimelineHistory
from synapse_ops.domain.database.wal_chain import ArchivedTimeline, WalArchive
from synapse_ops.domain.database.wal_facts import SegmentFacts
from synapse_ops.domain.recovery.restorable_spans import restorable_spans
from synapse_ops.domain.recovery.window_picture import PictureRow, as_markdown, draw_window

SIZE = 1 << 20
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
MONTH = timedelta(days=30)
UI_LIMIT = 1000  # of characters of Markdown that Dagster shows in place


@dataclass(frozen=True)
class Base:
    """A base backup from the start of a segment to its end; segment n was written n hours after `hour(0)`."""

    number: int
    timeline: int = 1

    @property
    def start_lsn(self) -> str:
        return str(Lsn(self.number * SIZE))

    @property
    def stop_lsn(self) -> str:
        return str(Lsn((self.number + 1) * SIZE))

    @property
    def stopped_time(self) -> datetime:
        return hour(self.number + 1)


def hour(number: int) -> datetime:
    return NOW - timedelta(hours=100 - number)


def timeline_of(numbers: set[int], timeline: int = 1, history: TimelineHistory | None = None) -> ArchivedTimeline:
    facts = {
        number: SegmentFacts(
            segment=Segment(timeline, number, SIZE).name,
            size_bytes=1,
            sha256="0" * 64,
            etag="e",
            commits=1,
            max_commit_at=hour(number),
        )
        for number in numbers
    }
    return ArchivedTimeline(timeline, SIZE, history=history, segments=facts)


def spans(bases: list[Base], *timelines: ArchivedTimeline) -> tuple[tuple[datetime, datetime], ...]:
    return restorable_spans(cast("Any", bases), WalArchive(Identity("7", "0a1b2c3d"), timelines, NOW), NOW)


def test_behind_a_gap_moments_can_be_restored_from_the_next_base_backup_on() -> None:
    """Up to the last commit before the gap, and not at all in between."""
    stored = timeline_of(set(range(1, 60)) | set(range(62, 100)))

    assert spans([Base(70), Base(5), Base(1), Base(80)], stored) == ((hour(2), hour(59)), (hour(71), NOW))
    assert spans([Base(61)], stored) == ()  # its WAL is not there


def test_what_a_promotion_left_behind_is_in_no_span() -> None:
    """Only `--timeline` leads there."""
    history = TimelineHistory(2, (Fork(1, Lsn(50 * SIZE)),))
    both = (timeline_of(set(range(1, 55))), timeline_of(set(range(50, 100)), 2, history))

    assert spans([Base(10)], *both) == ((hour(11), NOW),)
    assert spans([Base(52)], *both) == ()


def month(*, unproven: int = -1, gap: bool = False) -> list[PictureRow]:
    """Return a month of daily backups of every kind, one of the cluster not proven."""
    days = [NOW - timedelta(days=number, hours=11) for number in range(31)]
    whole = [(days[-1], NOW)]
    cut = [(days[-1], days[12]), (days[10], NOW)]
    return [
        PictureRow("cluster", MONTH, [(at, at != days[unproven]) for at in days], cut if gap else whole),
        PictureRow("database", MONTH, [(at, True) for at in days]),
        *(PictureRow(name, timedelta(days=7), [(at, True) for at in days[:8]]) for name in ("vectors", "redis")),
    ]


def test_a_month_of_every_kind_is_seen_without_a_click() -> None:
    """Dagster hides longer Markdown behind [Show Markdown]."""
    assert len(as_markdown(draw_window(month(unproven=3, gap=True), NOW))) < UI_LIMIT
    assert UI_LIMIT > MOST_MARKDOWN


def test_a_gap_is_a_hole_in_the_bar_and_what_is_not_proven_has_another_color() -> None:
    """Green all along would be a lie."""
    good, bad = draw_window(month(), NOW), draw_window(month(unproven=3, gap=True), NOW)

    assert bar_of(good, "#9d9").count("h") == 1
    assert bar_of(bad, "#9d9").count("h") == 2
    assert "orange" not in draw_window(month(unproven=0)[1:], NOW)
    assert bar_of(bad, "orange").count("h") == 1


def test_backups_of_each_hour_become_one_mark() -> None:
    """However many there are, the page stays readable."""
    hourly = [(NOW - timedelta(hours=number), True) for number in range(31 * 24)]

    assert bar_of(draw_window([PictureRow("database", MONTH, hourly)], NOW), "green").count("h") == 1


def bar_of(svg: str, color: str) -> str:
    return svg.partition(f"stroke='{color}'")[2].partition("/>")[0].partition(" d=")[2]
