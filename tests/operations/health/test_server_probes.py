"""Each server is asked for what it says of itself: real PostgreSQL, real S3, sockets that hang."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from synapse_ops.domain.health.servers import (
    DiskUse,
    WalPosition,
    judge_disks,
    judge_qdrant,
    judge_redis,
    judge_replication,
    judge_server,
)
from synapse_ops.domain.health.states import ProbeVerdict, State
from synapse_ops.local.servers.redis import find_redis
from synapse_ops.operations.health.asker import Asker
from synapse_ops.operations.health.probes import probes_of
from synapse_ops.operations.health.server_probes import STORE_PREFIX
from synapse_ops.operations.stack import Stack, open_stack
from synapse_ops.systems.postgres.probe import read_facts
from synapse_ops.systems.probe_clients import HttpClients
from synapse_ops.systems.probe_stage import Stage
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.misbehaving import make_certificate
from tests.servers import PostgresServer

TIMEOUT_S = 2.0
LATEST_S = 30.0  # what is silent stays so
READY_TIMEOUT_S = 20.0


def stack_of(folder: Path, more: str) -> Stack:
    spec = folder / "infrastructure.yaml"
    spec.write_text(f"watch: {{timeout: {TIMEOUT_S:g}s}}\nhealth: []\n{more}\n")
    return open_stack(spec, folder)


def ask(stack: Stack, name: str, *, is_asked_again: bool = False) -> ProbeVerdict:
    """Return the verdict of one probe of a stack; asked again, the second one, once the first question has ended."""

    async def run() -> ProbeVerdict:
        clients = HttpClients()
        try:
            [probe] = [probe for probe in probes_of(stack, clients) if probe.name == f"server/{name}"]
            asker = Asker(probe)
            verdict = await asker.ask()
            if is_asked_again:
                end = time.monotonic() + LATEST_S / 2
                verdict = await asker.ask()
                while "still running" in verdict.reason and time.monotonic() < end:
                    await asyncio.sleep(0.05)
                    verdict = await asker.ask()
            return verdict
        finally:
            await clients.close()

    return asyncio.run(run())


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that accepts connections and never says a word, as a stopped server does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield listener.getsockname()[1]


def database(conninfo: str, folder: Path, monkeypatch: pytest.MonkeyPatch, standby: str) -> Stack:
    monkeypatch.setenv("TEST_ADMIN_DSN", conninfo)
    return stack_of(folder, f'database: {{admin: "env:TEST_ADMIN_DSN", nodes: {{db-standby: "{standby}"}}}}')


def test_a_server_is_measured_and_its_trouble_named(
    postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: int
) -> None:
    """Connections, ages, checksum failures; an old slot or transaction would be named."""
    stack = database(postgres_server.conninfo(), tmp_path, monkeypatch, f"127.0.0.1:{silent}")

    verdict = ask(stack, "db-primary")

    assert verdict.state is State.HEALTHY, verdict
    assert verdict.measurements["is_standby"] == 0
    assert verdict.measurements["max_connections"] == 60
    assert verdict.measurements["connections"] >= 1
    assert verdict.measurements["oldest_xid_age"] > 0


def test_a_server_without_standby_is_asked_alone_and_by_a_role_that_is_no_superuser(
    postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a managed server is: nothing is said of replication, and pg_monitor suffices. One that replays is failed."""
    postgres_server.execute("create role managed login password 'tests-only' in role pg_monitor")
    monkeypatch.setenv("TEST_ADMIN_DSN", postgres_server.conninfo(user="managed", password="tests-only"))
    try:
        stack = stack_of(tmp_path, "database: {admin: 'env:TEST_ADMIN_DSN'}\nfailover: {standby: null}")
        names = {probe.name for probe in probes_of(stack, HttpClients())}

        verdict = ask(stack, "db-primary")
        facts = asyncio.run(read_facts(postgres_server.conninfo(user="managed", password="tests-only"), Stage()))
    finally:
        postgres_server.execute("drop role managed")

    assert verdict.state is State.HEALTHY, verdict
    assert names.isdisjoint({"server/replication", "server/db-standby", "server/None"})
    assert judge_server(replace(facts, is_standby=True), is_alone=True).state is State.FAILED
    assert judge_server(replace(facts, is_standby=True)).state is State.HEALTHY


