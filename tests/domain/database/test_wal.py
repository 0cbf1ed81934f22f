"""Names, keys, histories and plans of WAL, as pure values."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synapse_ops.domain.backup.layout import Identity, parse_key
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Fork, Segment, TimelineHistory, WalRange
from synapse_ops.domain.database.wal_chain import (
    ArchivedTimeline,
    WalArchive,
    first_after,
    missing,
    reach,
    restore_points,
)
from synapse_ops.domain.database.wal_facts import RestorePoint, SegmentFacts
from synapse_ops.domain.database.wal_keys import (
    chunk_key,
    claim_key,
    facts_key,
    history_key,
    index_key,
    parse_wal_key,
    segment_key,
)
from synapse_ops.domain.database.wal_plan import (
    MERGED_CHUNKS,
    MOST_CHUNK_BYTES,
    MOST_CHUNKS,
    Chunk,
    Upload,
    contiguous_stop,
    gaps_between,
    may_publish_history,
    plan_merge,
    plan_upload,
)
from synapse_ops.domain.database.wal_space import WalPace, say_time_left, time_left_s
from synapse_ops.domain.database.wal_start import left_over, plan_start
from synapse_ops.errors import DocumentUnreadable, Refused, WrongIdentity

SIZE = 16 << 20
IDENTITY = Identity("7400000000000000001", "0a1b2c3d")
NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
SIZES = st.sampled_from([1 << 20, 16 << 20, 64 << 20, 1 << 30])


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    size = draw(SIZES)
    return Segment(draw(st.integers(1, 2**32 - 1)), draw(st.integers(0, 2**64 // size - 1)), size)


@settings(deadline=None)
@given(segments())
def test_a_segments_name_gives_the_segment_back(segment: Segment) -> None:
    """24 hex digits, whatever the size (W22)."""
    assert Segment.parse(segment.name, segment.size_bytes) == segment
    assert Segment.at(segment.timeline, segment.start, segment.size_bytes) == segment


def test_names_are_postgresqls_own() -> None:
    """As pg_walfile_name gives them: with 16 MB, 256 segments to each of the middle digits; with 1 GB, four."""
    assert Segment.at(1, Lsn.parse("1/FF000028"), SIZE).name == "0000000100000001000000FF"
    assert Segment.at(10, Lsn.parse("1/C0000000"), 1 << 30).name == "0000000A0000000100000003"
    with pytest.raises(ValueError, match="not the name"):
        Segment.parse("000000010000000100000004", 1 << 30)


@settings(deadline=None)
@given(segments(), st.booleans(), st.data())
def test_every_key_is_parsed_back_and_none_is_a_folder_of_another(
    segment: Segment, encrypted: bool, data: st.DataObject
) -> None:
    """An object beside keys below it is refused or hidden by several stores (W5)."""
    start = data.draw(st.integers(0, segment.size_bytes - 1))
    stop = data.draw(st.integers(start + 1, segment.size_bytes))
    keys = {
        "claim": claim_key(IDENTITY, segment.timeline),
        "history": history_key(IDENTITY, segment.timeline),
        "segment": segment_key(IDENTITY, segment, encrypted=encrypted),
        "facts": facts_key(IDENTITY, segment),
        "index": index_key(IDENTITY, segment),
        "chunk": chunk_key(IDENTITY, segment, start, stop, encrypted=encrypted),
    }
    for kind, key in keys.items():
        found = parse_wal_key(key)
        assert found is not None
        assert (found.kind, found.identity, found.timeline) == (kind, IDENTITY, segment.timeline)
        assert parse_key(key) is None  # a catalog of backups knows none of them
        assert not any(other.startswith(f"{key}/") for other in keys.values())
    chunk = parse_wal_key(keys["chunk"])
    assert chunk is not None
    assert (chunk.segment, chunk.start, chunk.stop, chunk.is_encrypted) == (segment.name, start, stop, encrypted)


@pytest.mark.parametrize(
    "key",
    [
        "1-0a1b2c3d/wal/00000001/000000020000000000000001.zst",
        "1-0a1b2c3d/wal/00000001/00000002.history",
        "1-0a1b2c3d/wal/00000001/000000010000000000000001",
        "1-0a1b2c3d/wal/00000001/000000010000000000000001.chunks/00000010-00000010.zst",
        "1-0a1b2c3d/wal/00000001/000000010000000000000001.partial",
        "1-0a1b2c3d/wal/1/claim.json",
    ],
)
def test_what_is_not_exactly_of_our_forms_is_foreign(key: str) -> None:
    """A segment of another timeline than its folder's, an empty chunk, a .partial: never read, never deleted."""
    assert parse_wal_key(key) is None


