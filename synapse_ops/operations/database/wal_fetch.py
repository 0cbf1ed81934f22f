"""One segment of WAL out of a repository, as a server in recovery wants it: the whole file, never less than is stored.

A server takes what it cannot get for the end of WAL and opens with less. So only a segment that is not in the archive
is `WalNotArchived`, which the caller's plan may expect. Everything else is another error: to be tried again
(`retryable`), or damage, and never the end. A restore_command answers the first with 1 and all others with 255.
Source: facts measured with PostgreSQL 17: exit 1 or 125 opened the server with 400 rows missing, 255 stopped it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import IO

from synapse_ops.domain.backup.layout import Identity
from synapse_ops.domain.database.wal import Segment, TimelineHistory
from synapse_ops.domain.database.wal_chain import WalArchive
from synapse_ops.domain.database.wal_keys import chunk_key, chunks_prefix, history_key, parse_wal_key, segment_key
from synapse_ops.domain.database.wal_plan import Chunk, contiguous_stop
from synapse_ops.errors import ChecksumMismatch, ObjectMissing, Unreachable, WalNotArchived
from synapse_ops.operations.database.wal_objects import WalBytes, decode
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.store import ObjectStore

_ZEROS = bytes(1024 * 1024)


class ChunksMerged(Unreachable):
    """The receiver merged chunks between their listing and their reading: list them again."""


def fetch_segment(
    repository: Repository,
    archive: WalArchive,
    segment: Segment,
    sink: IO[bytes],
    *,
    history: TimelineHistory,
    age_identities: Sequence[str] = (),
) -> int:
    """Write a segment into `sink`, exactly `segment.size_bytes`, and return how many of them are WAL that was stored.

    The rest is zeros, behind which recovery ends. history: of the target timeline. Bytes of an ancestor come only up to
    where the target left it: what was written there later was lost, and must not come back.
    Raises WalNotArchived where the archive holds nothing of it, or the history has left its timeline before it; the
    integrity errors that `decode` names; Unreachable and its kind, to be tried again.
    """
    stop = _stop_of(segment, history)
    store, identity = repository.store, archive.identity
    timeline = archive.find(segment.timeline)
    cut = _Cut(sink, stop)
    if timeline is not None and segment.number in timeline.segments:
        _read_segment(store, identity, segment, timeline.segments[segment.number].sha256, cut, age_identities)
    elif timeline is not None and segment.number in timeline.unread:
        _read_segment(store, identity, segment, "", cut, age_identities)
    else:
        known = contiguous_stop(timeline.chunks.get(segment.number, ())) if timeline is not None else 0
        if not known:
            raise WalNotArchived(f"WAL segment {segment.name} is not in the repository")
        _read_open(store, identity, segment, known, cut, age_identities)
    left = segment.size_bytes - cut.written
    while left > 0:
        left -= sink.write(_ZEROS[:left])
    return cut.written


def _stop_of(segment: Segment, history: TimelineHistory) -> int:
    """Return up to which offset a segment belongs to a history. Raises WalNotArchived for one that does not."""
    try:
        end = history.end_of(segment.timeline)
    except ValueError as fault:
        raise WalNotArchived(f"WAL segment {segment.name} is not on the way to timeline {history.timeline}") from fault
    if end is None:
        return segment.size_bytes
    if end <= segment.start:
        raise WalNotArchived(
            f"WAL segment {segment.name} is past {end}, where timeline {history.timeline} left timeline"
            f" {segment.timeline}"
        )
    return min(segment.size_bytes, end - segment.start)


def _read_open(
    store: ObjectStore, identity: Identity, segment: Segment, known: int, sink: _Cut, age_identities: Sequence[str]
) -> None:
    """Read a segment that lay in chunks: these may be merged by now, or it may be whole, but it holds no less.

    known: up to which offset it was stored. Raises ObjectMissing when it is not any more.
    """
    chunks = list_chunks(store, identity, segment)
    stored = contiguous_stop(chunks)
    if stored >= known:
        read_chunks(store, identity, segment, chunks, sink, stored, age_identities=age_identities)
    elif any(store.head(segment_key(identity, segment, encrypted=one)) for one in (False, True)):
        _read_segment(store, identity, segment, "", sink, age_identities)
    else:
        raise ObjectMissing(
            f"WAL segment {segment.name} was stored up to {segment.start + known}, now up to {segment.start + stored}",
            hint="A chunk of it was removed: bucket lifecycle rules must never touch WAL.",
        )


def list_chunks(store: ObjectStore, identity: Identity, segment: Segment) -> tuple[Chunk, ...]:
    """Return the chunks of a segment that are stored now, in order."""
    keys = [parse_wal_key(row.key) for row in store.list_objects(chunks_prefix(identity, segment))]
    return tuple(sorted(Chunk(key.start, key.stop) for key in keys if key is not None))


def _read_segment(
    store: ObjectStore,
    identity: Identity,
    segment: Segment,
    sha256: str,
    sink: _Cut,
    age_identities: Sequence[str],
) -> None:
    """Read a whole segment. sha256: of the stored bytes as its facts have it; empty where there are none."""
    key = segment_key(identity, segment, encrypted=False)
    encrypted = False
    if store.head(key) is None:
        key, encrypted = segment_key(identity, segment, encrypted=True), True
    what = WalBytes(identity, segment, 0, segment.size_bytes)
    url = store.full_url(key)
    with store.open_reader(key) as reader:
        decode(reader, what, sink, what=url, encrypted=encrypted, age_identities=age_identities)  # type: ignore[arg-type]
        while reader.read(1 << 20):
            pass
        if sha256 and reader.sha256 != sha256:
            raise ChecksumMismatch(f"{url} has sha256 {reader.sha256}, its facts say {sha256}")


def read_chunks(
    store: ObjectStore,
    identity: Identity,
    segment: Segment,
    chunks: Sequence[Chunk],
    sink: IO[bytes] | _Cut,
    stop: int,
    *,
    age_identities: Sequence[str] = (),
) -> None:
    """Write the bytes [0, stop) of a segment that lies in chunks, which cover them. Raises as `decode`.

    Chunks may overlap, where a merge was interrupted; bytes that do not agree are refused: two servers wrote them.
    """
    done = bytearray()
    for chunk in sorted(chunks):
        if chunk.start >= stop:
            break
        try:
            data = read_chunk(store, identity, segment, chunk, age_identities=age_identities)
        except ObjectMissing as missing:
            if chunk in list_chunks(store, identity, segment):
                raise
            raise ChunksMerged(f"chunks of WAL segment {segment.name} were merged while they were read") from missing
        overlap = min(len(done), chunk.stop) - chunk.start
        if done[chunk.start : chunk.start + overlap] != data[:overlap]:
            raise ChecksumMismatch(
                f"chunks of WAL segment {segment.name} hold different bytes from {segment.start + chunk.start} on",
                hint="Did two servers write into one repository?",
            )
        done += data[overlap:]
    sink.write(bytes(done))


def read_chunk(
    store: ObjectStore, identity: Identity, segment: Segment, chunk: Chunk, *, age_identities: Sequence[str] = ()
) -> bytes:
    """Return the bytes of one chunk. Raises as `decode`, and ObjectMissing."""
    data, key, encrypted = None, "", False
    for encrypted in (False, True):
        key = chunk_key(identity, segment, chunk.start, chunk.stop, encrypted=encrypted)
        data = store.read_with_etag(key, max_bytes=64 * 1024 * 1024)
        if data is not None:
            break
    if data is None:
        raise ObjectMissing(
            f"chunk {chunk.start:08X}-{chunk.stop:08X} of WAL segment {segment.name} is not in the store"
        )
    plain = io.BytesIO()
    what = WalBytes(identity, segment, chunk.start, chunk.stop)
    url = store.full_url(key)
    decode(io.BytesIO(data[0]), what, plain, what=url, encrypted=encrypted, age_identities=age_identities)
    return plain.getvalue()


def fetch_history(repository: Repository, archive: WalArchive, timeline: int) -> bytes:
    """Return a timeline's history file. Raises WalNotArchived for one that is not stored."""
    found = repository.store.read_with_etag(history_key(archive.identity, timeline))
    if found is None:
        raise WalNotArchived(f"the history of timeline {timeline} is not in the repository")
    return found[0]


class _Cut:
    """A sink that drops what lies behind an offset. written: what it passed on."""

    def __init__(self, sink: IO[bytes], stop: int) -> None:
        self._sink = sink
        self._stop = stop
        self.written = 0

    def write(self, data: bytes) -> int:
        kept = data[: max(0, self._stop - self.written)]
        if kept:
            self._sink.write(kept)
            self.written += len(kept)
        return len(data)
