"""Many small GETs at a tenth of the client's usual work per request, for reading a catalog of 10,000 backups.

One signature and one exchange over a connection that is kept: without request models, endpoint rules, header objects
and hooks, which cost more than the request on a near store. Anything but a plain success of exactly the listed version
goes to `ObjectStore.read_bytes`, which retries and whose errors are ours: this module has no error handling of its own
to get wrong.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import SplitResult, quote, urlsplit

from synapse_ops.systems.request_signature import sign_get

if TYPE_CHECKING:
    from synapse_ops.systems.object_store import ObjectStore

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
MAX_LINE_BYTES = 65536
_PORTS = {"http": 80, "https": 443}


class QuickReader:
    """Reads small objects by key and ETag. Safe to share between threads. Close it, or use it as a context manager."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._idle: list[_Connection] = []  # pop and append are atomic; never more than there are threads
        self.is_usable = True  # one surprising answer (a redirect, a proxy's page) and all reads go the long way

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def read(self, key: str, size_bytes: int, etag: str, *, max_bytes: int) -> bytes:
        """Return the version with this ETag, whole; raises what `ObjectStore.read_bytes` raises."""
        if self.is_usable and size_bytes <= max_bytes:
            data = self._quickly(key, size_bytes, etag)
            if data is not None:
                return data
        return self._store.read_bytes(key, etag=etag, max_bytes=max_bytes)

    def _quickly(self, key: str, size_bytes: int, etag: str) -> bytes | None:
        """Return the bytes, or None where the long way must be taken."""
        try:
            request = self._request(key, etag)
            connection = self._kept() or self._connect()
            status, data = connection.exchange(request, size_bytes)
        except _Ended:  # a kept connection that the store ended meanwhile says nothing about the store
            return None
        except (OSError, ValueError):
            self.is_usable = False
            return None
        if connection.is_open:
            self._idle.append(connection)
        if data is None and status not in {404, 412}:
            self.is_usable = False
        return data

    def _kept(self) -> _Connection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _request(self, key: str, etag: str) -> bytes:
        credentials = self._store.credentials()
        if credentials is None:
            raise ValueError("no credentials to sign with")
        path = f"{self._address.path}/{self._store.bucket}/{quote(self._store.prefix + key, safe='/~')}"
        headers = sign_get(
            path,
            {"host": self._host, "if-match": f'"{etag}"'},
            access_key=credentials.access_key,
            secret_key=credentials.secret_key,
            session_token=credentials.token,
            region=self._store.access.region,
            now=datetime.now(UTC),
        )
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode("ascii")

    @cached_property
    def _address(self) -> SplitResult:
        return urlsplit(self._store.endpoint_url.rstrip("/"))

    @cached_property
    def _host(self) -> str:
        """The Host header: without the scheme's own port, as it is signed."""
        return self._address.netloc.removesuffix(f":{_PORTS[self._address.scheme]}")

    @cached_property
    def _tls(self) -> ssl.SSLContext | None:
        from botocore.httpsession import get_cert_path

        if self._address.scheme != "https":
            return None
        return ssl.create_default_context(cafile=str(self._store.access.ca_file or get_cert_path(True)))

    def _connect(self) -> _Connection:
        from botocore.utils import get_environ_proxies

        if get_environ_proxies(self._store.endpoint_url):
            raise ValueError("a proxy stands between; the client knows how to speak to it")
        host = self._address.hostname or ""
        line = socket.create_connection((host, self._address.port or _PORTS[self._address.scheme]), CONNECT_TIMEOUT_S)
        line.settimeout(READ_TIMEOUT_S)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _Connection(self._tls.wrap_socket(line, server_hostname=host) if self._tls else line)


class _Ended(Exception):
    """The store had ended a connection that was kept."""


class _Connection:
    """One connection that is kept from reply to reply while `is_open`. Used by one thread at a time."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._reply = line.makefile("rb")
        self._is_fresh = True
        self.is_open = True

    def close(self) -> None:
        self.is_open = False
        self._reply.close()
        self._line.close()

    def exchange(self, request: bytes, size_bytes: int) -> tuple[int, bytes | None]:
        """Return the status, and the body of a success with exactly that size; anything else closes.

        Raises OSError, ValueError for what is not HTTP, _Ended when a kept connection had been ended by the store.
        """
        try:
            self._line.sendall(request)
            status, headers = self._read_head()
            data = self._read_body(headers, size_bytes) if status == 200 else None
        except ConnectionError as reason:
            self.close()
            if self._is_fresh:
                raise
            raise _Ended from reason
        except (OSError, ValueError):
            self.close()
            raise
        self._is_fresh = False
        if data is None or headers.get(b"connection") == b"close":
            self.close()
        return status, data

    def _read_body(self, headers: Mapping[bytes, bytes], size_bytes: int) -> bytes | None:
        if headers.get(b"content-length") != b"%d" % size_bytes or b"content-encoding" in headers:
            return None
        data = self._reply.read(size_bytes)
        if len(data) != size_bytes:
            raise ConnectionResetError(f"{len(data)} bytes of {size_bytes}")
        return data

    def _read_head(self) -> tuple[int, dict[bytes, bytes]]:
        """Return the status and the headers, in lower case."""
        first = self._reply.readline(MAX_LINE_BYTES)
        if not first:
            raise ConnectionResetError("no reply")
        headers = {}
        while line := self._reply.readline(MAX_LINE_BYTES).strip():
            name, _, value = line.lower().partition(b":")
            headers[name] = value.strip()
        return int(first.split(b" ", 2)[1]), headers