def test_a_history_file_is_read_as_the_server_writes_it() -> None:
    """Source: PostgreSQL, timeline.c: timeline, position and reason, by tabs; comments are allowed."""
    data = b"1\t0/3000110\tno recovery target specified\n\n# by hand\n2\t0/5000000\tbefore 2026\n"
    history = TimelineHistory.parse(3, data)

    assert [(fork.timeline, str(fork.at)) for fork in history.forks] == [(1, "0/3000110"), (2, "0/5000000")]
    assert [history.timeline_at(Lsn.parse(at)) for at in ("0/300010F", "0/3000110", "0/5000000")] == [1, 2, 3]
    assert list(history.ranges(Lsn(0x3000000), Lsn(0x6000000))) == [
        WalRange(1, Lsn(0x3000000), Lsn(0x3000110)),
        WalRange(2, Lsn(0x3000110), Lsn(0x5000000)),
        WalRange(3, Lsn(0x5000000), Lsn(0x6000000)),
    ]
    for damaged in (b"1\tnowhere\t\n", b"2\t0/1\t\n1\t0/2\t\n", b"4\t0/1\t\n"):
        with pytest.raises(DocumentUnreadable):
            TimelineHistory.parse(3, damaged)


@given(st.lists(st.integers(1, 12), max_size=6), st.integers(0, 14))
def test_a_byte_is_of_the_timeline_that_postgresql_takes_it_from(places: list[int], byte: int) -> None:
    """Also where a recovery ended before a fork that it was to follow: its history names a timeline that ends before it
    begins. Source: timeline.c, tliOfPointInHistory, which looks from the newest to the oldest.
    """
    newest = len(places) + 1
    data = "".join(f"{number}\t0/{place:X}\tbefore 2026\n" for number, place in enumerate(places, 1)).encode()
    history = TimelineHistory.parse(newest, data)

    begins, ends = [0, *places], [*places, 99]
    expected = next(n for n in range(newest, 0, -1) if begins[n - 1] <= byte < ends[n - 1])
    assert history.timeline_at(Lsn(byte)) == expected
    assert history.begins_at == Lsn(places[-1] if places else 0)


def test_a_segment_that_fills_within_an_interval_gets_no_chunks() -> None:
    """Chunks of it would be stored twice (W7)."""
    assert plan_upload(0, SIZE, SIZE) == Upload(0, SIZE, is_segment=True)
    assert plan_upload(100, 300, SIZE) == Upload(100, 300)
    assert plan_upload(300, 300, SIZE) is None
    assert plan_upload(0, 1 << 29, 1 << 30) == Upload(0, MOST_CHUNK_BYTES)


