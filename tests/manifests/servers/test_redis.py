"""A real redis-server starts by the rendered command, with the rendered file and a password of any signs."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

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
    [port] = free_ports(1)
    text = json.dumps({"redis": {"port": port, "password": "file:/etc/synapse/redis"}})
    loaded, faults = check_text(text, Path("spec.yaml"))
    assert loaded is not None, faults
    (tmp_path / "redis-password").write_text(f"{password}\n", encoding="utf-8")
    (tmp_path / "redis.conf").write_text(redis_conf(loaded.spec).replace("dir /data", f"dir {tmp_path}"))
    (tmp_path / "redis-server").symlink_to(find_redis())
    _, *arguments = redis_start(loaded.spec, str(tmp_path / "redis.conf"))
    command = [shell, *(argument.replace("/run/secrets", str(tmp_path)) for argument in arguments)]

    with (tmp_path / "log").open("wb") as log:
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        _await_ready(port, password, process, tmp_path / "log")
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port, password=f"{password}x").ping()
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
