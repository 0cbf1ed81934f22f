"""A proxy in front of a real S3 store that fails in the ways stores do, one fault at a time, chosen by the test.

The store's own bytes pass through unchanged, and so do signatures: requests keep the Host that was signed. What is
stored is read past it.
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from synapse_ops.systems.s3.store import StoreAccess

TRICKLE_BYTES_S = 4096
_ERRORS = {
    "throttled": (503, "SlowDown", "Please reduce your request rate."),
    "failed": (500, "InternalError", "We encountered an internal error. Please try again."),
    "error body": (200, "InternalError", "We encountered an internal error. Please try again."),
    "no upload": (404, "NoSuchUpload", "The specified multipart upload does not exist."),
}
FAULTS = ("reset", "silent", "trickle", "throttled", "failed", "error body", "answer lost")


class FaultyStore:
    """fault: one of FAULTS, "no upload", or "" for none. hits: whether it befalls a request, given its method and path.

    reset: as a store that is killed. silent: no answer while that lasts. trickle: some bytes a second each way. error
    body: with status 200. answer lost: the store does what it is asked, and the connection ends.
    befallen: how many requests had a fault.
    """

    def __init__(self, access: StoreAccess) -> None:
        self._behind = urlsplit(access.endpoint or "")
        self.fault = ""
        self.hits: Callable[[str, str], bool] = lambda method, path: True
        self.befallen = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.access = replace(access, endpoint=f"http://127.0.0.1:{self._server.server_port}")
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.fault = ""
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def answer(self) -> None:
                fault = store.fault if store.hits(self.command, self.path) else ""
                store.befallen += bool(fault)
                if fault == "reset":
                    return self.hang_up()
                data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                while fault == store.fault == "silent":
                    time.sleep(0.02)
                if fault == "silent":
                    return self.hang_up()
                if fault in _ERRORS:
                    return self.refuse(*_ERRORS[fault])
                if fault == "trickle":
                    time.sleep(len(data) / TRICKLE_BYTES_S)
                status, headers, body = store.ask(self.command, self.path, self.headers, data)
                if fault == "answer lost":
                    return self.hang_up()
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                pieces = [body[at : at + 512] for at in range(0, len(body), 512)] if fault == "trickle" else [body]
                for piece in pieces:
                    time.sleep(len(piece) / TRICKLE_BYTES_S if fault else 0)
                    self.wfile.write(piece)
                return None

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815 - the base's names

            def refuse(self, status: int, code: str, words: str) -> None:
                body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{words}</Message></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def hang_up(self) -> None:
                """End the connection with a reset, as a process that is killed does."""
                with suppress(OSError):
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's own name
                """Nobody reads it."""

        return Handler

    def ask(
        self, method: str, path: str, headers: http.client.HTTPMessage, data: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return the store's own answer."""
        connection = http.client.HTTPConnection(self._behind.hostname or "", self._behind.port, timeout=60)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            if name.lower() not in {"expect", "connection"}:
                connection.putheader(name, value)
        connection.endheaders(data)
        reply = connection.getresponse()
        body = reply.read()
        told = [(name, value) for name, value in reply.getheaders() if name.lower() not in _OF_A_HOP]
        if method == "HEAD":
            told.append(("Content-Length", reply.getheader("Content-Length") or "0"))
        else:
            told.append(("Content-Length", str(len(body))))
        connection.close()
        return reply.status, told, body


_OF_A_HOP = {"connection", "content-length", "transfer-encoding", "keep-alive"}


@contextmanager
def faulty_store(access: StoreAccess) -> Iterator[FaultyStore]:
    store = FaultyStore(access)
    try:
        yield store
    finally:
        store.close()