def test_a_slow_segment_is_never_more_than_128_chunks() -> None:
    """At 1 kB/s a segment is open for hours: 10,000 GETs in a restore (W7). What is merged is rarely merged again."""
    chunks: list[Chunk] = []
    written = end = 0
    for number in range(10_000):
        start, end = end, end + 500 + number * 7919 % 1000
        chunks.append(Chunk(start, end))
        if merged := plan_merge(chunks):
            assert len(merged) == MERGED_CHUNKS
            assert not gaps_between(merged)
            whole = Chunk(merged[0].start, merged[-1].stop)
            written += whole.stop - whole.start
            chunks = sorted([whole, *(chunk for chunk in chunks if chunk not in merged)])
        assert len(chunks) <= MOST_CHUNKS
        assert contiguous_stop(chunks) == end
    assert written < 3 * end


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=12))
def test_contiguous_bytes_end_at_the_first_that_is_nowhere(pieces: list[tuple[int, int]]) -> None:
    """Chunks may overlap and come in any order."""
    chunks = [Chunk(start, start + size) for start, size in pieces]
    held = {offset for chunk in chunks for offset in range(chunk.start, chunk.stop)}

    assert contiguous_stop(chunks) == next(offset for offset in range(60) if offset not in held)


def facts(
    number: int, *, timeline: int = 1, latest: datetime | None = None, points: tuple[str, ...] = ()
) -> SegmentFacts:
    segment = Segment(timeline, number, SIZE)
    stop = str(segment.start + 200)
    return SegmentFacts(
        segment=segment.name,
        size_bytes=1,
        sha256="0" * 64,
        etag="",
        commits=1,
        min_commit_at=latest,
        max_commit_at=latest,
        restore_points=tuple(
            RestorePoint(name=name, lsn=str(segment.start + 100), stop_lsn=stop, at=NOON) for name in points
        ),
    )


def archived(
    timeline: int, numbers: list[int], *, history: TimelineHistory | None = None, **more: object
) -> ArchivedTimeline:
    rows = {number: facts(number, timeline=timeline) for number in numbers}
    return ArchivedTimeline(timeline, SIZE, history=history, **{"segments": rows, **more})  # type: ignore[arg-type]


def archive(*timelines: ArchivedTimeline) -> WalArchive:
    return WalArchive(IDENTITY, timelines, NOON)


def at(segment: float) -> Lsn:
    return Lsn(int(segment * SIZE))


@settings(deadline=None)
@given(st.sets(st.integers(0, 12)), st.dictionaries(st.integers(0, 12), st.integers(1, SIZE), max_size=4), st.data())
def test_missing_wal_is_named_to_the_byte(whole: set[int], partial: dict[int, int], data: st.DataObject) -> None:
    """Chunks count like segments; the oracle looks at single bytes around every border."""
    row = archived(1, sorted(whole), chunks={number: (Chunk(0, stop),) for number, stop in partial.items()})
    start, stop = sorted(data.draw(st.tuples(st.integers(0, 13 * SIZE), st.integers(0, 13 * SIZE))))
    found = missing(archive(row), TimelineHistory(1), Lsn(start), Lsn(stop))

    def is_held(byte: int) -> bool:
        number, offset = divmod(byte, SIZE)
        return number in whole or offset < partial.get(number, 0)

    borders = {start, stop, *(n * SIZE for n in range(14)), *(n * SIZE + stop for n, stop in partial.items())}
    for byte in {border + delta for border in borders for delta in (-1, 0, 1)}:
        if start <= byte < stop:
            named = any(gap.start.position <= byte < gap.stop.position for gap in found)
            assert named is not is_held(byte)


def test_reach_ends_at_the_first_gap_and_says_whether_more_is_behind_it() -> None:
    """The restorable window is not the span of what is stored."""
    with_gap = archive(archived(1, [1, 2, 4]))
    found = reach(with_gap, TimelineHistory(1), at(1))
    assert (found.stop, found.gap) == (at(3), WalRange(1, at(3), at(4)))
    whole = archive(archived(1, [1, 2], chunks={3: (Chunk(0, 500),)}))
    found = reach(whole, TimelineHistory(1), at(1))
    assert (found.stop, found.gap) == (at(3) + 500, None)
    assert with_gap.timelines[0].gaps == (WalRange(1, at(3), at(4)),)


