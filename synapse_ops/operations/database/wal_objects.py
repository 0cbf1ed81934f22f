"""One object of WAL: what it is, then its bytes with zstd, encrypted where asked for.

    skippable zstd frame   magic 184D2A50, length, JSON: which bytes of which segment of which server, and their sha256
    zstd frame             those bytes
    age                    around both, where there are recipients

So `zstd -d` opens it, and a reader knows that it is the object which its key says: swapped, truncated or corrupt ones
are named, for recovery would take them for the end of WAL and open a server with less than was stored.
Equal WAL gives other bytes with another version of zstd, and with age every time: plain bytes are compared.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import zstandard

from synapse_ops.domain.backup.layout import Identity
from synapse_ops.domain.bounded_json import read_json
from synapse_ops.domain.database.wal import Segment
from synapse_ops.domain.database.wal_facts import FORMAT_VERSION
from synapse_ops.errors import ChecksumMismatch, IntegrityError, WrongIdentity
from synapse_ops.systems.encryption import ByteSource, decrypt_stream, encrypt_stream

LEVEL = 1  # 36 ms for 16 MiB; the faster levels below it save a tenth of that
_FRAME = struct.Struct("<II")
_FRAME_MAGIC = 0x184D2A50
_MOST_HEADER_BYTES = 4096
_PIECE_BYTES = 1024 * 1024

ReadAt = Callable[[int, int], bytes]  # offset in the segment, and how many bytes


@dataclass(frozen=True, slots=True)
class WalBytes:
    """Which bytes an object holds: [start, stop) of a segment, as offsets in it."""

    identity: Identity
    segment: Segment
    start: int
    stop: int

    def header(self, sha256: str) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "identity": str(self.identity),
            "segment": self.segment.name,
            "segment_bytes": self.segment.size_bytes,
            "start": self.start,
            "stop": self.stop,
            "sha256": sha256,
        }


def pieces(read_at: ReadAt, start: int, stop: int) -> Iterator[bytes]:
    for offset in range(start, stop, _PIECE_BYTES):
        yield read_at(offset, min(_PIECE_BYTES, stop - offset))


def encode(what: WalBytes, read_at: ReadAt, sink: IO[bytes], recipients: Sequence[str]) -> str:
    """Write the object of some WAL into `sink`; return the sha256 of the plain bytes."""
    digest = hashlib.sha256()
    for piece in pieces(read_at, what.start, what.stop):
        digest.update(piece)
    sha256 = digest.hexdigest()
    source = _Encoded(what, sha256, read_at)
    if recipients:
        encrypt_stream(source, sink, recipients)
    else:
        while data := source.read():
            sink.write(data)
    return sha256


class _Encoded(io.RawIOBase):
    """The object's plain form as a readable stream."""

    def __init__(self, what: WalBytes, sha256: str, read_at: ReadAt) -> None:
        super().__init__()
        self._parts = self._make(what, sha256, read_at)
        self._left = b""

    def _make(self, what: WalBytes, sha256: str, read_at: ReadAt) -> Iterator[bytes]:
        header = json.dumps(what.header(sha256), sort_keys=True, separators=(",", ":")).encode()
        yield _FRAME.pack(_FRAME_MAGIC, len(header)) + header
        size = what.stop - what.start
        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compressobj(size=size)
        for piece in pieces(read_at, what.start, what.stop):
            if data := compressor.compress(piece):
                yield data
        yield compressor.flush()

    def read(self, size: int = -1) -> bytes:
        if not self._left:
            self._left = next(self._parts, b"")
        if size < 0:
            size = len(self._left)
        data, self._left = self._left[:size], self._left[size:]
        return data


def decode(
    source: ByteSource,
    expected: WalBytes,
    sink: IO[bytes],
    *,
    what: str,
    encrypted: bool,
    age_identities: Sequence[str] = (),
) -> str:
    """Write the plain bytes of an object into `sink`, and return their sha256.

    what: names the object in messages. Raises ChecksumMismatch for other bytes than were stored, WrongIdentity for the
    bytes of another place, KeyMissing. What reached `sink` before an error is not to be used.
    """
    plain = _Decoded(expected, sink, what)
    if encrypted:
        decrypt_stream(source, plain, age_identities, what=what)
    else:
        while data := source.read(_PIECE_BYTES):
            plain.write(data)
    return plain.finish()


class _Decoded:
    """Takes the object's plain form in pieces of any size: header, then zstd."""

    def __init__(self, expected: WalBytes, sink: IO[bytes], what: str) -> None:
        self._expected = expected
        self._sink = sink
        self._what = what
        self._head = b""
        self._decompressor: Any = None
        self._digest = hashlib.sha256()
        self._size = 0
        self._sha256 = ""

    def write(self, data: bytes) -> int:
        if self._decompressor is not None:
            self._decompress(data)
            return len(data)
        self._head += data
        if len(self._head) >= _FRAME.size:
            magic, size = _FRAME.unpack_from(self._head)
            if magic != _FRAME_MAGIC or size > _MOST_HEADER_BYTES:
                raise self._damaged(f"it begins with {self._head[:8].hex()}, which is no header")
            if len(self._head) >= _FRAME.size + size:
                self._judge(self._head[_FRAME.size : _FRAME.size + size])
                self._decompressor = zstandard.ZstdDecompressor().decompressobj()
                self._decompress(self._head[_FRAME.size + size :])
        return len(data)

    def _judge(self, header: bytes) -> None:
        try:
            found = read_json(header)
            self._sha256 = str(found["sha256"])
            version = found["format_version"]
        except (ValueError, TypeError, KeyError) as fault:
            raise self._damaged(f"its header cannot be read: {fault!r}") from None
        if version != FORMAT_VERSION:
            raise IntegrityError(f"{self._what} is of version {version}, this reads {FORMAT_VERSION}")
        wanted = self._expected.header(self._sha256)
        if found != wanted:
            differing = [
                f"{name} {found.get(name)}, expected {wanted[name]}"
                for name in wanted
                if found.get(name) != wanted[name]
            ]
            raise WrongIdentity(
                f"{self._what} holds other WAL than its key says: {'; '.join(differing)}",
                hint="Was it copied or swapped?",
            )

    def _decompress(self, data: bytes) -> None:
        wanted = self._expected.stop - self._expected.start
        for start in range(0, len(data), _PIECE_BYTES):
            try:
                plain = self._decompressor.decompress(data[start : start + _PIECE_BYTES])
            except (zstandard.ZstdError, EOFError) as fault:
                raise self._damaged(str(fault)) from None
            self._size += len(plain)
            if self._size > wanted:
                raise self._damaged(f"it holds more than the {wanted} bytes that it is of")
            self._digest.update(plain)
            self._sink.write(plain)

    def finish(self) -> str:
        """Return the sha256 of all; raises ChecksumMismatch unless it is the one of the header, and all has come."""
        wanted, found = self._expected.stop - self._expected.start, self._digest.hexdigest()
        if self._decompressor is None:
            raise self._damaged(f"it has {len(self._head)} bytes, which is less than its header")
        if self._size != wanted or not self._decompressor.eof:
            raise self._damaged(f"it holds {self._size} bytes of {wanted}: it was cut short")
        if found != self._sha256:
            raise self._damaged(f"its plain bytes have sha256 {found}, stored were {self._sha256}")
        return found

    def _damaged(self, why: str) -> ChecksumMismatch:
        return ChecksumMismatch(
            f"{self._what} is not the WAL that was stored: {why}",
            hint="Recovery would end there. Find out what changes stored objects: disk, store or a person.",
        )
