"""WAL that has arrived and is not all in the store yet: one file for each segment, read and written by position.

It is no second copy to rely on: nothing in it is acknowledged, and the server has it still until an outage of the
store is longer than the slot keeps WAL. Only then what an earlier session left in it is stored. It is never synced, so
files of an earlier boot are not looked at. It bounds what an outage of the store may take of this host's disk.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Segment
from synapse_ops.domain.database.wal_plan import Chunk
from synapse_ops.errors import WrongIdentity
from synapse_ops.systems.host.errors import host_errors
from synapse_ops.systems.host.process_presence import kernel_boot


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

    def write_at(self, offset: int, data: bytes) -> None:
        """Write all of it: the last bytes of a disk are given by a call that takes a part, and no error."""
        left = memoryview(data)
        while left:
            count = os.pwrite(self.file.fileno(), left, offset)
            left, offset = left[count:], offset + count


class Spool:
    """The segments under way, oldest first. limit_bytes: of WAL, over all of them."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder / (kernel_boot() or secrets.token_hex(8))
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for other in folder.iterdir():
            if other != self._folder:
                shutil.rmtree(other) if other.is_dir() else other.unlink()
        self._limit_bytes = limit_bytes
        self._segments: deque[SpooledSegment] = deque()
        self._lock = threading.Lock()

    def adopt(self, segment_bytes: int) -> list[SpooledSegment]:
        """Take what an earlier session, or process, has left, and return it in order. Nothing of it is judged."""
        with self._lock:
            for one in self._segments:
                one.file.close()
            self._segments.clear()
            for path in sorted(self._folder.iterdir()):
                with suppress(ValueError):  # of a server with other segments
                    segment = Segment.parse(path.name, segment_bytes)
                    self._segments.append(SpooledSegment(segment, path, FileIO(path, "r+"), path.stat().st_size))
            return list(self._segments)

    def clear(self, keep: Collection[Segment] = ()) -> None:
        """Forget everything but these segments."""
        with self._lock:
            for one in [one for one in self._segments if one.segment not in keep]:
                one.file.close()
                self._segments.remove(one)
            names = {segment.name for segment in keep}
        for path in self._folder.iterdir():
            if path.name not in names:
                path.unlink(missing_ok=True)

    def append(self, timeline: int, start: Lsn, data: bytes, segment_bytes: int) -> None:
        """Take WAL that follows on what was taken, or repeats it.

        Raises WrongIdentity for other WAL than was taken at its place, HostFailed for a full disk.
        """
        with host_errors(self._folder):
            while data:
                segment = Segment.at(timeline, start, segment_bytes)
                one = self._open(segment)
                offset = start - segment.start
                piece = data[: segment_bytes - offset]
                known = max(0, min(len(piece), one.received - offset))
                if known and one.read_at(offset, known) != piece[:known]:
                    raise WrongIdentity(
                        f"the server has other WAL at {start} than it had before",
                        hint="Is it a clone, or was it restored from an older copy? Nothing of it is stored.",
                    )
                one.write_at(offset + known, piece[known:])
                one.received = max(one.received, offset + len(piece))
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
        one = next((one for one in self.segments() if one.segment == segment), None) or self._open(segment)
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
    def room_bytes(self) -> int:
        return max(0, self._limit_bytes - self.size_bytes)

    @property
    def is_full(self) -> bool:
        return not self.room_bytes

    def go_on_with(self) -> list[Segment]:
        """Return the segments with which to go on, the best first; empty: everything is stored whole.

        The newest, so that its beginning is compared. Where all of it is here, the server may have it no more.
        """
        with self._lock:
            newest = self._segments[-1] if self._segments else None
        if newest is None:
            return []
        is_whole = newest.received == newest.segment.size_bytes
        return [newest.segment, newest.segment.next()] if is_whole else [newest.segment]
