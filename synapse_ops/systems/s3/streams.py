"""Objects as files: a writer that uploads while it is written to, a reader that fetches by ranges; flat memory."""

from __future__ import annotations

import base64
import hashlib
import io
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Protocol, Self

from synapse_ops.systems.s3.records import ObjectInfo, UploadInfo, WrittenObject

PART_BYTES = 8 * 1024 * 1024  # the least S3 takes is 5 MiB; 8 MiB x 4 in flight keeps memory flat and the pipe full
PARTS_IN_FLIGHT = 4
READ_BYTES = 8 * 1024 * 1024  # one streamed GET of a large object costs some stores its whole size in memory


class Uploads(Protocol):
    """What a writer needs of a store."""

    def put_bytes(self, key: str, data: bytes) -> WrittenObject: ...
    def begin_upload(self, key: str) -> str: ...
    def upload_part(self, key: str, upload_id: str, number: int, chunk: bytes) -> dict[str, Any]: ...
    def complete_upload(self, key: str, upload_id: str, parts: list[dict[str, Any]]) -> str: ...
    def abort_upload(self, upload: UploadInfo) -> None: ...


class Ranges(Protocol):
    """What a reader needs of a store."""

    def read_range(self, key: str, start: int, size: int, etag: str) -> bytes: ...


class ObjectWriter(io.RawIOBase):
    """Streams an object into S3: bytes in, parts out, memory flat at PARTS_IN_FLIGHT + 1 parts.

    Use as a context manager and call `complete()` as the last thing; leaving without it aborts the upload, and then
    nothing was ever visible under the key. Part sizes grow so that no object meets the 10,000-part limit.
    """

    def __init__(self, store: Uploads, key: str) -> None:
        super().__init__()
        self._store = store
        self._key = key
        self._buffer = bytearray()
        self._sha256 = hashlib.sha256()
        self.size_bytes = 0
        self._upload_id: str | None = None
        self._pool = ThreadPoolExecutor(PARTS_IN_FLIGHT, thread_name_prefix="s3-part")
        self._pending: list[Future[dict[str, Any]]] = []
        self._parts: list[dict[str, Any]] = []
        self._part_number = 0
        self._completed: WrittenObject | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Take bytes; blocks while PARTS_IN_FLIGHT parts are under way."""
        view = memoryview(data).cast("B")
        self._sha256.update(view)
        self.size_bytes += len(view)
        self._buffer += view
        while len(self._buffer) >= self._part_bytes():
            self._send(self._part_bytes())
        return len(view)

    def _part_bytes(self) -> int:
        # 1,000 parts of each size before it doubles: 8 GiB in 8 MiB parts, 24 GiB with 16 MiB, ... 8 TiB within 10,000
        return PART_BYTES << (self._part_number // 1000)

    def _send(self, size: int) -> None:
        with memoryview(self._buffer) as view:
            chunk = bytes(view[:size])
        del self._buffer[:size]
        if self._upload_id is None:
            self._upload_id = self._store.begin_upload(self._key)
        self._part_number += 1
        if len(self._pending) >= PARTS_IN_FLIGHT:
            self._parts.append(self._pending.pop(0).result())
        self._pending.append(
            self._pool.submit(self._store.upload_part, self._key, self._upload_id, self._part_number, chunk)
        )

    def complete(self) -> WrittenObject:
        """Finish the upload; from here the object exists. Raises what any of its parts raised."""
        if self._upload_id is None:
            self._completed = self._store.put_bytes(self._key, bytes(self._buffer))
            return self._completed
        if self._buffer:
            self._send(len(self._buffer))
        self._parts += [future.result() for future in self._pending]
        self._pending.clear()
        etag = self._store.complete_upload(self._key, self._upload_id, self._parts)
        sha256, checksum = self._sha256.hexdigest(), _whole_checksum(self._parts)
        self._completed = WrittenObject(self._key, self.size_bytes, etag, sha256, checksum)
        return self._completed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release everything; aborts the upload unless it was completed."""
        if self.closed:
            return
        super().close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._completed is None and self._upload_id is not None:
            self._store.abort_upload(UploadInfo(self._key, self._upload_id, datetime.now(UTC)))


def _whole_checksum(parts: list[dict[str, Any]]) -> str:
    """Return the checksum that S3 keeps for an object of these parts; empty where the parts were sent without one.

    Source: Amazon S3 documentation, "Checking object integrity", composite checksums.
    """
    digests = [base64.b64decode(part["ChecksumSHA256"]) for part in parts if "ChecksumSHA256" in part]
    if len(digests) < len(parts):
        return ""
    return f"{base64.b64encode(hashlib.sha256(b''.join(digests)).digest()).decode()}-{len(parts)}"


class ObjectReader(io.RawIOBase):
    """A forward-only binary file over one version of an object, one range read ahead, hashing what passes.

    `sha256` and `read_bytes_total` are of the bytes handed out so far. A version that changes meanwhile raises.
    """

    def __init__(self, store: Ranges, info: ObjectInfo) -> None:
        super().__init__()
        self._store = store
        self.info = info
        self._sha256 = hashlib.sha256()
        self.read_bytes_total = 0
        self._asked = 0
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="s3-range")
        self._ahead: list[Future[bytes]] = []
        self._chunk = memoryview(b"")

    def readable(self) -> bool:
        return True

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def readinto(self, buffer: Any) -> int:
        if not self._chunk:
            self._fill()
        if not self._chunk:
            return 0
        view = memoryview(buffer).cast("B")
        size = min(len(view), len(self._chunk))
        view[:size] = self._chunk[:size]
        self._sha256.update(self._chunk[:size])
        self._chunk = self._chunk[size:]
        self.read_bytes_total += size
        return size

    def _fill(self) -> None:
        while len(self._ahead) < 2 and self._asked < self.info.size_bytes:
            size = min(READ_BYTES, self.info.size_bytes - self._asked)
            arguments = (self.info.key, self._asked, size, self.info.etag)
            self._ahead.append(self._pool.submit(self._store.read_range, *arguments))
            self._asked += size
        if self._ahead:
            self._chunk = memoryview(self._ahead.pop(0).result())

    def close(self) -> None:
        if not self.closed:
            self._pool.shutdown(wait=True, cancel_futures=True)
        super().close()
