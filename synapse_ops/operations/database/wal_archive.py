"""Reads what a repository holds of a server's WAL: timelines, segments, chunks, gaps; needs no server and no spec.

The facts of finished groups of segments come from their indexes; only what is behind the newest index is listed. So a
month of a terabyte a day costs some thousand small reads, not a listing of two million keys.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

from synapse_ops.domain.backup.layout import WAL, Identity, is_identity, timeline_ends
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Segment, TimelineHistory, WalRange
from synapse_ops.domain.database.wal_chain import ArchivedTimeline, WalArchive
from synapse_ops.domain.database.wal_facts import SegmentFacts, SegmentIndex, TimelineClaim
from synapse_ops.domain.database.wal_keys import (
    GROUP,
    WalKey,
    claim_key,
    first_of_group,
    history_key,
    index_prefix,
    parse_wal_key,
    timeline_prefix,
    wal_prefix,
)
from synapse_ops.domain.database.wal_plan import Chunk, contiguous_stop
from synapse_ops.domain.database.wal_records import find_records
from synapse_ops.errors import ChecksumMismatch, KeyMissing, ObjectMissing, WrongIdentity
from synapse_ops.operations.backup.lease import read_note
from synapse_ops.operations.database.wal_fetch import ChunksMerged, read_chunks
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.store import ObjectInfo, ObjectStore

READERS = 16
TRIES = 5  # the receiver merges chunks of the open segment every minute or so
_MOST_BYTES = 64 * 1024 * 1024
_USUAL_BYTES = 16 * 1024 * 1024  # of a segment


def list_wal_identities(repository: Repository) -> tuple[Identity, ...]:
    """Return the servers whose WAL the repository holds; lists folders only."""
    found = []
    for name in repository.store.list_prefixes():
        try:
            identity = Identity.parse(name)
        except ValueError:
            continue
        if WAL in repository.store.list_prefixes(f"{identity}/"):
            found.append(identity)
    return tuple(found)


def highest_timeline(repository: Repository, system_identifier: str) -> int:
    """Return the highest timeline that a cluster has written, or may have begun, in any of its generations.

    The end of a timeline is claimed before a promotion begins the next one, of which no WAL may be stored.
    """
    written = [
        number
        for identity in list_wal_identities(repository)
        if identity.system_identifier == system_identifier
        for number in _written_timelines(repository, identity)
    ]
    claims = [one.key for one in repository.store.list_objects(timeline_ends(system_identifier))]
    ended = [int(found[1], 16) for key in claims if (found := re.search(r"/([0-9A-F]{8})\.json$", key))]
    return max([*written, *(number + 1 for number in ended)], default=0)


def newest_timeline(repository: Repository, system_identifier: str, timeline: int) -> int:
    """Return the newest timeline of the server that wrote this one, as far as WAL of it was ever stored; else this one.

    A copy that went live has a generation of its own, and is another server. Two generations may both have written this
    timeline, and a server that does not run cannot say which it is: the older answer is the one that holds for sure.
    """
    found = []
    for name in repository.store.list_prefixes():
        if is_identity(name) and (identity := Identity.parse(name)).system_identifier == system_identifier:
            numbers = [number for number in _written_timelines(repository, identity) if number >= timeline]
            keys = {number: claim_key(identity, number) for number in numbers}  # a store may keep an empty folder
            claimed = [number for number, key in keys.items() if repository.store.read_with_etag(key) is not None]
            found += [max(claimed)] if timeline in claimed else []
    return min(found, default=timeline)


def _written_timelines(repository: Repository, identity: Identity) -> tuple[int, ...]:
    return tuple(int(name, 16) for name in repository.store.list_prefixes(wal_prefix(identity)) if _is_timeline(name))


def read_wal_archive(
    repository: Repository, identity: Identity, *, age_identities: Sequence[str] | None = ()
) -> WalArchive:
    """Return what is stored of a server's WAL.

    age_identities: to look into the newest segment where it is encrypted; without one its last commit is not known.
    None: it is not looked into at all, and damage to it does not show.
    Raises the store's errors, and DocumentUnreadable for an index or claim that is none: then it is not known what is
    restorable.
    """
    before: list[tuple[WalRange, ...]] = []
    for _ in range(TRIES - 1):
        with suppress(ChunksMerged):
            found = _read(repository.store, identity, age_identities)
            gaps = [row.gaps for row in found.timelines]
            if not any(gaps) or gaps == before:
                return found
            before = gaps  # chunks that are merged while they are listed look like a gap: once
    return _read(repository.store, identity, age_identities)


def wal_lease(identity: Identity) -> str:
    """Return the name of the lease that a receiver holds; in its note stands up to where WAL was acknowledged."""
    return f"wal-{identity}"


def note_acknowledged(before: Any, timeline: int, lsn: Lsn) -> dict[str, Any]:
    """Return the note after the one before: it never goes back, for whoever held the lease acknowledged that much."""
    timeline, lsn = max((timeline, lsn), _noted(before) or (0, Lsn(0)))
    return {"acknowledged": {"timeline": timeline, "lsn": str(lsn)}}


def _noted(note: Any) -> tuple[int, Lsn] | None:
    try:
        return int(note["acknowledged"]["timeline"]), Lsn.parse(note["acknowledged"]["lsn"])
    except (ValueError, TypeError, KeyError):
        return None


def _read(store: ObjectStore, identity: Identity, age_identities: Sequence[str] | None) -> WalArchive:
    read_at = store.server_time()
    acknowledged = _noted(read_note(store, wal_lease(identity)))  # before the listing, which so holds no less
    numbers = [name for name in store.list_prefixes(wal_prefix(identity)) if _is_timeline(name)]
    with ThreadPoolExecutor(READERS, thread_name_prefix="wal") as pool:
        rows = [_read_timeline(store, identity, int(name, 16), pool, age_identities) for name in numbers]
    return WalArchive(identity, tuple(row for row in rows if row is not None), read_at, acknowledged)


def _is_timeline(name: str) -> bool:
    return len(name) == 8 and all(digit in "0123456789ABCDEF" for digit in name)


def _read_timeline(
    store: ObjectStore,
    identity: Identity,
    timeline: int,
    pool: ThreadPoolExecutor,
    age_identities: Sequence[str] | None,
) -> ArchivedTimeline | None:
    """Return one timeline, without its WAL where its claim is missing; None for a folder in which nothing is ours."""
    key = claim_key(identity, timeline)
    try:
        claim = TimelineClaim.from_json(store.read_bytes(key), key=key)
    except ObjectMissing:
        ours = any(_parsed(row) for row in store.list_objects(timeline_prefix(identity, timeline)))
        return ArchivedTimeline(timeline, _USUAL_BYTES) if ours else None
    if (claim.system_identifier, claim.timeline) != (identity.system_identifier, timeline):
        raise WrongIdentity(
            f"{key} is of timeline {claim.timeline} of server {claim.system_identifier}",
            hint="Was it copied or swapped?",
        )
    size = claim.segment_bytes
    indexes = [row for row in store.list_objects(index_prefix(identity, timeline)) if _parsed(row) is not None]
    segments: dict[int, SegmentFacts] = {}
    chunks: dict[int, list[Chunk]] = {}
    for whole, partial in pool.map(lambda row: _read_index(store, row, size), indexes):
        segments |= whole
        chunks |= partial
    indexed = frozenset({*segments, *chunks})
    listed = list(_list_open(store, identity, timeline, indexes, size))
    loose = [row for row, key in listed if key.kind == "facts"]
    unindexed: dict[int, SegmentFacts] = {}
    for whole, _ in pool.map(lambda row: _read_index(store, row, size), loose):
        unindexed |= whole
    segments |= unindexed
    stored = {Segment.parse(one.segment, size).number for _, one in listed if one.kind == "segment"}
    for _, one in listed:
        if one.kind == "chunk":
            chunks.setdefault(Segment.parse(one.segment, size).number, []).append(Chunk(one.start, one.stop))
    row = ArchivedTimeline(
        timeline=timeline,
        segment_bytes=size,
        claim=claim,
        history=_read_history(store, identity, claim),
        segments=segments,
        indexed=indexed,
        unindexed=unindexed,
        unread=frozenset(stored - segments.keys()),
        chunks={number: tuple(sorted(rows)) for number, rows in chunks.items()},
        stored_at=_newest([row for row, _ in listed] or indexes),
    )
    return row if age_identities is None else _with_open_facts(store, identity, row, claim, age_identities)


def _parsed(row: ObjectInfo) -> WalKey | None:
    return parse_wal_key(row.key)


def _read_index(
    store: ObjectStore, row: ObjectInfo, size: int
) -> tuple[dict[int, SegmentFacts], dict[int, list[Chunk]]]:
    """Return what an index, or the facts beside a segment, says of whole segments and of those in chunks, by number.

    Nothing where an index took the facts over meanwhile.
    """
    try:
        data = store.read_listed(row.key, row.size_bytes, row.etag, max_bytes=_MOST_BYTES)
    except ObjectMissing:
        return {}, {}
    found, key = SegmentIndex.from_json(data, key=row.key), _parsed(row)
    whole = {Segment.parse(one.segment, size).number: one for one in found.segments}
    partial = {
        Segment.parse(one.segment, size).number: [Chunk(*offsets) for offsets in one.chunks] for one in found.partial
    }
    if key is not None:
        own, first = {*whole, *partial}, Segment.parse(key.segment, size)
        if key.kind == "index":
            own = {first_of_group(Segment(first.timeline, number, size)).number for number in own}
        if own != {first.number} or any(not name.startswith(key.segment[:8]) for name in found.names()):
            raise WrongIdentity(f"{row.key} is of {', '.join(found.names())}", hint="Was it copied or swapped?")
    return whole, partial


def _list_open(
    store: ObjectStore, identity: Identity, timeline: int, indexes: Iterable[ObjectInfo], size: int
) -> Iterable[tuple[ObjectInfo, WalKey]]:
    """Yield the segments, facts and chunks that are in no index: those behind the newest, and where one is lost."""
    prefix = timeline_prefix(identity, timeline)
    firsts = sorted(Segment.parse(key.segment, size).number for row in indexes if (key := _parsed(row)) is not None)
    behind = [0, *(first + GROUP for first in firsts)]
    for begin, end in zip(behind, [*firsts, None], strict=True):
        if begin == end:
            continue
        after = Segment(timeline, begin, size).name
        until = Segment(timeline, end, size).name if end is not None else "~"
        for row in store.list_objects(f"{prefix}{timeline:08X}", start_after=prefix + after if begin else ""):
            key = _parsed(row)
            if key is not None and key.segment >= until:
                break
            if key is not None and key.kind in {"segment", "facts", "chunk"}:
                yield row, key


def _newest(rows: Iterable[ObjectInfo]) -> datetime | None:
    return max((row.modified_at for row in rows), default=None)


def _read_history(store: ObjectStore, identity: Identity, claim: TimelineClaim) -> TimelineHistory | None:
    if claim.timeline == 1:
        return None
    key = history_key(identity, claim.timeline)
    found = store.read_with_etag(key)
    if found is None:
        return None
    sha256 = hashlib.sha256(found[0]).hexdigest()
    if claim.history_sha256 not in {sha256, None}:
        raise ChecksumMismatch(f"{store.full_url(key)} has sha256 {sha256}, its claim says {claim.history_sha256}")
    return TimelineHistory.parse(claim.timeline, found[0])


def _with_open_facts(
    store: ObjectStore,
    identity: Identity,
    row: ArchivedTimeline,
    claim: TimelineClaim,
    age_identities: Sequence[str],
) -> ArchivedTimeline:
    """Add what the chunks of the newest segment hold, unless they are encrypted and no key is at hand."""
    number = max(row.chunks, default=-1)
    if number < max({*row.segments, *row.unread}, default=-1) or number < 0 or number in row.segments:
        return row
    segment, chunks = row.segment(number), row.chunks[number]
    stop = contiguous_stop(chunks)
    if not stop:
        return row
    data = io.BytesIO()
    try:
        read_chunks(store, identity, segment, chunks, data, stop, age_identities=age_identities)
    except (KeyMissing, ObjectMissing):  # ObjectMissing: merged, or part of a whole segment, since it was listed
        return row
    found, _ = find_records(
        data.getvalue(), segment.start, segment_bytes=row.segment_bytes, page_bytes=claim.page_bytes
    )
    facts = SegmentFacts(
        segment=segment.name,
        size_bytes=0,
        sha256="0" * 64,
        etag="",
        commits=found.commits,
        min_commit_at=found.min_commit_at,
        max_commit_at=found.max_commit_at,
        restore_points=found.restore_points,
        parameters=found.parameters,
    )
    return replace(row, open_facts=facts)
