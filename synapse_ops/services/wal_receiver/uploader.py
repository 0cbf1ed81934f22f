"""Moves WAL from the spool into the repository, once an interval, in order; what it has stored may be acknowledged.

One thread. It never adds to a segment before everything that is stored of it was compared with the server's bytes. It
never skips: the durable position only grows over what is stored without a gap. It writes only under its lease.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Segment, TimelineHistory, WalRange
from synapse_ops.domain.database.wal_chain import WalArchive
from synapse_ops.domain.database.wal_facts import PartialSegment, SegmentFacts, SegmentIndex
from synapse_ops.domain.database.wal_keys import AGE, GROUP, first_of_group
from synapse_ops.domain.database.wal_plan import (
    Chunk,
    contiguous_stop,
    may_publish_history,
    plan_merge,
    plan_upload,
)
from synapse_ops.domain.database.wal_records import FoundRecords, find_records
from synapse_ops.errors import IntegrityError, SynapseOpsError
from synapse_ops.operations.database.wal_fetch import list_chunks
from synapse_ops.operations.database.wal_objects import WalBytes
from synapse_ops.operations.database.wal_writer import OtherWal, WalWriter
from synapse_ops.services.wal_receiver.lease import HeldLease
from synapse_ops.services.wal_receiver.spool import SpooledSegment
from synapse_ops.services.wal_receiver.standing import Standing
from synapse_ops.systems.s3.store import WrittenObject

SCAN_BYTES = 16 * 1024 * 1024
RETRY_S = 1.0

log = structlog.get_logger()


class Segments(Protocol):
    """What is to be stored: the spool, or the file that archive_command names."""

    def segments(self) -> Iterable[SpooledSegment]:
        """Yield what is under way, oldest first."""

    def drop(self, one: SpooledSegment) -> None:
        """Forget a segment that is stored whole."""


class Uploader(threading.Thread):
    """Runs until `stop`. error: what ended it otherwise. on_durable: called with each new position, from its thread."""

    def __init__(
        self,
        writer: WalWriter,
        spool: Segments,
        lease: HeldLease,
        archive: WalArchive,
        standing: Standing,
        *,
        history: TimelineHistory,
        history_data: bytes,
        page_bytes: int,
        interval_s: float,
        on_durable: Callable[[Lsn], None],
    ) -> None:
        super().__init__(name="wal-uploader", daemon=True)
        self._writer = writer
        self._spool = spool
        self._lease = lease
        self._archive = archive
        self._standing = standing
        self._history = history
        self._history_data = history_data
        self._page_bytes = page_bytes
        self._interval_s = interval_s
        self._on_durable = on_durable
        self._is_stopping = threading.Event()
        self._wake = threading.Event()
        self._tail = b""
        self._stored: dict[int, WalRange] = {}  # what this run has stored, by timeline
        self._facts = {
            (row.timeline, number): facts for row in archive.timelines for number, facts in row.unindexed.items()
        }
        self._indexed = {
            (row.timeline, number)
            for row in archive.timelines
            for number in row.segments
            if number not in row.unindexed
        }
        self._is_published = history.timeline == 1 or any(
            row.timeline == history.timeline and row.history is not None for row in archive.timelines
        )
        self.error: BaseException | None = None

    def stop(self) -> None:
        """Ask it to end; what has arrived is stored first, if the store takes it."""
        self._is_stopping.set()
        self._wake.set()

    def arrived(self) -> None:
        """Say that there is new WAL: with no interval between two puts, the next one begins."""
        self._wake.set()

    def run(self) -> None:
        try:
            while True:
                began_s = time.monotonic()
                self._wake.clear()
                is_last = self._is_stopping.is_set()
                try:
                    self._store_all()
                except SynapseOpsError as error:
                    if not error.retryable:
                        raise
                    self._standing.fault = error.message
                    log.warning("WAL could not be stored", fault=error.message)
                    if is_last:
                        return
                    self._pause(began_s + max(RETRY_S, self._interval_s))
                    continue
                self._standing.fault = ""
                if is_last:
                    return
                self._rest(began_s)
        except BaseException as error:  # noqa: BLE001 - the receiver ends with it, and says why
            self.error = error
            self._on_durable(self._standing.durable_lsn)  # it wakes up

    def _pause(self, until_s: float) -> None:
        self._is_stopping.wait(max(0.0, until_s - time.monotonic()))

    def _rest(self, began_s: float) -> None:
        """Wait for the next put: an interval, or without one until WAL arrives."""
        if self._interval_s:
            self._pause(began_s + self._interval_s)
        else:
            self._wake.wait(RETRY_S)

    def _store_all(self) -> None:
        if self._lease.renew():
            self._look_again()
        for one in self._spool.segments():
            before = time.monotonic()
            received = one.received
            self._store(one, received)
            if one.is_stored:
                self._spool.drop(one)
            self._standing.put_s = time.monotonic() - before

    def _look_again(self) -> None:
        """After the lease was lost for a while: what another receiver may have stored meanwhile is compared."""
        for one in self._spool.segments():
            listed = list_chunks(self._writer.repository.store, self._writer.identity, one.segment)
            one.unread += [chunk for chunk in listed if chunk not in one.chunks and chunk not in one.unread]
            one.chunks = [chunk for chunk in one.chunks if chunk in listed]

    def _store(self, one: SpooledSegment, received: int) -> None:
        """Store what is new of a segment. received: up to where it was there when we began."""
        segment = one.segment
        if one.is_stored:  # by an earlier run: its bytes are compared
            if received == segment.size_bytes:
                self._compare(one, Chunk(0, segment.size_bytes))
                self._finish(one, None)
            return
        while one.unread:
            if received < one.unread[0].stop:
                return
            try:
                self._compare(one, one.unread[0])
            except OtherWal:
                raise
            except IntegrityError as damage:  # its bytes are here again, so that nothing is lost with it
                log.warning("a stored chunk is damaged and is stored anew", fault=damage.message)
                self._writer.remove_chunks(segment, [one.unread.pop(0)])
                continue
            one.chunks.append(one.unread.pop(0))
        while True:
            stored = contiguous_stop(one.chunks)
            self._durable(one, stored)
            upload = plan_upload(stored, received, segment.size_bytes)
            if upload is None:
                break
            self._lease.check()
            what = WalBytes(self._writer.identity, segment, upload.start, upload.stop)
            written = self._writer.store(what, one.read_at)
            self._standing.count("stored_bytes", written.size_bytes)
            if upload.is_segment:
                self._standing.count("segments")
                self._finish(one, written)
                return
            self._standing.count("chunks")
            one.chunks.append(Chunk(upload.start, upload.stop))
        self._merge(one)

    def _compare(self, one: SpooledSegment, chunk: Chunk) -> None:
        self._lease.check()
        what = WalBytes(self._writer.identity, one.segment, chunk.start, chunk.stop)
        if not self._writer.compare(what, one.read_at):
            log.warning("stored WAL is encrypted and was not compared: no key here opens it", segment=one.segment.name)
        self._standing.count("compared")

    def _durable(self, one: SpooledSegment, stop: int) -> None:
        """Everything up to this offset of a segment is stored."""
        segment, lsn = one.segment, one.segment.start + stop
        if stop:
            self._lease.acknowledged = segment.timeline, lsn
        known = self._stored.get(segment.timeline)
        start = segment.start if known is None or known.stop < segment.start else known.start
        self._stored[segment.timeline] = WalRange(segment.timeline, start, lsn)
        if lsn > self._standing.durable_lsn or segment.timeline != self._standing.timeline:
            self._standing.durable_lsn = lsn
            self._publish()
            self._on_durable(lsn)

    def _publish(self) -> None:
        """Store the timeline's history as soon as no reader can be led past its fork."""
        if self._is_published or self._history.timeline not in self._stored:
            return
        covered = [one for row in self._archive.timelines for one in row.covered] + list(self._stored.values())
        size = self._spool_segment_bytes()
        if may_publish_history(self._history, covered, size):
            self._lease.check()
            self._writer.publish_history(self._history, self._history_data)
            self._is_published = True

    def _spool_segment_bytes(self) -> int:
        return next(one.segment.size_bytes for one in self._spool.segments())

    def _merge(self, one: SpooledSegment) -> None:
        """Store many small chunks as one, then remove them: the new one was checked before."""
        merged = plan_merge(one.chunks)
        if not merged:
            return
        self._lease.check()
        whole = Chunk(merged[0].start, max(chunk.stop for chunk in merged))
        self._writer.store(WalBytes(self._writer.identity, one.segment, whole.start, whole.stop), one.read_at)
        self._writer.remove_chunks(one.segment, merged)
        one.chunks = sorted([whole, *(chunk for chunk in one.chunks if chunk not in merged)])
        self._standing.count("merges")

    def _finish(self, one: SpooledSegment, written: WrittenObject | None) -> None:
        """A segment is stored whole: keep its facts, remove its chunks. written: None: by an earlier run."""
        segment = one.segment
        self._durable(one, segment.size_bytes)
        found, self._tail = self._scan(one)
        name = (segment.timeline, segment.number)
        if name not in self._facts and name not in self._indexed:
            facts = _facts_of(segment, written or self._writer.read_whole(segment), found)
            self._writer.store_facts(segment, facts)
            self._facts[name] = facts
        self._writer.remove_chunks(segment, [*one.chunks, *one.unread])
        one.chunks, one.unread, one.is_stored = [], [], True
        self._index_before(segment)

    def _scan(self, one: SpooledSegment) -> tuple[FoundRecords, bytes]:
        total, tail = FoundRecords(), self._tail
        for offset in range(0, one.segment.size_bytes, SCAN_BYTES):
            data = one.read_at(offset, min(SCAN_BYTES, one.segment.size_bytes - offset))
            found, tail = find_records(
                data,
                one.segment.start + offset,
                segment_bytes=one.segment.size_bytes,
                page_bytes=self._page_bytes,
                tail=tail,
            )
            total = total.with_more(found)
        return total, tail

    def _index_before(self, segment: Segment) -> None:
        """Write the indexes of groups that lie before this segment's: nothing is added to them any more."""
        current = first_of_group(segment)
        loose = set(self._facts) | {
            (row.timeline, number) for row in self._archive.timelines for number in {*row.unread, *row.chunks}
        }
        groups = {first_of_group(Segment(*name, segment.size_bytes)) for name in loose - self._indexed}
        for first in sorted(group for group in groups if group.timeline == segment.timeline and group < current):
            self._lease.check()
            numbers = range(first.number, first.number + GROUP)
            index = self._index_of(first, [n for n in numbers if (first.timeline, n) in loose])
            self._writer.store_index(first, index)
            for number in numbers:
                self._facts.pop((first.timeline, number), None)
                self._indexed.add((first.timeline, number))
            self._standing.count("indexes")

    def _index_of(self, first: Segment, numbers: list[int]) -> SegmentIndex:
        """Return the index of a group. What an earlier run left in it is in it too, or it would not be found again."""
        archived = next((row for row in self._archive.timelines if row.timeline == first.timeline), None)
        rows: list[SegmentFacts] = []
        partial = []
        for number in numbers:
            segment = Segment(first.timeline, number, first.size_bytes)
            if (facts := self._facts.get((first.timeline, number))) is not None:
                rows.append(facts)
            elif archived is not None and number in archived.unread:  # its facts were not written: no commits are known
                rows.append(_facts_of(segment, self._writer.read_whole(segment), FoundRecords()))
            elif archived is not None:
                offsets = tuple((chunk.start, chunk.stop) for chunk in archived.chunks[number])
                partial.append(PartialSegment(segment=segment.name, chunks=offsets))
        return SegmentIndex(segments=tuple(rows), partial=tuple(partial))


def _facts_of(segment: Segment, written: WrittenObject, found: FoundRecords) -> SegmentFacts:
    return SegmentFacts(
        segment=segment.name,
        size_bytes=written.size_bytes,
        sha256=written.sha256,
        etag=written.etag,
        encrypted=written.key.endswith(AGE),
        commits=found.commits,
        min_commit_at=found.min_commit_at,
        max_commit_at=found.max_commit_at,
        restore_points=found.restore_points,
        parameters=found.parameters,
    )