def test_a_silent_standby_does_not_hide_the_primary(
    postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: int
) -> None:
    """Replication without a standby is degraded: writes go on, and nobody could take over."""
    stack = database(postgres_server.conninfo(), tmp_path, monkeypatch, f"127.0.0.1:{silent}")
    began = time.monotonic()

    verdict = ask(stack, "replication")

    assert verdict.state is State.DEGRADED, verdict
    assert "db-standby does not answer" in verdict.reason
    assert verdict.measurements["primaries"] == 1
    assert time.monotonic() - began <= LATEST_S


@pytest.mark.parametrize("name", ["db-standby", "redis", "qdrant", "object-store"])
def test_a_server_that_accepts_and_never_answers_is_failed_in_time(
    tmp_path: Path, silent: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel of a stopped server still accepts connections."""
    monkeypatch.setenv("TEST_SILENT_DSN", f"postgresql://u:p@127.0.0.1:{silent}/x")
    stack = stack_of(
        tmp_path,
        f'database: {{admin: "env:TEST_SILENT_DSN", nodes: {{db-standby: "127.0.0.1:{silent}"}}}}\n'
        f"redis: {{host: 127.0.0.1, port: {silent}}}\nqdrant: {{nodes: ['http://127.0.0.1:{silent}']}}\n"
        f"object_store: {{endpoint: 'http://127.0.0.1:{silent}', credentials: 'file:{_keys(tmp_path)}'}}",
    )
    began = time.monotonic()

    verdict = ask(stack, name)

    assert verdict.state is State.FAILED, verdict
    assert verdict.reason
    assert time.monotonic() - began <= LATEST_S


def _keys(folder: Path) -> Path:
    path = folder / "keys"
    path.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    return path


def test_a_question_to_a_stopped_postgres_ends_in_time(
    postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement that waits for ever, for a lock here, is left behind, and the next question has a new session."""
    stack = database(postgres_server.conninfo(), tmp_path, monkeypatch, "127.0.0.1:1")
    with psycopg.connect(postgres_server.conninfo()) as locking:
        locking.execute("lock table pg_catalog.pg_stat_archiver in access exclusive mode")
        began = time.monotonic()

        verdict = ask(stack, "db-primary", is_asked_again=True)

    assert verdict.state is State.FAILED
    assert "waiting for the answer to a statement" in verdict.reason
    assert time.monotonic() - began <= LATEST_S


def test_the_store_takes_gives_back_and_forgets_an_object(
    tmp_path: Path, bucket_url: str, object_store_access: StoreAccess
) -> None:
    """Under our own prefix, and nothing is left."""
    access = object_store_access
    keys = tmp_path / "keys"
    secret = f"aws_access_key_id = {access.access_key}\naws_secret_access_key = {access.secret_key}\n"
    keys.write_text(f"[default]\n{secret}")
    store = f"object_store: {{endpoint: '{access.endpoint}', credentials: 'file:{keys}'}}\n"
    stack = stack_of(tmp_path, f"{store}backup: {{database: {{destination: '{bucket_url}'}}}}")

    verdict = ask(stack, "object-store")

    assert verdict.state is State.HEALTHY, verdict
    assert abs(verdict.measurements["clock_skew_s"]) < 60
    assert list(ObjectStore(bucket_url, access).list_objects(STORE_PREFIX)) == []

    keys.write_text("[default]\naws_access_key_id = wrong\naws_secret_access_key = wrong\n")
    assert "the store refuses PUT" in ask(stack, "object-store").reason


def test_redis_is_asked_with_its_password(tmp_path: Path) -> None:
    """Role and memory as INFO says them; a wrong password is failed with the field that names it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "password").write_text("tests-only\n")
    argv = [find_redis(), "--port", str(port), "--bind", "127.0.0.1", "--requirepass", "tests-only", "--save", ""]
    process = subprocess.Popen([*argv, "--dir", str(tmp_path)], stdout=subprocess.DEVNULL)
    try:
        stack = stack_of(
            tmp_path, f"redis: {{host: 127.0.0.1, port: {port}, password: 'file:{tmp_path / 'password'}'}}"
        )
        deadline = time.monotonic() + READY_TIMEOUT_S
        while (verdict := ask(stack, "redis")).state is not State.HEALTHY:
            assert time.monotonic() < deadline, verdict
        assert verdict.measurements["used_memory_bytes"] > 0
        (tmp_path / "password").write_text("wrong\n")
        refused = ask(stack, "redis")
    finally:
        process.kill()
        process.wait()

    assert refused.state is State.FAILED
    assert "refuses us" in refused.reason


@pytest.mark.parametrize(("days", "state"), [(100, State.HEALTHY), (5, State.DEGRADED), (-3, State.FAILED)])
def test_a_certificate_is_judged_by_the_days_it_has_left(tmp_path: Path, days: float, state: State) -> None:
    """The file that the spec names; one that ended is failed."""
    make_certificate(tmp_path, days=days)
    stack = stack_of(tmp_path, f"tls: {{cert_file: '{tmp_path / '127.0.0.1.crt'}'}}")

    assert ask(stack, "certificates").state is state


def test_nobody_or_two_who_take_writes_is_a_failure() -> None:
    """Roles are read from the servers, never from the spec: a failover is no fault."""
    primary = WalPosition(False, 1000.0, None, None, 0.0)
    standby = WalPosition(True, 900.0, 1000.0, "streaming", 0.2)
    away = WalPosition(True, 900.0, 1000.0, None, 9.0)

    def state(**nodes: WalPosition | str) -> State:
        return judge_replication(nodes, max_lag_bytes=1 << 20).state

    assert state(a=primary, b=standby) is State.HEALTHY
    assert state(a=standby, b=primary) is State.HEALTHY
    assert state(a=primary, b=primary) is State.FAILED
    assert state(a=standby, b=standby) is State.FAILED
    assert state(a="refused", b=standby) is State.FAILED
    assert state(a=primary, b="refused") is State.DEGRADED
    assert state(a=primary, b=away) is State.DEGRADED
    behind = judge_replication({"a": WalPosition(False, 9e9, None, None, 0.0), "b": standby}, max_lag_bytes=1 << 20)
    assert behind.state is State.DEGRADED
    assert "failover.max_lag_bytes" in behind.reason


def test_a_qdrant_whose_consensus_stopped_is_failed_while_readyz_is_green() -> None:
    """As recorded from a real cluster: /readyz says 200, and every later change is refused."""
    stopped = {
        "status": "enabled",
        "peers": {"1": {}, "2": {}, "3": {}},
        "consensus_thread_status": {
            "consensus_thread_status": "stopped_with_err",
            "err": "Failed to handle committed entries",
        },
    }

    verdict = judge_qdrant(200, stopped)

    assert verdict.state is State.FAILED
    assert "Failed to handle committed entries" in verdict.reason
    assert judge_qdrant(200, {"status": "disabled"}).state is State.HEALTHY
    assert judge_qdrant(503, {"status": "disabled"}).state is State.FAILED


def test_redis_that_will_refuse_writes_is_not_healthy() -> None:
    """Full memory matters only where nothing is evicted."""
    full = {"role": "master", "maxmemory": 100, "used_memory": 95, "maxmemory_policy": "noeviction"}

    assert judge_redis(full).state is State.DEGRADED
    assert judge_redis(full | {"used_memory": 100}).state is State.FAILED
    assert judge_redis(full | {"maxmemory_policy": "allkeys-lru"}).state is State.HEALTHY
    assert judge_redis(full | {"role": "slave", "used_memory": 1}).state is State.DEGRADED


def test_a_disk_is_judged_by_share_and_by_size() -> None:
    """A tenth of a large disk is plenty; a small volume, such as the prober's own of 2 GiB, is not full when empty."""
    gib = 1024**3

    def state(total: int, free: float, inodes: float | None = None) -> State:
        return judge_disks([DiskUse("/data", total * gib, int(free * gib), inodes)]).state

    assert state(10_000, 500) is State.HEALTHY
    assert state(100, 6) is State.DEGRADED
    assert state(100, 4.9) is State.FAILED
    assert state(2, 1.9) is State.HEALTHY
    assert state(2, 0.15) is State.DEGRADED
    assert state(2, 0.09) is State.FAILED
    assert state(100, 50, 0.01) is State.DEGRADED


def test_verdicts_can_be_written_down(tmp_path: Path) -> None:
    """Measurements are numbers, so that history and /metrics take them."""
    verdict = ask(stack_of(tmp_path, ""), "disk")

    assert json.loads(json.dumps(dict(verdict.measurements)))["free_bytes"] > 0