def test_commits_that_were_lost_behind_a_fork_do_not_count() -> None:
    """The ancestor's copy of the segment with the fork holds them, the new timeline's does not (W1)."""
    history = TimelineHistory(2, (Fork(1, at(2.5)),))
    lost = NOON + timedelta(hours=5)
    old = archived(1, [], segments={1: facts(1, latest=NOON), 2: facts(2, latest=lost), 3: facts(3, latest=lost)})
    new = archived(2, [], history=history, segments={2: facts(2, timeline=2, latest=NOON + timedelta(hours=1))})
    found = reach(archive(old, new), history, at(1))

    assert found.last_commit_at == NOON + timedelta(hours=1)
    assert found.stop == at(3)
    assert missing(archive(old), history, at(1), at(3)) == (WalRange(2, at(2.5), at(3)),)


def test_a_time_is_reached_in_the_first_segment_with_a_later_commit() -> None:
    """Commit times are not monotonic: the running maximum decides (W17)."""
    times = {1: NOON, 2: NOON + timedelta(hours=2), 3: NOON + timedelta(hours=1), 4: NOON + timedelta(hours=3)}
    stored = archive(archived(1, [], segments={n: facts(n, latest=moment) for n, moment in times.items()}))
    history = TimelineHistory(1)

    found = first_after(stored, history, at(1), NOON + timedelta(minutes=90))
    assert found is not None
    assert found.number == 2
    assert first_after(stored, history, at(1), NOON + timedelta(hours=3)) is None
    assert reach(stored, history, at(1)).last_commit_at == NOON + timedelta(hours=3)


def test_every_restore_point_is_told_also_where_a_name_is_there_twice() -> None:
    """A repeated name has to be refused by who asks for it (W17)."""
    rows = {1: facts(1, points=("a",)), 2: facts(2, points=("b",)), 3: facts(3, points=("a",))}
    stored = archive(archived(1, [], segments=rows))

    assert [point.name for point in restore_points(stored, TimelineHistory(1), at(1))] == ["a", "b", "a"]
    assert [point.name for point in restore_points(stored, TimelineHistory(1), at(2))] == ["b", "a"]


@pytest.mark.parametrize(
    ("covered", "expected"),
    [
        ([WalRange(1, at(1), at(4))], False),  # recovery would replay timeline 1 past the fork
        ([WalRange(1, at(1), at(4)), WalRange(2, at(2) + 8192, at(3))], False),  # not from its first byte
        ([WalRange(1, at(1), at(4)), WalRange(2, at(2), at(2.25))], False),  # not up to the fork
        ([WalRange(1, at(1), at(4)), WalRange(2, at(2), at(2.75))], True),
        ([WalRange(2, at(7), at(8))], True),  # nothing of the ancestor is there
        ([WalRange(1, at(1), at(2))], True),  # nothing of its segment with the fork
    ],
)
def test_a_history_is_published_when_no_reader_is_led_past_the_fork(covered: list[WalRange], expected: bool) -> None:
    """With the history stored and the new segment absent, 199 lost rows came back (W1)."""
    history = TimelineHistory(2, (Fork(1, at(2.5)),))

    assert may_publish_history(history, covered, SIZE) is expected


def plan(stored: WalArchive, history: TimelineHistory, *, flush: float, slot: float, available: set[str]) -> str:
    found = plan_start(
        stored,
        history,
        flush_lsn=at(flush),
        slot_lsn=at(slot),
        segment_bytes=SIZE,
        available=available,
    )
    return f"{found.segment.name} gap {found.gap.size_bytes if found.gap else 0}"


def test_the_open_segment_is_received_again_from_its_first_byte() -> None:
    """What is stored of it has to be compared before anything is added (W8, W13)."""
    stored = archive(archived(1, [1, 2], chunks={3: (Chunk(0, 900),)}))
    name = Segment(1, 3, SIZE).name
    assert plan(stored, TimelineHistory(1), flush=3.5, slot=3.2, available={name}) == f"{name} gap 0"
    whole = archive(archived(1, [1, 2]))
    name = Segment(1, 2, SIZE).name
    assert plan(whole, TimelineHistory(1), flush=3.5, slot=3.2, available={name}) == f"{name} gap 0"


