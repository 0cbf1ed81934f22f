"""An answer that is cut, or is another program's, is a typed error that names who answered, never a fault of ours."""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from synapse_ops.errors import ConfigError, SynapseOpsError, Unproven, Unreachable
from synapse_ops.systems.alert_outlet import AlertOutlet
from synapse_ops.systems.probe_stage import Stage
from synapse_ops.systems.qdrant.edge import inspect_copy
from synapse_ops.systems.qdrant.server import QdrantServer
from synapse_ops.systems.redis.probe import read_info
from synapse_ops.systems.redis.server import RedisServer
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.misbehaving import MisbehavingServer, misbehaving

TIMEOUT_S = 5.0


@pytest.fixture(scope="module")
def server() -> Iterator[MisbehavingServer]:
    with misbehaving() as running:
        yield running


QDRANT_CALLS: list[Callable[[QdrantServer], object]] = [
    lambda qdrant: qdrant.collections(),
    lambda qdrant: qdrant.collection("documents"),
    lambda qdrant: qdrant.exists("documents"),
    lambda qdrant: qdrant.aliases(),
    lambda qdrant: qdrant.cluster(),
    lambda qdrant: qdrant.shards("documents"),
    lambda qdrant: qdrant.shard_transfers("documents"),
    lambda qdrant: qdrant.peer_id("documents"),
    lambda qdrant: qdrant.list_shard_snapshots("documents", 0),
]


@pytest.mark.parametrize("answer", ["/cut-json", "/empty-json", "/page", "/ok"])
@pytest.mark.parametrize("ask", QDRANT_CALLS)
def test_an_answer_that_is_not_qdrants_is_unreachable(
    server: MisbehavingServer, answer: str, ask: Callable[[QdrantServer], object]
) -> None:
    """JSON that ends early, no JSON at all, a proxy's page, and JSON without the fields: exit 12, may be repeated."""
    with QdrantServer(server.url(answer), timeout_s=TIMEOUT_S) as qdrant, pytest.raises(Unreachable) as caught:
        ask(qdrant)

    assert server.url(answer) in caught.value.message


S3_CALLS: list[tuple[str, Callable[[ObjectStore], object]]] = [
    ("no-token", lambda store: list(store.list_objects())),
    ("no-token", lambda store: store.list_prefixes()),
    ("no-token", lambda store: list(store.list_uploads())),
    ("no-date", lambda store: store.server_time()),
    ("page", lambda store: store.head("x")),
    ("page", lambda store: store.put_bytes("x", b"")),
    ("cut", lambda store: store.read_bytes("x")),
]


@pytest.mark.parametrize(("bucket", "ask"), S3_CALLS)
def test_an_answer_that_is_not_s3s_is_unreachable(
    server: MisbehavingServer, bucket: str, ask: Callable[[ObjectStore], object]
) -> None:
    """A page of a listing without its continuation, an object without ETag, a date that is not one, half a body."""
    access = StoreAccess(endpoint=server.url(""), access_key="key", secret_key="secret")

    with pytest.raises(Unreachable) as caught:
        ask(ObjectStore(f"s3://{bucket}/", access))

    assert f"s3://{bucket}/" in caught.value.message


def test_an_endpoint_that_is_not_a_url_is_a_config_error() -> None:
    """Found out before anything is sent."""
    store = ObjectStore("s3://bucket/", StoreAccess(endpoint="not a url", access_key="key", secret_key="secret"))

    with pytest.raises(ConfigError, match="cannot address s3://bucket/"):
        store.head("x")


class _OddRedis(socketserver.BaseRequestHandler):
    """Greets as Redis does and says OK to everything, but answers INFO with `answer`."""

    answer = b""

    def handle(self) -> None:
        while asked := self.request.recv(65536):
            for command in asked.split(b"*")[1:]:
                words = command.split(b"\r\n")[2::2]
                if words[0].upper() == b"HELLO":
                    self.request.sendall(b"%1\r\n$5\r\nproto\r\n:3\r\n")
                else:
                    self.request.sendall(self.answer if words[0].upper() == b"INFO" else b"+OK\r\n")


@contextmanager
def odd_redis(answer: bytes) -> Iterator[int]:
    handler = type("Handler", (_OddRedis,), {"answer": answer})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.server_address[1]
        running.shutdown()


@pytest.mark.parametrize("answer", [b":1\r\n", b"+OK\r\n", b"*0\r\n", b"$abc\r\n", b"HTTP/1.1 400 Bad\r\n\r\n"])
def test_what_does_not_answer_as_redis_does_is_not_taken_for_one(answer: bytes) -> None:
    """A number, a word or a list for INFO, a length that is not one, another protocol: the address is wrong, exit 2."""
    found: list[SynapseOpsError] = []
    with odd_redis(answer) as port:
        with closing(RedisServer("127.0.0.1", port, 0, password=None, timeout_s=TIMEOUT_S)) as redis:
            with pytest.raises(ConfigError, match="does not speak Redis's protocol") as caught:
                redis.info()
            found.append(caught.value)
        with pytest.raises(ConfigError, match="does not speak Redis's protocol") as caught:
            asyncio.run(read_info("127.0.0.1", port, password=None, timeout_s=TIMEOUT_S, stage=Stage()))
        found.append(caught.value)

    assert all(str(port) in error.message for error in found)


@pytest.mark.parametrize("line", ["5", '{"another": "form"}', "no JSON"])
def test_a_line_that_is_not_the_engines_leaves_a_copy_unproven(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the process of Qdrant's engine prints beside its answer is never a pass, and never a fault of ours."""
    (tmp_path / "sitecustomize.py").write_text(f"print({line!r}, flush=True)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    with pytest.raises(Unproven):
        inspect_copy([], scratch_dir=tmp_path, wanted=None, timeout_s=60.0)


@pytest.mark.parametrize("path", ["/cut", "/garbage", "/nothing"])
def test_alarms_that_are_not_taken_are_unreachable(server: MisbehavingServer, path: str) -> None:
    """Whatever comes back, the sender knows that nothing was taken, and the address is not in the message."""
    with pytest.raises(Unreachable) as caught:
        AlertOutlet("webhook", server.url(path)).post([])

    assert path not in caught.value.render()


def test_an_alert_address_that_is_not_a_url_is_a_config_error() -> None:
    """And it is not repeated: it may hold a token."""
    with pytest.raises(ConfigError) as caught:
        AlertOutlet("webhook", "http://[::1/token").post([])

    assert "token" not in caught.value.render()
