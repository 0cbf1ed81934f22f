"""WAL that has arrived and is not all in the store yet: one file for each segment, read and written by position.

It is no second copy to rely on: nothing in it is acknowledged, and a restart receives it again. So it is never synced,
and emptied at the start. It bounds what an outage of the store may take of this host's disk.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Segment
from synapse_ops.domain.database.wal_plan import Chunk
from synapse_ops.systems.host.errors import host_errors


@dataclass
class SpooledSegment:
    """A segment as far as it has arrived. received, stored: offsets; the first grows by the receiver, the rest is the
    uploader's.

    chunks: in the store. unread: those that another run stored, not compared yet. is_stored: the whole of it is.
    """

    segment: Segment
    path: Path
    file: FileIO  # an uploader that outlives its session must not read what another file has become
    received: int = 0
    chunks: list[Chunk] = field(default_factory=list)
    unread: list[Chunk] = field(default_factory=list)
    is_stored: bool = False

    def read_at(self, offset: int, size: int) -> bytes:
        data = os.pread(self.file.fileno(), size, offset)
        if len(data) != size:
            raise OSError(f"{self.path} gave {len(data)} bytes at {offset}, expected {size}")
        return data


class Spool:
    """The segments under way, oldest first. limit_bytes: of WAL, over all of them."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._segments: deque[SpooledSegment] = deque()
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            for one in self._segments:
                one.file.close()
            self._segments.clear()
        for path in self._folder.iterdir():
            path.unlink(missing_ok=True)

    def append(self, timeline: int, start: Lsn, data: bytes, segment_bytes: int) -> None:
        """Take WAL that follows on what was taken. Raises HostFailed for a full disk."""
        with host_errors(self._folder):
            while data:
                segment = Segment.at(timeline, start, segment_bytes)
                one = self._open(segment)
                offset = start - segment.start
                piece = data[: segment_bytes - offset]
                os.pwrite(one.file.fileno(), piece, offset)
                one.received = offset + len(piece)
                start, data = start + len(piece), data[len(piece) :]

    def _open(self, segment: Segment) -> SpooledSegment:
        with self._lock:
            if self._segments and self._segments[-1].segment == segment:
                return self._segments[-1]
            path = self._folder / segment.name
            self._segments.append(SpooledSegment(segment, path, FileIO(path, "w+")))
            return self._segments[-1]

    def begin(self, segment: Segment, chunks: tuple[Chunk, ...], *, is_stored: bool) -> None:
        """Expect a segment of which the repository holds something: it is compared before anything is added."""
        one = self._open(segment)
        one.unread, one.is_stored = list(chunks), is_stored

    def segments(self) -> Iterator[SpooledSegment]:
        """Yield what is under way, oldest first, as it stands now."""
        with self._lock:
            listed = list(self._segments)
        yield from listed

    def drop(self, one: SpooledSegment) -> None:
        """Remove a segment that is stored whole."""
        with self._lock:
            self._segments.remove(one)
        one.file.close()
        one.path.unlink(missing_ok=True)

    @property
    def size_bytes(self) -> int:
        return sum(one.received for one in self.segments())

    @property
    def is_full(self) -> bool:
        return self.size_bytes >= self._limit_bytes
