"""Finds the few WAL records that recovery targets depend on: commits, restore points, changed settings.

Walking every record in Python costs seconds for each segment. So the bytes that could be the kind of a record are
looked for at every eighth byte, where records begin; what is found is judged by the record's own structure and CRC.
Commit times are judged by structure, and only the earliest and the latest by CRC as well: those are what is kept.
Source: PostgreSQL's xlogrecord.h, xact.h, xlog_internal.h, pg_control.h.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal_facts import ParameterChange, RestorePoint
from synapse_ops.domain.database.wal_pages import LONG_BYTES, SHORT_BYTES, without_headers

_HEADER = struct.Struct("<IIQBBHI")  # xl_tot_len, xl_xid, xl_prev, xl_info, xl_rmid, padding, xl_crc
_KIND_AT = 16  # xl_info; xl_rmid follows
_XLOG, _XACT = 0, 1
_PARAMETER_CHANGE, _RESTORE_POINT = 0x60, 0x70
_COMMITS = {0x00, 0x30, 0x80, 0xB0}  # commit and commit prepared, with and without XLOG_XACT_HAS_INFO
_FARTHEST_PREVIOUS = 1 << 30  # a record is at most that long
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_RESTORE_POINT_BODY = struct.Struct("<q64s")
_PARAMETER_BODY = struct.Struct("<6i??")
CARRIED_BYTES = 64 * 1024  # of the end of a segment: a record that begins there may end in the next one


@dataclass(frozen=True, slots=True)
class FoundRecords:
    """What some WAL holds. commits: their number; min_commit_at, max_commit_at: None without any."""

    commits: int = 0
    min_commit_at: datetime | None = None
    max_commit_at: datetime | None = None
    restore_points: tuple[RestorePoint, ...] = ()
    parameters: tuple[ParameterChange, ...] = ()

    def with_more(self, other: FoundRecords) -> FoundRecords:
        """Return what both hold; `other` is of the WAL that follows."""
        first = [at for at in (self.min_commit_at, other.min_commit_at) if at is not None]
        last = [at for at in (self.max_commit_at, other.max_commit_at) if at is not None]
        return FoundRecords(
            self.commits + other.commits,
            min(first, default=None),
            max(last, default=None),
            self.restore_points + other.restore_points,
            self.parameters + other.parameters,
        )


def find_records(
    data: bytes, start: Lsn, *, segment_bytes: int, page_bytes: int, tail: bytes = b""
) -> tuple[FoundRecords, bytes]:
    """Return what the records that end in `data` say, and the tail for the next segment: its end without page headers.

    data: from the beginning of a page on. tail: of what comes before; empty: not at hand, and then a record that lies
    across the border is not found.
    """
    own = without_headers(data, start, segment_bytes=segment_bytes, page_bytes=page_bytes)
    stream, own_from = tail + own, len(tail)
    scan = _Scan(stream, own_from, start, segment_bytes, page_bytes)
    times = sorted(scan.commit_times())
    first = next((found for found in times if scan.is_intact(found[1])), None)
    last = next((found for found in reversed(times) if scan.is_intact(found[1])), None)
    found = FoundRecords(
        commits=len(times) if first is not None else 0,
        min_commit_at=_moment(first[0]) if first is not None else None,
        max_commit_at=_moment(last[0]) if last is not None else None,
        restore_points=tuple(scan.restore_points()),
        parameters=tuple(scan.parameter_changes()),
    )
    return found, stream[max(0, len(stream) - CARRIED_BYTES) :]


class _Scan:
    """Records in one stream. own_from: only those that end behind it count; the ones before were counted."""

    def __init__(self, stream: bytes, own_from: int, start: Lsn, segment_bytes: int, page_bytes: int) -> None:
        self._stream = stream
        self._own_from = own_from
        self._start = start
        self._segment_bytes = segment_bytes
        self._page_bytes = page_bytes

    def lsn(self, offset: int) -> Lsn:
        """Return the position of a byte; before the segment only nearly, by the page headers in between."""
        own, payload = offset - self._own_from, self._page_bytes - SHORT_BYTES
        if own < 0:
            pages = -(own // payload)
            return Lsn(max(0, self._start.position + own - pages * SHORT_BYTES))
        first = LONG_BYTES if self._start.position % self._segment_bytes == 0 else SHORT_BYTES
        pages = (own + first - SHORT_BYTES) // payload
        return Lsn(self._start.position + own + first + pages * SHORT_BYTES)

    def commit_times(self) -> Iterator[tuple[int, int]]:
        """Yield time (microseconds since 2000) and offset of what has the structure of a commit."""
        for offset in self._of_kind(_XACT, _COMMITS):
            body = self._main_data(offset, at_least=8)
            if body is not None:
                [moment] = struct.unpack_from("<q", self._stream, body)
                if 0 < moment < 1 << 58:
                    yield moment, offset

    def restore_points(self) -> Iterator[RestorePoint]:
        for offset in self._of_kind(_XLOG, {_RESTORE_POINT}):
            body = self._main_data(offset, at_least=_RESTORE_POINT_BODY.size)
            if body is not None and self.is_intact(offset):
                moment, name = _RESTORE_POINT_BODY.unpack_from(self._stream, body)
                length = _HEADER.unpack_from(self._stream, offset)[0]
                yield RestorePoint(
                    name=name.partition(b"\0")[0].decode("utf-8", errors="replace"),
                    lsn=str(self.lsn(offset)),
                    stop_lsn=str(self.lsn(offset + length)),
                    at=_moment(moment),
                )

    def parameter_changes(self) -> Iterator[ParameterChange]:
        for offset in self._of_kind(_XLOG, {_PARAMETER_CHANGE}):
            body = self._main_data(offset, at_least=_PARAMETER_BODY.size)
            if body is not None and self.is_intact(offset):
                connections, workers, senders, prepared, locks, *_ = _PARAMETER_BODY.unpack_from(self._stream, body)
                yield ParameterChange(
                    lsn=str(self.lsn(offset)),
                    max_connections=connections,
                    max_worker_processes=workers,
                    max_wal_senders=senders,
                    max_prepared_transactions=prepared,
                    max_locks_per_transaction=locks,
                )

    def _of_kind(self, manager: int, infos: set[int]) -> Iterator[int]:
        """Yield offsets where a record of this kind may begin."""
        stream = self._stream
        at, values = (_KIND_AT + 1, {manager}) if manager else (_KIND_AT, infos)  # the byte that is the rarer one
        lane = stream[at : len(stream) - _HEADER.size + at + 1 : 8]
        for value in values:
            for match in re.finditer(re.escape(bytes([value])), lane):
                offset = match.start() * 8
                info, found, padding = struct.unpack_from("<BBH", stream, offset + _KIND_AT)
                if found == manager and info in infos and not padding and self._may_begin(offset):
                    yield offset

    def _may_begin(self, offset: int) -> bool:
        """Return whether a whole record of a believable length, that follows on another one, may begin here."""
        length, previous = struct.unpack_from("<I4xQ", self._stream, offset)
        behind: int = self.lsn(offset).position - previous
        is_whole: bool = length > _HEADER.size and self._own_from < offset + length <= len(self._stream)
        return is_whole and 0 < behind < _FARTHEST_PREVIOUS

    def _main_data(self, offset: int, *, at_least: int) -> int | None:
        """Return where the main data of a record without blocks begins; None for another structure."""
        length = _HEADER.unpack_from(self._stream, offset)[0]
        at, stop = offset + _HEADER.size, offset + length
        while at < stop:
            mark = self._stream[at]
            if mark == 253:  # XLR_BLOCK_ID_ORIGIN
                at += 3
            elif mark == 252:  # XLR_BLOCK_ID_TOPLEVEL_XID
                at += 5
            elif mark == 255 and at + 2 <= stop:  # XLR_BLOCK_ID_DATA_SHORT
                size, at = self._stream[at + 1], at + 2
                return at if at + size == stop and size >= at_least else None
            elif mark == 254 and at + 5 <= stop:  # XLR_BLOCK_ID_DATA_LONG
                [size] = struct.unpack_from("<I", self._stream, at + 1)
                at += 5
                return at if at + size == stop and size >= at_least else None
            else:
                return None
        return None

    def is_intact(self, offset: int) -> bool:
        """Return whether a record has its own CRC: of its data, then of its header up to the CRC."""
        length, *_, crc = _HEADER.unpack_from(self._stream, offset)
        header_end = offset + _HEADER.size
        found = crc32c(self._stream[offset : header_end - 4], crc32c(self._stream[header_end : offset + length]))
        return found == int(crc)


def _moment(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _table() -> tuple[int, ...]:
    rows = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        rows.append(value)
    return tuple(rows)


_TABLE = _table()


def crc32c(data: bytes, crc: int = 0) -> int:
    """Return the CRC-32C (Castagnoli) of some bytes after those whose CRC is given. For short records."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
