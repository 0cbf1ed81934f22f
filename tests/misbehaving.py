"""One real server that misbehaves by path: what endpoints do in their bad hours. Runs in a thread of its own."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DRIP_S = 0.05
SLOW_S = 1.5


def _reply(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


_BOMB = gzip.compress(bytes(1 << 26)).ljust(65536, b"\0")  # 64 MiB once unpacked
_JSON = "Content-Type: application/json"
_XML = "Content-Type: application/xml"
ANSWERS = {
    "/ok": _reply("200 OK", b'{"status": "ok"}', _JSON),
    "/error-body": _reply("200 OK", b'{"status": "error", "cause": "no database"}', _JSON),
    "/degraded-body": _reply("200 OK", b'{"status": "degraded"}', _JSON),
    "/down": _reply("503 Service Unavailable", b"no database", "Content-Type: text/plain"),
    "/redirect-loop": _reply("302 Found", b"", "Location: /redirect-loop"),
    "/redirect-once": _reply("302 Found", b"", "Location: /ok"),
    "/redirect-to-file": _reply("302 Found", b"", "Location: file:///etc/passwd"),
    "/redirect-elsewhere": _reply("302 Found", b"", "Location: http://localhost/ok"),
    "/redirect-nowhere": _reply("302 Found"),
    "/cut": b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhalf",
    "/garbage": b"SSH-2.0-OpenSSH_9.9\r\n",
    "/nothing": b"",
    "/cut-json": _reply("200 OK", b'{"status": "ok", "result": {"collec', _JSON),
    "/empty-json": _reply("200 OK", b"", _JSON),
    "/page": _reply("200 OK", b"<html>Please sign in.</html>", "Content-Type: text/html"),
    "/no-token": _reply("200 OK", b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>", _XML),
    "/no-date": _reply("200 OK", b"<ListBucketResult></ListBucketResult>", _XML, "Date: the day before"),
}


class MisbehavingServer:
    """HTTP or HTTPS on a free loopback port. asked: how often each path was asked. sent: bytes of endless answers."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.asked: dict[str, int] = {}
        self.sent: dict[str, int] = {}
        self._context = context
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.port = 0

    def url(self, path: str) -> str:
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self.port}{path}"

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        async def listen() -> asyncio.Server:
            return await asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=self._context, backlog=512)

        server = self._loop.run_until_complete(listen())
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            request = await reader.readuntil(b"\r\n\r\n")
            path = request.split(b" ")[1].decode().partition("?")[0]
            self.asked[path] = self.asked.get(path, 0) + 1
            await self._misbehave(path, writer)
            writer.close()

    async def _misbehave(self, path: str, writer: asyncio.StreamWriter) -> None:
        if path.startswith("/hang"):
            await asyncio.sleep(3600)
        elif path == "/drip-body":
            await self._drip(writer, b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x" * 100_000)
        elif path == "/drip-headers":
            await self._drip(writer, b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n" * 10_000)
        elif path == "/endless-body":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                await writer.drain()
        elif path == "/gib-body":
            await self._pour(path, writer, b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n", b"x" * 65536)
        elif path == "/gzip-bomb":
            head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1048576\r\n\r\n"
            await self._pour(path, writer, head, _BOMB, 16)
        elif path == "/huge-header":
            await self._pour(path, writer, b"HTTP/1.1 200 OK\r\nX-A: ", b"x" * 65536)
        elif path == "/reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        elif path == "/slow":
            await asyncio.sleep(SLOW_S)
            writer.write(ANSWERS["/ok"])
        else:
            writer.write(ANSWERS.get(path) or ANSWERS.get(f"/{path.split('/')[1]}", ANSWERS["/ok"]))
            await writer.drain()

    async def _pour(
        self, path: str, writer: asyncio.StreamWriter, head: bytes, block: bytes, times: int = 16384
    ) -> None:
        writer.write(head)
        for _ in range(times):
            writer.write(block)
            await writer.drain()
            self.sent[path] = self.sent.get(path, 0) + len(block)

    async def _drip(self, writer: asyncio.StreamWriter, head: bytes, rest: bytes) -> None:
        writer.write(head)
        for byte in rest:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(DRIP_S)


@contextmanager
def misbehaving(context: ssl.SSLContext | None = None) -> Iterator[MisbehavingServer]:
    """Run a server while the block runs."""
    server = MisbehavingServer(context)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def make_certificate(folder: Path, *, name: str = "127.0.0.1", days: float = 100) -> ssl.SSLContext:
    """Return a server's context with a new self-signed certificate, which is folder/<name>.crt too."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    alternative: x509.GeneralName = x509.DNSName(name)
    with suppress(ValueError):
        alternative = x509.IPAddress(ip_address(name))
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=400))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / f"{name}.crt", folder / f"{name}.key"
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return context
