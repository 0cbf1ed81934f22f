"""A real redis-server starts by the rendered command, with the rendered file and a password of any signs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from synapse_ops.manifests.servers.containers import redis_start
from synapse_ops.manifests.servers.redis_and_qdrant import redis_conf
from synapse_ops.spec.loading import check_text
from synapse_ops.systems.host.processes import free_ports
from synapse_ops.systems.redis.program import find_redis

START_LIMIT_S = 20.0


@pytest.mark.parametrize("password", ["plain", "a\"b\\c\\\\ $d `e` 'f' #g &h/", '\\"'])
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_redis_takes_its_password_from_a_file(password: str, shell: str, tmp_path: Path) -> None:
    """Its configuration quotes a text as C does: a sign that is not escaped there would keep it from starting."""
    with rendered_redis(tmp_path, {}, password, shell) as port, pytest.raises(redis.AuthenticationError):
        redis.Redis(port=port, password=f"{password}x").ping()


@pytest.mark.parametrize("is_cache", [True, False])
def test_only_what_is_backed_up_refuses_writes_when_it_cannot_be_saved(is_cache: bool, tmp_path: Path) -> None:
    """A cache that stops because a fork failed, with MISCONF, takes the application down for a snapshot that nobody
    needs.
    """
    backup: dict[str, Any] = {} if is_cache else {"backup": {"redis": {"schedule": "0 1 * * *"}}}
    with rendered_redis(tmp_path, backup) as port:
        client = redis.Redis(port=port, password="plain")
        (tmp_path / "dump.rdb").mkdir()  # nothing can be renamed to it
        with contextlib.suppress(redis.ResponseError):
            client.bgsave()
        ends = time.monotonic() + START_LIMIT_S
        while client.info("persistence")["rdb_last_bgsave_status"] == "ok":  # type: ignore[index]
            assert time.monotonic() < ends
            time.sleep(0.05)

        if is_cache:  # and it ends when it is told to
            assert client.set("key", "value")
        else:
            with pytest.raises(redis.ResponseError, match="MISCONF"):
                client.set("key", "value")
            (tmp_path / "dump.rdb").rmdir()  # what is kept does not end while it cannot be saved


@pytest.mark.parametrize("pods", [1, 10, 400])
def test_every_process_of_the_same_spec_may_connect(pods: int) -> None:
    """Ten pods of four processes and four of the worker are 44 clients; `redis.max_connections` alone made it 42."""
    text = json.dumps({"autoscaling": {"min_replicas": 1, "max_replicas": pods}})
    loaded, faults = check_text(text, Path("spec.yaml"))
    assert loaded is not None, faults
    conf = dict(line.split(maxsplit=1) for line in redis_conf(loaded.spec).splitlines() if line[0] != "#")
    clients = pods * 4 + 2 * 2

    assert int(conf["maxclients"]) >= max(clients, 10) + 32


@contextlib.contextmanager
def rendered_redis(folder: Path, changes: dict[str, Any], password: str = "plain", shell: str = "sh") -> Iterator[int]:
    """Run a redis-server with the rendered file and command until the block ends; its port."""
    [port] = free_ports(1)
    text = json.dumps({"redis": {"port": port, "password": "file:/etc/synapse/redis"}, **changes})
    loaded, faults = check_text(text, Path("spec.yaml"))
    assert loaded is not None, faults
    (folder / "redis-password").write_text(f"{password}\n", encoding="utf-8")
    (folder / "redis.conf").write_text(redis_conf(loaded.spec).replace("dir /data", f"dir {folder}"))
    (folder / "redis-server").symlink_to(find_redis())
    _, *arguments = redis_start(loaded.spec, str(folder / "redis.conf"))
    command = [shell, *(argument.replace("/run/secrets", str(folder)) for argument in arguments)]

    with (folder / "log").open("wb") as log:
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        _await_ready(port, password, process, folder / "log")
        yield port
    finally:
        process.terminate()
        process.wait(START_LIMIT_S)


def _await_ready(port: int, password: str, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + START_LIMIT_S
    while not _answers(port, password):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < ends, log.read_text()
        time.sleep(0.05)


def _answers(port: int, password: str) -> bool:
    try:
        return bool(redis.Redis(port=port, password=password).ping())
    except redis.ConnectionError:  # an AuthenticationError is one, too: it is told by the deadline
        return False
