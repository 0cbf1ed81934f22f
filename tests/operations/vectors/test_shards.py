"""A node that vanishes while it makes a snapshot is given up in bounded time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from synapse_ops.errors import Unreachable
from synapse_ops.operations.vectors.shards import create_on_node
from synapse_ops.systems.qdrant.http import SOCKET_OPTIONS
from synapse_ops.systems.qdrant.server import QdrantServer

LOST_AFTER_S = 0.5
GIVEN_UP_WITHIN_S = 15.0  # the next poll, on a busy host
HELD_S = 40.0  # the node holds the request for so long, if nothing ends it before
EMPTY = b'{"result": [], "status": "ok"}'


class VanishingNode(ThreadingHTTPServer):
    """Lists no snapshot, takes the request for one, and from then on answers nothing: not that request either."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.has_vanished, self.may_end, self.request_ended = threading.Event(), threading.Event(), threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: VanishingNode

    def do_GET(self) -> None:
        if self.server.has_vanished.is_set():
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(EMPTY)))
        self.end_headers()
        self.wfile.write(EMPTY)

    def do_POST(self) -> None:
        self.server.has_vanished.set()
        self.server.may_end.wait(HELD_S)
        self.server.request_ended.set()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def vanishing_node() -> Iterator[VanishingNode]:
    with VanishingNode() as node:
        thread = threading.Thread(target=node.serve_forever, daemon=True)
        thread.start()
        try:
            yield node
        finally:
            node.may_end.set()
            node.shutdown()
            thread.join(GIVEN_UP_WITHIN_S)


def test_a_request_without_a_limit_ends_when_the_nodes_kernel_no_longer_answers(server: QdrantServer) -> None:
    """Uploads and creations of a restore have no limit of time; without keepalive they would wait for a dead node."""
    with server.stream("/") as response:
        connection = response.extensions["network_stream"].get_extra_info("socket")

        found = [connection.getsockopt(level, option) for level, option, _ in SOCKET_OPTIONS]

    assert found == [value for *_, value in SOCKET_OPTIONS]
    assert found[0] == 1


def test_a_node_that_vanishes_is_given_up_although_its_connection_stays_open() -> None:
    """Without power a node sends no end of the connection: the request for the snapshot never returns."""
    with vanishing_node() as node, QdrantServer(f"http://127.0.0.1:{node.server_port}") as server:
        begun = time.monotonic()

        with pytest.raises(Unreachable):
            create_on_node(server, "documents", 0, lost_after_s=LOST_AFTER_S)

        assert time.monotonic() - begun < GIVEN_UP_WITHIN_S
        assert node.has_vanished.is_set()
        assert not node.request_ended.is_set()
