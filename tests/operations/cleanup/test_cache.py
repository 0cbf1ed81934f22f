"""Idle keys of a real Redis: only those of the patterns, only those still idle, and only where idle time is kept."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from synapse_ops.domain.cleanup.cache import Level, compile_pattern
from synapse_ops.errors import ConfigError, PlanChanged, Refused, Unreachable
from synapse_ops.local.servers.redis import find_redis
from synapse_ops.operations.cleanup.cache import apply_cache_plan, make_cache_plan, read_redis_findings
from synapse_ops.operations.cleanup.plan_file import FIRST_ROWS, PlanWriter
from synapse_ops.spec import SecretRef, Spec
from synapse_ops.systems.host.processes import free_ports

START_TIMEOUT_S = 20.0
IDLE_TIMEOUT_S = 20.0
PASSWORD = "tests-only"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    """A Redis of this module's own."""
    [port] = free_ports(1)
    folder = tmp_path_factory.mktemp("redis")
    arguments = f"--port {port} --bind 127.0.0.1 --save '' --maxmemory 64mb --maxmemory-policy allkeys-lru"
    argv = [str(find_redis()), *arguments.replace("''", "").split(), "--requirepass", PASSWORD, "--dir", str(folder)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    client = redis.Redis(port=port, password=PASSWORD)
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            client.ping()
            break
        except redis.exceptions.ConnectionError:
            assert time.monotonic() < deadline, "Redis did not start"
            time.sleep(0.02)
    yield client
    process.terminate()
    process.wait(START_TIMEOUT_S)


@pytest.fixture
def spec(server: redis.Redis, tmp_path: Path) -> Spec:
    """A spec of that server, keys idle for a second go; the server is empty and as it was configured."""
    server.flushall()
    server.config_set("maxmemory-policy", "allkeys-lru")
    secret = tmp_path / "password"
    secret.write_text(PASSWORD)
    port = server.connection_pool.connection_kwargs["port"]
    update = {"host": "127.0.0.1", "port": port, "password": SecretRef("file", str(secret))}
    whole = Spec()
    cache = whole.cleanup.cache.model_copy(update={"retention": timedelta(seconds=1)})
    return whole.model_copy(
        update={
            "redis": whole.redis.model_copy(update=update),
            "cleanup": whole.cleanup.model_copy(update={"cache": cache}),
        }
    )


def wait_idle(server: redis.Redis, key: str) -> None:
    deadline = time.monotonic() + IDLE_TIMEOUT_S
    while int(server.object("idletime", key) or 0) < 2:
        assert time.monotonic() < deadline, "the key did not become idle"
        time.sleep(0.05)


def test_idle_keys_of_the_patterns_go_and_one_used_since_the_plan_stays(
    spec: Spec, server: redis.Redis, tmp_path: Path
) -> None:
    """Applying asks again, in the step that removes; keys of other names were never looked at."""
    names = [b"cache:1", b"cache:2", b"cache:gone", b"cache:\xff\n", b"session:1"]
    for name in names:
        server.set(name, "x")
    wait_idle(server, "session:1")
    server.set("cache:new", "x")

    plan = make_cache_plan(spec, tmp_path, datetime.now(UTC))
    server.get("cache:2")
    server.delete("cache:gone")
    outcome = apply_cache_plan(plan.digest, spec, tmp_path, datetime.now(UTC))

    assert plan.totals["deleted"] == 4
    assert set(server.keys()) == {b"cache:2", b"cache:new", b"session:1"}
    assert outcome.done == {"delete": 2}
    assert sorted(row["skipped_because"] for row in outcome.rows) == ["it is gone already", "it was used since"]


def test_a_key_with_a_line_break_is_one_key_and_a_key_of_two_patterns_is_listed_once(
    spec: Spec, server: redis.Redis, tmp_path: Path
) -> None:
    """Pages come as lines; what lines cannot say comes as a list. A second pattern leaves out what the first listed."""
    names = {f"cache:{number}".encode() for number in range(2500)} | {
        b"cache:a\nb",
        b"cache:\n",
        b'cache:"\\\xfe',
        b"old:1",
    }
    server.mset(dict.fromkeys(names, "x"))
    wait_idle(server, "old:1")
    patterns = spec.cleanup.model_copy(update={"cache_patterns": ("cache:*", "*")})

    plan = make_cache_plan(spec.model_copy(update={"cleanup": patterns}), tmp_path, datetime.now(UTC))

    rows = [json.loads(line) for line in plan.path.read_text().splitlines()[1:-1]]
    assert sorted(row["key"].encode("utf-8", "surrogateescape") for row in rows) == sorted(names)
    assert plan.totals["deleted"] == len(names)


def test_under_an_lfu_policy_a_cleanup_is_refused(spec: Spec, server: redis.Redis, tmp_path: Path) -> None:
    """There is no idle time then; the message says what is kept instead."""
    server.config_set("maxmemory-policy", "allkeys-lfu")

    with pytest.raises(Refused, match="allkeys-lfu"):
        make_cache_plan(spec, tmp_path, datetime.now(UTC))
    assert read_redis_findings(spec)[0].level is Level.FAULT


def test_a_replica_is_refused(spec: Spec, server: redis.Redis, tmp_path: Path) -> None:
    """Keys are removed where they are used."""
    server.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(Refused, match="role is slave"):
            make_cache_plan(spec, tmp_path, datetime.now(UTC))
    finally:
        server.replicaof("NO", "ONE")


def test_a_plan_of_other_patterns_is_refused(spec: Spec, tmp_path: Path) -> None:
    """Only what the spec allows now goes."""
    plan = make_cache_plan(spec, tmp_path, datetime.now(UTC))
    narrower = spec.model_copy(update={"cleanup": spec.cleanup.model_copy(update={"cache_patterns": ("c:*",)})})

    with pytest.raises(PlanChanged, match="patterns"):
        apply_cache_plan(plan.digest, narrower, tmp_path, datetime.now(UTC))


def test_fewer_clients_than_the_application_may_open_is_a_fault(spec: Spec, server: redis.Redis) -> None:
    """maxclients against redis.max_connections, with what Redis and we need in reserve."""
    many = spec.model_copy(update={"redis": spec.redis.model_copy(update={"max_connections": 999_999})})

    assert [row.setting for row in read_redis_findings(many) if row.level is Level.FAULT] == ["maxclients"]
    assert [row for row in read_redis_findings(spec) if row.level in (Level.FAULT, Level.UNKNOWN)] == []


def test_a_wrong_password_and_a_server_that_is_away_are_told_apart(spec: Spec, tmp_path: Path) -> None:
    """One is a fault of settings, the other may pass; the password is in neither message."""
    wrong = tmp_path / "wrong"
    wrong.write_text("not-the-password")
    for update, error in (
        ({"password": SecretRef("file", str(wrong))}, ConfigError),
        ({"port": free_ports(1)[0]}, Unreachable),
    ):
        changed = spec.model_copy(update={"redis": spec.redis.model_copy(update=update)})
        with pytest.raises(error) as caught:
            make_cache_plan(changed, tmp_path, datetime.now(UTC))
        assert "not-the-password" not in str(caught.value)


@given(values=st.lists(st.binary(max_size=4).filter(lambda value: b"\n" not in value), min_size=1, max_size=300))
def test_entries_added_as_lines_are_those_added_one_by_one(values: list[bytes]) -> None:
    """The block written at once has the same bytes, digest and first rows."""
    one_by_one, as_lines = (PlanWriter(io.BytesIO(), hashlib.sha256()) for _ in range(2))
    for value in [*[b"x"] * FIRST_ROWS, *values]:
        one_by_one.add({"action": "delete", "key": value.decode("utf-8", "surrogateescape")}, acts=True)
    as_lines.add_lines({"action": "delete"}, "key", b"\n".join([b"x"] * FIRST_ROWS))
    as_lines.add_lines({"action": "delete"}, "key", b"\n".join(values))

    assert as_lines.digest == one_by_one.digest
    assert as_lines._file.getvalue() == one_by_one._file.getvalue()  # type: ignore[attr-defined]
    assert as_lines.first_rows == one_by_one.first_rows


@given(pattern=st.text(st.sampled_from("ab:*?[]^-\\"), max_size=6), key=st.text(st.sampled_from("ab:^-"), max_size=5))
def test_a_pattern_without_brackets_means_the_same_here_and_to_the_shell(pattern: str, key: str) -> None:
    """No pattern makes the translation fail, and a pattern without special signs matches itself alone."""
    compiled = compile_pattern(pattern)

    if not set(pattern) & set("*?[]\\"):
        assert bool(compiled.fullmatch(key.encode())) == (pattern == key)
