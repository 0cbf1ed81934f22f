"""Who connects to the prober and says nothing, or half of something, keeps nobody else from its answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest

from synapse_ops.services.prober import connections
from synapse_ops.services.watch import _metrics_server

SILENCE_S = 0.5
WAIT_S = 20.0
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /alerts HTTP/1.1\r\nHost: HOST\r\nAuthorization: Bearer x\r\nContent-Length: 100\r\n\r\nshort"


class _Prober:
    """As much of the prober as its answers need."""

    address = ("127.0.0.1", 0)
    rendered_names = frozenset[str]()

    async def webhook_token(self) -> str:
        return "x"


@contextmanager
def serving() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        server: Any = _metrics_server(_Prober(), listener)  # type: ignore[arg-type]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(WAIT_S)


def answer(port: int, **more: Any) -> int:
    return httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=WAIT_S, **more).status_code


def is_cut(connection: socket.socket) -> bool:
    """Wait until the other side ends a connection; False when it does not."""
    connection.settimeout(WAIT_S)
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def test_more_silent_connections_than_are_kept_refuse_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 silent connections made /metrics answer 503 for as long as they stayed; now the oldest one goes."""
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 8)
    monkeypatch.setattr(connections, "READ_TIMEOUT_S", 10 * WAIT_S)
    with serving() as port, ExitStack() as open_ones:
        silent = [open_ones.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(70)]

        answers = [answer(port) for _ in range(5)]
        oldest_is_cut = is_cut(silent[0])

    assert answers == [200] * 5
    assert oldest_is_cut


@pytest.mark.parametrize("sent", [b"", GET, POST], ids=["silent", "headers", "body"])
def test_half_of_a_request_is_waited_for_shortly(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, half-sent headers and a short body end after the read limit."""
    monkeypatch.setattr(connections, "READ_TIMEOUT_S", SILENCE_S)
    with serving() as port, socket.create_connection(("127.0.0.1", port)) as half:
        half.sendall(sent.replace(b"HOST", b"127.0.0.1:%d" % port))
        began = time.monotonic()

        assert is_cut(half)
        assert time.monotonic() - began >= SILENCE_S / 2
        assert answer(port) == 200


def test_a_request_that_comes_byte_by_byte_has_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not begin the limit anew."""
    monkeypatch.setattr(connections, "READ_TIMEOUT_S", SILENCE_S)
    with serving() as port, socket.create_connection(("127.0.0.1", port)) as slow:
        deadline = time.monotonic() + WAIT_S
        with suppress(ConnectionError):
            while time.monotonic() < deadline:
                slow.sendall(b"X")
                time.sleep(SILENCE_S / 10)

        assert time.monotonic() < deadline


def test_an_upgrade_is_answered_as_a_request() -> None:
    """To websocket it was 500."""
    with serving() as port:
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}

        assert answer(port, headers=upgrade | {"Sec-WebSocket-Key": "eHl6"}) == 200