def test_wal_that_no_server_has_is_a_gap_of_exactly_that_size() -> None:
    """A slot that was lost begins later than what is stored (W11)."""
    stored = archive(archived(1, [1, 2], chunks={3: (Chunk(0, 900),)}))
    name = Segment(1, 6, SIZE).name
    assert plan(stored, TimelineHistory(1), flush=7, slot=6.5, available={name}) == f"{name} gap {3 * SIZE - 900}"


@pytest.mark.parametrize(
    ("spooled", "found"),
    [
        ({3: SIZE, 4: SIZE, 5: 7}, [3, 4, 5]),
        ({3: SIZE, 5: SIZE}, [3]),  # nothing is stored over a hole
        ({3: 901}, [3]),
        ({3: 900, 4: SIZE}, []),  # it ends where the store ends
        ({4: SIZE}, []),
        ({}, []),
    ],
)
def test_a_spool_closes_a_gap_from_its_beginning_on(spooled: dict[int, int], found: list[int]) -> None:
    """What only the receiver's disk still has is stored before a gap is named (W11), and in order."""
    stored = archive(archived(1, [1, 2], chunks={3: (Chunk(0, 900),)}))
    gap = WalRange(1, Lsn(3 * SIZE + 900), at(6))
    numbers = [one.number for one in left_over(stored, gap, {Segment(1, n, SIZE): size for n, size in spooled.items()})]
    assert numbers == found


@pytest.mark.parametrize(
    ("slot_bytes", "spool_bytes", "left_s", "said"),
    [
        (7200, 10, 7200, "; at the present pace some is lost in 2 h"),
        (10, 7200, 7200, "; at the present pace some is lost in 2 h"),
        (0, 0, 0, "; at the present pace some is lost in 0 s"),
        (None, 7200, None, ""),  # without a limit the server's disk decides
        (1 << 40, 0, 1 << 40, ""),
    ],
)
def test_wal_is_lost_when_slot_and_spool_are_both_full(
    slot_bytes: int | None, spool_bytes: int, left_s: float | None, said: str
) -> None:
    """What the slot does not keep any more, the spool does (W11)."""
    assert time_left_s(WalPace(Lsn(0), 1.0, slot_bytes), spool_bytes) == left_s
    assert say_time_left(left_s) == said


def test_after_a_promotion_the_old_timeline_is_finished_first() -> None:
    """Its bytes up to the fork are needed by every restore across it."""
    history = TimelineHistory(2, (Fork(1, at(3.5)),))
    stored = archive(archived(1, [1, 2], chunks={3: (Chunk(0, 900),)}))
    old, new = Segment(1, 3, SIZE).name, Segment(2, 3, SIZE).name
    assert plan(stored, history, flush=4, slot=3.6, available={old, new}) == f"{old} gap 0"
    done = archive(archived(1, [1, 2], chunks={3: (Chunk(0, SIZE // 2),)}))
    assert plan(done, history, flush=4, slot=3.6, available={old, new}) == f"{new} gap 0"


def test_a_server_whose_wal_does_not_belong_here_is_refused() -> None:
    """One that was promoted away and returns; one that ends before what is stored; one of another branch (W13)."""
    history = TimelineHistory(2, (Fork(1, at(3.5)),))
    newer = archive(archived(1, [1, 2]), archived(2, [3, 4], history=history))
    with pytest.raises(Refused, match="timeline 2, this server writes timeline 1"):
        plan(newer, TimelineHistory(1), flush=9, slot=3, available=set())
    with pytest.raises(WrongIdentity, match="the repository holds timeline 1 up to"):
        plan(archive(archived(1, [1, 2])), TimelineHistory(1), flush=2.5, slot=2, available=set())
    with pytest.raises(Refused, match="does not descend"):
        plan(newer, TimelineHistory(3, (Fork(1, at(2)),)), flush=9, slot=3, available=set())
