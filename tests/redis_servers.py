"""Builders for tests of Redis: real servers, data of every type, and a stack over one server."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from synapse_ops.operations.stack import Stack, open_stack
from synapse_ops.systems.host.processes import free_ports
from synapse_ops.systems.redis.program import find_redis
from synapse_ops.systems.s3.store import StoreAccess

START_TIMEOUT_S, STOP_TIMEOUT_S = 20.0, 20.0
PASSWORD = "tests-only"


@dataclass(frozen=True)
class RealRedis:
    """A redis-server on loopback; its password is PASSWORD."""

    port: int
    process: subprocess.Popen[bytes]
    folder: Path

    def client(self, db: int = 0) -> redis.Redis:
        return redis.Redis(port=self.port, password=PASSWORD, db=db)


@contextmanager
def running_redis(folder: Path, *options: str) -> Iterator[RealRedis]:
    """Run a server without a wait before a snapshot; options: as on its command line, later ones win."""
    [port] = free_ports(1)
    argv = [str(find_redis()), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    argv += ["--requirepass", PASSWORD, "--repl-diskless-sync-delay", "0", "--enable-debug-command", "local", *options]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    server = RealRedis(port, process, folder)
    try:
        _await_ready(server)
        yield server
    finally:
        process.kill()
        process.wait(STOP_TIMEOUT_S)


def _await_ready(server: RealRedis) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _answers(server):
        log = (server.folder / "log").read_text()[-1000:]
        assert server.process.poll() is None, f"Redis ended: {log}"
        assert time.monotonic() < deadline, f"Redis did not start: {log}"
        time.sleep(0.02)


def _answers(server: RealRedis) -> bool:
    try:
        server.client().ping()
    except redis.exceptions.BusyLoadingError:
        return True
    except redis.exceptions.ConnectionError:
        return False
    return True


def make_redis_stack(
    folder: Path,
    server: RealRedis,
    bucket_url: str,
    access: StoreAccess,
    *,
    recipients: tuple[str, ...] = (),
    password: str = PASSWORD,
    extra: str = "",
) -> Stack:
    """Return the stack of one Redis and one bucket; its secrets lie in files of `folder`."""
    keys = f"[default]\naws_access_key_id = {access.access_key}\naws_secret_access_key = {access.secret_key}\n"
    for name, text in {"store": keys, "redis-password": password}.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o600)
    spec = folder / "infrastructure.yaml"
    spec.write_text(
        f"""
name: test
redis: {{host: 127.0.0.1, port: {server.port}, password: "file:{folder}/redis-password"}}
object_store: {{endpoint: "{access.endpoint}", credentials: "file:{folder}/store"}}
encryption: {{recipients: [{", ".join(recipients)}]}}
backup:
  database: {{destination: "{bucket_url}database/"}}
  vectors: {{destination: "{bucket_url}vectors/"}}
  redis: {{destination: "{bucket_url}redis/"}}
{extra}
""",
        encoding="utf-8",
    )
    return open_stack(spec, folder)


def fill_every_type(server: RealRedis) -> None:
    """Write keys of every type of Redis's own, small and large enough for every encoding, into three databases."""
    for db in (0, 3, 15):
        client: Any = server.client(db)
        client.set("text", "hällo")
        client.set("number", 42)
        client.set(b"\xff\n\x00", b"\x00" * 300)
        client.set("empty", "")
        client.rpush("list", *range(5))
        client.rpush("long list", *(f"item {n}" * 5 for n in range(3000)))
        client.sadd("set of numbers", *range(100))
        client.sadd("set", *(f"member {n}" for n in range(2000)))
        client.hset("hash", mapping={"a": 1, "b": "two"})
        client.hset("large hash", mapping={f"field {n}": "v" * 100 for n in range(1000)})
        client.zadd("sorted", {"a": 1.5, "b": -3e300, "c": 0.1 + 0.2, "d": float("inf")})
        client.zadd("large sorted", {f"m{n}": n / 7 for n in range(1000)})
        for n in range(150):
            client.xadd("stream", {"n": n, "text": "entry"})
        client.xgroup_create("stream", "readers", 0)
        client.xreadgroup("readers", "one", {"stream": ">"}, count=5)
        client.xgroup_create("empty stream", "readers", 0, mkstream=True)
        client.pfadd("distinct", *range(500))
        client.geoadd("places", (13.4, 52.5, "Berlin"))
        client.set("for a while", "x", ex=3600)
    server.client().function_load("#!lua name=mine\nredis.register_function('one', function() return 1 end)")
