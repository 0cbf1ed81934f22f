"""Judges a stream of WAL by its page headers, as the bytes arrive: it is this server's, this timeline's, and unbroken.

Every page (8 KiB) begins with a header that says where it belongs. A page of zeros ends a segment that was switched
early: from there on everything in the segment must be zero. A byte of another server, timeline or position is refused
before it is stored. Source: PostgreSQL's xlog_internal.h, XLogPageHeaderData; xlog.c, CopyXLogRecordToWAL.
"""

from __future__ import annotations

import struct

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import TimelineHistory
from synapse_ops.errors import IntegrityError, Refused, WrongIdentity

MAGIC = {15: 0xD110, 16: 0xD113, 17: 0xD116, 18: 0xD118}  # XLOG_PAGE_MAGIC by major version
_SHORT = struct.Struct("<HHIQI4x")
_LONG = struct.Struct("<HHIQI4xQII")
SHORT_BYTES, LONG_BYTES = _SHORT.size, _LONG.size
_IS_LONG = 2  # XLP_LONG_HEADER: the first page of each segment


class PageJudge:
    """Takes WAL in order, in pieces of any size. position: of the next byte; the first one begins a page."""

    def __init__(
        self,
        *,
        system_identifier: str,
        history: TimelineHistory,
        start: Lsn,
        segment_bytes: int,
        page_bytes: int,
        major: int,
    ) -> None:
        """Raises Refused for a version whose pages are not known."""
        if major not in MAGIC:
            raise Refused(f"cannot read WAL of PostgreSQL {major}: versions {min(MAGIC)} to {max(MAGIC)} are known")
        self._magic = MAGIC[major]
        self._system_identifier = int(system_identifier)
        self._history = history
        self._segment_bytes = segment_bytes
        self._page_bytes = page_bytes
        self._cut = b""  # the beginning of a header whose end has not arrived
        self._is_zero = False  # the rest of this segment must be
        self.position = start

    def take(self, start: Lsn, data: bytes) -> None:
        """Judge `data`, which begins at `start`.

        Raises IntegrityError unless it follows on what came before and every page header in it is right; WrongIdentity
        for pages of another server. What was refused must not be stored.
        """
        if start != self.position:
            raise IntegrityError(f"WAL goes on at {start}, expected {self.position}")
        view = self._cut + data if self._cut else data
        base = self.position.position - len(self._cut)
        self._cut = b""
        offset = -base % self._page_bytes
        if self._is_zero and base % self._segment_bytes:
            self._refuse_unless_zero(view, base, 0)
        while offset < len(view):
            at = base + offset
            is_first = at % self._segment_bytes == 0
            size = LONG_BYTES if is_first else SHORT_BYTES
            if len(view) - offset < size:
                self._cut = bytes(view[offset:])
                break
            if is_first or not self._is_zero:
                self._is_zero = False
                self._judge_header(view, offset, at, is_first=is_first)
                if self._is_zero:
                    self._refuse_unless_zero(view, base, offset)
            offset += self._page_bytes
        self.position = start + len(data)

    def _judge_header(self, view: bytes, offset: int, at: int, *, is_first: bool) -> None:
        magic, info, timeline, address, _ = _SHORT.unpack_from(view, offset)
        where = f"the page at {Lsn(at)}"
        if not magic and not is_first and not any(view[offset : offset + SHORT_BYTES]):
            self._is_zero = True
            return
        if magic != self._magic:
            raise IntegrityError(f"{where} has magic {magic:04X}, expected {self._magic:04X}")
        if address != at:
            raise IntegrityError(f"{where} says that it is the one at {Lsn(address)}")
        expected = self._history.timeline_at(Lsn(at))
        if timeline != expected:
            raise IntegrityError(f"{where} is of timeline {timeline}, expected {expected}")
        if not is_first:
            return
        *_, system_identifier, segment_bytes, page_bytes = _LONG.unpack_from(view, offset)
        if not info & _IS_LONG or (segment_bytes, page_bytes) != (self._segment_bytes, self._page_bytes):
            raise IntegrityError(
                f"{where} says segments of {segment_bytes} bytes and pages of {page_bytes},"
                f" expected {self._segment_bytes} and {self._page_bytes}"
            )
        if system_identifier != self._system_identifier:
            raise WrongIdentity(
                f"{where} is of the server {system_identifier}, expected {self._system_identifier}",
                hint="Does database.admin lead to another cluster than before?",
            )

    def _refuse_unless_zero(self, view: bytes, base: int, start: int) -> None:
        """Refuse what follows an early end of a segment, up to the next segment."""
        stop = min(len(view), start + self._segment_bytes - (base + start) % self._segment_bytes)
        if view.count(0, start, stop) != stop - start:
            raise IntegrityError(f"a page at or after {Lsn(base + start)} holds data behind the end of its segment")
