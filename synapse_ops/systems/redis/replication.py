"""An RDB snapshot over the wire: we ask as a replica would, and the server forks and sends its data as one file.

Only a URL is known of the server, so that no file of its host can be copied. We announce that we are not a real replica
(`rdb-only`, Redis 7): then we never count as one, neither for `min-replicas-to-write` nor in what is kept for replicas.
Until the fork the server sends an empty line each second; it waits up to `repl-diskless-sync-delay` (5 s) for others.
The stream ends after the announced length, or at the announced mark of 40 random bytes. Anything else, such
as a connection that ends earlier, is an error: half a file is never accepted as a whole one.
Source: redis.io, PSYNC; what `redis-cli --rdb` does.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from synapse_ops.errors import DeadlineExceeded, IntegrityError, Unreachable
from synapse_ops.systems.redis.server import RedisServer

FORK_TIMEOUT_S = 900.0  # another save may run first; one of 100 GB takes minutes
SILENCE_S = 60.0  # repl-timeout: the server itself gives up on a replica by then
_CHUNK = 1024 * 1024
_MARK_BYTES = 40
_HEADER_BYTES = 9  # REDIS0012


class RdbStream:
    """The file as it comes; `read` returns an empty string at its end and only there.

    replication_id, replication_offset: the point in the server's stream of writes that the file is the state of.
    """

    def __init__(self, address: str, connection: socket.socket) -> None:
        self._address = address
        self._socket = connection
        self._buffer = bytearray()
        self._mark = b""
        self._left = 0
        self._ended = False
        self.replication_id = ""
        self.replication_offset = 0
        self.rdb_version = 0
        self.size_bytes = 0

    def begin(self, parse_error: Any) -> None:
        """Ask for a full copy and return when the server has forked. Raises what `parse_error` makes of a refusal."""
        self._socket.settimeout(SILENCE_S)
        try:
            self._socket.sendall(b"PSYNC ? -1\r\n")
        except OSError as error:
            raise Unreachable(f"lost Redis {self._address}: {error.strerror}") from error
        reply = self._line()
        if reply.startswith(b"-"):
            raise parse_error(reply[1:].decode("utf-8", "replace"))
        words = reply.decode("ascii", "replace").split()
        if len(words) != 3 or words[0] != "+FULLRESYNC" or not words[2].isdecimal():
            raise self._nonsense(reply)
        self.replication_id, self.replication_offset = words[1], int(words[2])
        header = self._line()
        if header.startswith(b"$EOF:") and len(header) == 5 + _MARK_BYTES:
            self._mark = header[5:]
        elif header.startswith(b"$") and header[1:].isdigit():
            self._left = int(header[1:])
        else:
            raise self._nonsense(header)
        while len(self._buffer) < _HEADER_BYTES:
            self._receive()
        if not self._buffer.startswith(b"REDIS") or not self._buffer[5:_HEADER_BYTES].isdigit():
            raise self._nonsense(bytes(self._buffer[:_HEADER_BYTES]))
        self.rdb_version = int(self._buffer[5:_HEADER_BYTES])

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most `size` of them. Raises Unreachable when the connection ends too early."""
        if self._ended:
            return b""
        most = _CHUNK if size < 0 else size
        data = self._read_marked(most) if self._mark else self._read_counted(most)
        self.size_bytes += len(data)
        return data

    def _read_counted(self, most: int) -> bytes:
        if not self._buffer:
            self._receive()
        data = self._take(min(most, self._left))
        self._left -= len(data)
        self._ended = self._left == 0
        return data

    def _read_marked(self, most: int) -> bytes:
        """Hold back what may be the mark; where the mark stands at the end, the file ends before it."""
        while len(self._buffer) <= _MARK_BYTES and not self._buffer.endswith(self._mark):
            self._receive()
        is_last = self._buffer.endswith(self._mark)
        data = self._take(min(most, len(self._buffer) - _MARK_BYTES))
        self._ended = is_last and len(self._buffer) == _MARK_BYTES
        return data

    def _take(self, size: int) -> bytes:
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return data

    def _line(self) -> bytes:
        """Return the next line that is not empty: an empty one means that the server is still there."""
        give_up_at = time.monotonic() + FORK_TIMEOUT_S
        while True:
            end = self._buffer.find(b"\n")
            if end >= 0:
                line = self._take(end + 1).strip()
                if line:
                    return line
            elif time.monotonic() > give_up_at:
                raise DeadlineExceeded(
                    f"Redis {self._address} did not begin its snapshot within {FORK_TIMEOUT_S:g} s",
                    hint="Is another save running, and does it end? INFO persistence shows it.",
                )
            else:
                self._receive()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except TimeoutError:
            raise DeadlineExceeded(
                f"Redis {self._address} sent no snapshot data for {SILENCE_S:g} s", detail=self._progress()
            ) from None
        except OSError as error:
            raise Unreachable(f"lost Redis {self._address}: {error.strerror}", detail=self._progress()) from error
        if not data:
            raise Unreachable(
                f"Redis {self._address} ended the connection before its snapshot was whole",
                detail=self._progress(),
                hint="Did it lack memory to fork, or was it restarted? See its log.",
            )
        self._buffer += data

    def _progress(self) -> str:
        return f"{self.size_bytes + len(self._buffer)} bytes had come"

    def _nonsense(self, reply: bytes) -> IntegrityError:
        return IntegrityError(f"Redis {self._address} answers PSYNC with {reply[:60]!r}, which is not a snapshot")


@contextmanager
def rdb_stream(server: RedisServer) -> Iterator[RdbStream]:
    """Yield the server's data as of now, once it has forked. Leaving the block ends the connection.

    Raises Unreachable, DeadlineExceeded, ConfigError where our user may not replicate, Refused where the server knows
    no PSYNC, IntegrityError for bytes that are not an RDB file.
    """
    from redis.exceptions import NoPermissionError, ResponseError

    with server.as_replica() as connection:
        for words in (("REPLCONF", "capa", "eof"), ("REPLCONF", "rdb-only", "1")):
            connection.send_command(*words)
            try:
                connection.read_response()
            except NoPermissionError:
                raise
            except ResponseError:  # before 7 there is no rdb-only; nothing but the snapshot is read there, either
                continue
        stream = RdbStream(server.address, connection._sock)  # noqa: SLF001 - bulk data is nothing for its parser
        stream.begin(connection._parser.parse_error)  # noqa: SLF001
        yield stream
