"""Retention of base backups and WAL, held to an oracle that knows segments only: what could be restored still can."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from synapse_ops.domain.backup.catalog import CatalogEntry
from synapse_ops.domain.backup.layout import KIND_BASE, BackupPlace, Identity, new_backup_id
from synapse_ops.domain.backup.retention import (
    Clocks,
    Decision,
    RetentionPolicy,
    Rule,
    is_carrier,
    plan_retention,
)
from synapse_ops.domain.database import wal_retention
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Fork, Segment, TimelineHistory
from synapse_ops.domain.database.wal_chain import ArchivedTimeline, WalArchive
from synapse_ops.domain.database.wal_facts import SegmentFacts
from synapse_ops.domain.database.wal_retention import (
    BaseSpan,
    WalGroup,
    carries,
    kept_wal,
    plan_wal_retention,
)

SIZE = 1 << 20
END = 40  # segments in the life of the cluster, one commit a day in each
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
NOW = BEGIN + timedelta(days=END)
CLOCKS = Clocks(NOW, NOW)
IDENTITY = Identity("7400000000000000001", "0a1b2c3d")
PER_GROUP = 4  # of segments; 256 in a repository


def committed_at(number: int, timeline: int = 2, fork: int = 0) -> datetime:
    """When the commit of a segment was made; behind the fork the old primary had a few seconds."""
    if timeline == 1 and number >= fork:
        return BEGIN + timedelta(days=fork, seconds=number - fork)
    return BEGIN + timedelta(days=number, minutes=1)


@dataclass(frozen=True)
class Base:
    """A base backup: replay begins with segment `first`, and it is consistent behind it."""

    timeline: int
    first: int
    entry: CatalogEntry

    @property
    def span(self) -> BaseSpan:
        return BaseSpan(self.timeline, Lsn(self.first * SIZE + 40), Lsn((self.first + 1) * SIZE))


@dataclass(frozen=True)
class World:
    """What a repository holds. fork: the segment at whose start timeline 2 leaves timeline 1; 0: never."""

    fork: int
    stored: frozenset[tuple[int, int]]
    bases: tuple[Base, ...]

    @property
    def timelines(self) -> tuple[int, ...]:
        return (1, 2) if self.fork else (1,)

    @property
    def archive(self) -> WalArchive:
        return WalArchive(IDENTITY, tuple(self._timeline(number) for number in self.timelines), NOW)

    def _timeline(self, number: int) -> ArchivedTimeline:
        history = TimelineHistory(2, (Fork(1, Lsn(self.fork * SIZE)),)) if number == 2 else None
        facts = {
            segment: SegmentFacts(
                segment=Segment(number, segment, SIZE).name,
                size_bytes=1,
                sha256="0" * 64,
                etag="e",
                commits=1,
                max_commit_at=committed_at(segment, number if self.fork else 2, self.fork),
            )
            for timeline, segment in self.stored
            if timeline == number
        }
        return ArchivedTimeline(number, SIZE, history=history, segments=facts)

    def span_of(self, place: BackupPlace) -> BaseSpan | None:
        found = next(base for base in self.bases if base.entry.place == place)
        return None if found.entry.unreadable_reason else found.span

    def carries(self, entry: CatalogEntry, since: datetime) -> bool:
        span = self.span_of(entry.place)
        return span is not None and carries(self.archive, span, since)


def restorable(world: World, *, proven_only: bool) -> set[tuple[int, int]]:
    """The oracle: (timeline, n) where the state before the commit of segment n can be had. Knows no LSN and no time."""
    found = set()
    there = {base.entry.place.backup_id for base in world.bases}
    for timeline in world.timelines:
        for base in world.bases:
            if not there.issuperset(base.entry.rests_on):
                continue
            if (proven_only and base.entry.proven_at is None) or base.entry.unreadable_reason:
                continue
            if timeline == 1 and base.timeline == 2:
                continue
            if timeline == 2 and base.timeline == 1 and base.first + 1 > world.fork:
                continue
            for number in range(base.first, END):
                own = 1 if timeline == 1 or number < world.fork else 2
                if (own, number) not in world.stored:
                    break
                found.add((timeline, number + 1))
    return found


@st.composite
def worlds(draw: st.DrawFn) -> World:
    fork = draw(st.sampled_from([0, 0, 7, 18, 22, 30]))
    last_of_old = min(END, fork + draw(st.integers(0, 4))) if fork else END
    stored = {(1, number) for number in range(last_of_old)} | {(2, number) for number in range(fork, END) if fork}
    missing = draw(st.sets(st.sampled_from(sorted(stored)), max_size=2))
    bases = []
    for number in sorted(draw(st.sets(st.integers(0, END - 2), max_size=8))):
        timeline = draw(st.sampled_from([1, 2])) if fork and fork <= number < last_of_old else 1 + (0 < fork <= number)
        taken = committed_at(number + 1, timeline if fork else 2, fork)
        made = entry(taken, number, draw(st.booleans()), draw(st.integers(0, 9)))
        if bases and draw(st.booleans()):  # it holds what changed since the one before
            before = bases[-1].entry
            made = replace(made, rests_on=(*before.rests_on, before.place.backup_id))
        bases.append(Base(timeline, number, made))
    return World(fork, frozenset(stored - missing), tuple(bases))


def entry(taken: datetime, number: int, proven: bool, oddity: int = 9) -> CatalogEntry:
    """A base backup in the catalog. oddity: 0 pinned, 1 held, 2 unreadable, 3 pinned and held, else nothing."""
    known = None if oddity == 2 else taken
    return CatalogEntry(
        place=BackupPlace(IDENTITY, KIND_BASE, "cluster", new_backup_id(taken, number.to_bytes(3, "big"))),
        size_bytes=1000,
        listing_digest=number.to_bytes(16, "big"),
        finished_at=known,
        database_time=known,
        source_size_bytes=4000,
        item_count=1,
        duration_s=1.0,
        is_encrypted=False,
        not_in_backup=(),
        proven_at=taken + timedelta(seconds=1) if proven and oddity != 2 else None,
        last_verdict=None,
        last_proof_at=None,
        restore_s=None,
        not_attempted_at=None,
        doubt="" if proven and oddity != 2 else "not proven yet",
        pins=("audit",) if oddity in {0, 3} else (),
        held_at=NOW if oddity in {1, 3} else None,
        unreadable_reason="cannot read backup.json" if oddity == 2 else "",
    )


def expire(world: World, window: timedelta) -> tuple[World, list[Decision]]:
    """What a plan and its application leave."""
    policy = RetentionPolicy(window)
    with patch.object(wal_retention, "GROUP", PER_GROUP):
        decisions = list(plan_retention([base.entry for base in world.bases], policy, CLOCKS, world.carries))
        needed = kept_wal(
            decisions,
            [],
            world.span_of,
            lambda one: is_carrier(one, policy, CLOCKS, world.carries),
            CLOCKS,
        )
        groups = {WalGroup.of(Segment(timeline, number, SIZE)) for timeline, number in world.stored}
        gone = {row.group for row in plan_wal_retention(groups, needed) if row.expires}
        left = frozenset(
            (timeline, number)
            for timeline, number in world.stored
            if WalGroup.of(Segment(timeline, number, SIZE)) not in gone
        )
    expired = {row.entry.place for row in decisions if row.expires}
    kept = tuple(base for base in world.bases if base.entry.place not in expired)
    return replace(world, stored=left, bases=kept), decisions


def in_window(world: World, states: set[tuple[int, int]], window: timedelta) -> set[tuple[int, int]]:
    """The states that were the newest at some moment of the window."""
    since = NOW - window
    return {
        (timeline, number)
        for timeline, number in states
        if number >= END or committed_at(number, timeline if world.fork else 2, world.fork) > since
    }


@given(worlds(), st.integers(0, 45))
@settings(max_examples=400, deadline=None)
def test_every_moment_of_the_window_that_could_be_restored_still_can(world: World, days: int) -> None:
    window = timedelta(days=days, hours=1)
    after, _ = expire(world, window)

    for proven_only in (True, False):
        before_states = in_window(world, restorable(world, proven_only=proven_only), window)
        assert before_states <= restorable(after, proven_only=proven_only)


@given(worlds(), st.integers(0, 45))
@settings(max_examples=200, deadline=None)
def test_a_base_backup_that_stays_can_be_made_consistent(world: World, days: int) -> None:
    """Whatever keeps it: a pin, a reader, the window. What a reader holds keeps everything behind it too.

    One that stays only because another rests on it is read as a part of that one.
    """
    after, decisions = expire(world, timedelta(days=days, hours=1))

    parts = {row.entry.place for row in decisions if row.rule is Rule.NEEDED}
    for base in (one for one in after.bases if one.entry.place not in parts):
        was_there = (base.timeline, base.first) in world.stored
        assert not was_there or (base.timeline, base.first) in after.stored
        if base.entry.held_at is not None:
            assert {one for one in world.stored if one[1] >= base.first} <= after.stored


def plain(number: int, *, proven: bool = True, oddity: int = 9, timeline: int = 1) -> Base:
    return Base(timeline, number, entry(committed_at(number + 1), number, proven, oddity))


ALL = frozenset((1, number) for number in range(END))


def test_a_month_of_daily_base_backups_keeps_one_before_the_window_and_its_wal() -> None:
    """What a plan is for: bounded storage. 10 days of 40 stay, the one before them, and WAL from its group on."""
    world = World(0, ALL, tuple(plain(number) for number in range(END - 1)))
    after, decisions = expire(world, timedelta(days=10))

    assert [base.first for base in after.bases] == list(range(28, 39))
    assert min(number for _, number in after.stored) == 28
    assert {row.rule for row in decisions if row.expires} == {Rule.PAST_WINDOW}


def test_a_base_backup_whose_wal_breaks_before_the_window_lets_no_older_one_go() -> None:
    """Segment 26 is missing: nothing that begins before it restores the first moment of the window."""
    world = World(0, ALL - {(1, 26)}, tuple(plain(number) for number in range(0, 26, 3)))
    after, decisions = expire(world, timedelta(days=10))

    assert after.bases == world.bases
    assert after.stored == world.stored
    assert {row.rule for row in decisions} == {Rule.LAST_PROVEN, Rule.MAY_REACH_BACK}


def test_a_pin_keeps_what_makes_its_base_backup_consistent_and_not_the_months_behind_it() -> None:
    world = World(0, ALL, (plain(1, oddity=0), *(plain(number) for number in range(20, 39, 2))))
    after, _ = expire(world, timedelta(days=10))

    assert sorted(number for _, number in after.stored) == [0, 1, 2, 3, *range(28, END)]


def test_nothing_expires_while_a_base_backup_cannot_be_read() -> None:
    """Nobody knows where its WAL begins."""
    world = World(0, ALL, (plain(1, oddity=2), *(plain(number) for number in range(20, 39, 2))))
    after, _ = expire(world, timedelta(days=10))

    assert after.stored == world.stored


def test_a_branch_that_a_promotion_left_carries_no_window() -> None:
    """The newest proven base backup before the window was taken behind the fork, on the old timeline."""
    stored = frozenset({(1, number) for number in range(22)} | {(2, number) for number in range(20, END)})
    world = World(20, stored, (plain(4), plain(20, timeline=1), plain(35, timeline=2)))
    after, _ = expire(world, timedelta(days=10))

    assert [base.first for base in after.bases] == [4, 20, 35]
    assert (1, 4) in after.stored


def test_a_base_backup_whose_own_wal_is_not_there_carries_nothing() -> None:
    """Nothing is stored from segment 29 on, where its replay begins: no gap is seen, and yet it is useless."""
    world = World(0, frozenset(one for one in ALL if one[1] < 29), (plain(20), plain(29)))
    after, _ = expire(world, timedelta(days=2))

    assert [base.first for base in after.bases] == [20, 29]
    assert (1, 20) in after.stored


def test_a_restore_from_a_pinned_base_backup_keeps_all_wal_behind_it() -> None:
    """It may be on its way to any moment since."""
    world = World(0, ALL, (plain(6, oddity=3), *(plain(number) for number in range(20, 39, 2))))
    after, _ = expire(world, timedelta(days=10))

    assert min(number for _, number in after.stored) == 4
    assert {(1, number) for number in range(4, END)} <= after.stored
