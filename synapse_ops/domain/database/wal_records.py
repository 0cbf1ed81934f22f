"""Finds the few WAL records that recovery targets depend on: commits, restore points, changed settings.

Walking every record in Python costs seconds for each segment. So the bytes that could be the kind of a record are
looked for at every eighth byte, where records begin; what is found is judged by the record's own structure and CRC.
A record of the kinds looked for is longer than 64 KiB only with some thousand subtransactions or dropped tables.
Commit times are judged by structure, and only the earliest and the latest by CRC as well: those are what is kept.
Source: PostgreSQL's xlogrecord.h, xact.h, xlog_internal.h, pg_control.h.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal_facts import ParameterChange, RestorePoint
from synapse_ops.domain.database.wal_pages import LONG_BYTES, SHORT_BYTES

_HEADER = struct.Struct("<IIQBBHI")  # xl_tot_len, xl_xid, xl_prev, xl_info, xl_rmid, padding, xl_crc
_KIND_AT = 16  # xl_info, then xl_rmid
_XLOG, _XACT = 0, 1
_PARAMETER_CHANGE, _RESTORE_POINT = 0x60, 0x70
_COMMITS = {0x00, 0x30, 0x80, 0xB0}  # commit and commit prepared, with and without XLOG_XACT_HAS_INFO
_FARTHEST_PREVIOUS = 1 << 30  # a record is at most that long
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_RESTORE_POINT_BODY = struct.Struct("<q64s")
_PARAMETER_BODY = struct.Struct("<6i??")
CARRIED_BYTES = 64 * 1024  # of the end of a segment: a record that begins there may end in the next one; none is longer


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
    """Return what the records that end in `data` say, and the tail for what follows it: its last pages.

    data: from the beginning of a page on. tail: of what comes before; empty: not at hand, and then a record that lies
    across the border is not found.
    """
    scan = _Scan(tail + data, Lsn(start.position - len(tail)), len(tail), segment_bytes, page_bytes)
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
    whole = len(data) // page_bytes * page_bytes
    return found, data[max(0, whole - CARRIED_BYTES) : whole]


def _classes(by_class: Mapping[int, Collection[int]]) -> bytes:
    """Return a table for `bytes.translate` that sets a bit for each class that a byte belongs to."""
    return bytes(sum(bit for bit, values in by_class.items() if value in values) for value in range(256))


_IS_COMMIT, _IS_XLOG = 1, 2
_OF_INFO = _classes({_IS_COMMIT: _COMMITS, _IS_XLOG: {_PARAMETER_CHANGE, _RESTORE_POINT}})
_OF_MANAGER = _classes({_IS_COMMIT: {_XACT}, _IS_XLOG: {_XLOG}})


class _Scan:
    """Records in some pages. base: where these begin. own_from: only records that end behind this offset count."""

    def __init__(self, data: bytes, base: Lsn, own_from: int, segment_bytes: int, page_bytes: int) -> None:
        self._data = data
        self._base = base
        self._own_from = own_from
        self._segment_bytes = segment_bytes
        self._page_bytes = page_bytes
        # a header is of a multiple of 8 bytes, as a page's is: the kind of each record is at a multiple of 8
        infos, managers = data[0::8].translate(_OF_INFO), data[1::8].translate(_OF_MANAGER)
        size = len(managers)
        both = int.from_bytes(infos[:size], "little") & int.from_bytes(managers, "little")
        self._kinds = both.to_bytes(size, "little")

    def commit_times(self) -> Iterator[tuple[int, int]]:
        """Yield time (microseconds since 2000) and offset of what has the structure of a commit."""
        for offset in self._of_kind(_IS_COMMIT):
            body = _main_data(self._record(offset), at_least=8)
            if body is not None:
                [moment] = struct.unpack_from("<q", body)
                if 0 < moment < 1 << 58:
                    yield moment, offset

    def restore_points(self) -> Iterator[RestorePoint]:
        for offset in self._of_kind(_IS_XLOG):
            record = self._record(offset)
            body = _main_data(record, at_least=_RESTORE_POINT_BODY.size)
            if body is not None and record[_KIND_AT] == _RESTORE_POINT and self.is_intact(offset):
                moment, name = _RESTORE_POINT_BODY.unpack_from(body)
                yield RestorePoint(
                    name=name.partition(b"\0")[0].decode("utf-8", errors="replace"),
                    lsn=str(self._base + offset),
                    stop_lsn=str(self._base + self._end(offset, -(-len(record) // 8) * 8)),
                    at=_moment(moment),
                )

    def parameter_changes(self) -> Iterator[ParameterChange]:
        for offset in self._of_kind(_IS_XLOG):
            record = self._record(offset)
            body = _main_data(record, at_least=_PARAMETER_BODY.size)
            if body is not None and record[_KIND_AT] == _PARAMETER_CHANGE and self.is_intact(offset):
                connections, workers, senders, prepared, locks, *_ = _PARAMETER_BODY.unpack_from(body)
                yield ParameterChange(
                    lsn=str(self._base + offset),
                    max_connections=connections,
                    max_worker_processes=workers,
                    max_wal_senders=senders,
                    max_prepared_transactions=prepared,
                    max_locks_per_transaction=locks,
                )

    def _of_kind(self, kind: int) -> Iterator[int]:
        """Yield offsets where a whole record of this kind may begin, that follows on another one."""
        for match in re.finditer(bytes([kind]), self._kinds):
            offset = self._begin(match.start() * 8)
            if offset is None:
                continue
            header = self._read(offset, _HEADER.size)
            if len(header) < _HEADER.size:
                continue
            length, _, previous, _, _, padding, _ = _HEADER.unpack(header)
            behind = self._base.position + offset - previous
            if padding or not 0 < behind < _FARTHEST_PREVIOUS or not _HEADER.size < length <= CARRIED_BYTES:
                continue
            if self._own_from < self._end(offset, length) <= len(self._data):
                yield offset

    def _page_header(self, page: int) -> int:
        """Return the size of the header of the page at an offset."""
        return LONG_BYTES if (self._base.position + page) % self._segment_bytes == 0 else SHORT_BYTES

    def _begin(self, kind_at: int) -> int | None:
        """Return where the record begins whose kind is at an offset; None where that is a page's header, or before."""
        page = kind_at // self._page_bytes * self._page_bytes
        inside = kind_at - page - self._page_header(page)
        if inside >= _KIND_AT:
            return kind_at - _KIND_AT
        return page - (_KIND_AT - inside) if inside >= 0 and page else None

    def _pieces(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of offsets that hold `size` bytes of records from `offset` on, page headers left out."""
        while size > 0:
            stop = min(offset + size, offset // self._page_bytes * self._page_bytes + self._page_bytes)
            yield offset, stop
            size -= stop - offset
            offset = stop + self._page_header(stop)

    def _end(self, offset: int, size: int) -> int:
        *_, (_, stop) = self._pieces(offset, size)
        return stop

    def _read(self, offset: int, size: int) -> bytes:
        return b"".join(self._data[start:stop] for start, stop in self._pieces(offset, size))

    def _record(self, offset: int) -> bytes:
        [length] = struct.unpack("<I", self._read(offset, 4))
        return self._read(offset, length)

    def is_intact(self, offset: int) -> bool:
        """Return whether a record has its own CRC: of its data, then of its header up to the CRC."""
        record = self._record(offset)
        *_, crc = _HEADER.unpack_from(record)
        return crc32c(record[: _HEADER.size - 4], crc32c(record[_HEADER.size :])) == int(crc)


def _main_data(record: bytes, *, at_least: int) -> bytes | None:
    """Return the main data of a record without blocks; None for another structure."""
    at = _HEADER.size
    while at < len(record):
        mark = record[at]
        if mark == 253:  # XLR_BLOCK_ID_ORIGIN
            at += 3
        elif mark == 252:  # XLR_BLOCK_ID_TOPLEVEL_XID
            at += 5
        elif mark == 255:  # XLR_BLOCK_ID_DATA_SHORT
            return _exactly(record[at + 2 :], record[at + 1 : at + 2], at_least)
        elif mark == 254:  # XLR_BLOCK_ID_DATA_LONG
            return _exactly(record[at + 5 :], record[at + 1 : at + 5], at_least)
        else:
            return None
    return None


def _exactly(data: bytes, size: bytes, at_least: int) -> bytes | None:
    return data if len(data) == int.from_bytes(size, "little") >= at_least else None


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
