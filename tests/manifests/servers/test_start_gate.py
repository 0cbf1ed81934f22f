"""The rendered start script of a node asks before it starts the server: another primary's timeline is not gone on with.

The script, the prober with its rendered spec, the repository and the data directory are real; the image's entrypoint is
a stand-in that says that it was called. test_postgres.py has the same script with two running nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from synapse_ops.domain.backup.layout import Identity, timeline_end_key
from synapse_ops.domain.database.wal_keys import claim_key
from synapse_ops.errors import Unreachable
from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.manifests.servers.start_gate import PATH
from synapse_ops.operations.failover.start_gate import refusal
from synapse_ops.operations.stack import open_stack
from synapse_ops.services.prober import metrics
from synapse_ops.services.prober.prober import Prober
from synapse_ops.spec.loading import check_text
from synapse_ops.systems.host.processes import free_ports, make_private_dir, server_identity
from synapse_ops.systems.postgres.control_file import control_data, timeline_to_write
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.server import FENCE_MARKER, RECOVERY_SIGNAL, STANDBY_SIGNAL, PgServer
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.servers import servers_dir

LIMIT_S = 60.0
MINE, COPY = "0a0a0a0a", "0b0b0b0b"  # generations


@dataclass
class Gate:
    """A node that does not run, and its rendered start script."""

    node: PgServer
    folder: Path
    store: ObjectStore

    @property
    def script(self) -> Path:
        return self.folder / "start.sh"

    @property
    def identifier(self) -> str:
        return control_data(self.node.data_dir, self.node.tools, self.node.identity)["Database system identifier"]

    def wrote(self, timeline: int, generation: str = MINE) -> None:
        """Have the repository hold a timeline of this server."""
        self.store.put_bytes(claim_key(Identity(self.identifier, generation), timeline), b"{}")

    def started(self, *, until: str, override: bool = False) -> tuple[bool, str]:
        """Run the script until it ends, or says `until`; return whether it came to the server, and what it said."""
        called, told = self.folder / "tmp" / "called", self.folder / "tmp" / "log"
        called.unlink(missing_ok=True)
        environment = {**os.environ, "PGDATA": str(self.node.data_dir), "CALLED": str(called)}
        environment["PATH"] = f"{self.folder / 'bin'}:{self.node.tools.bin_dir}:{os.environ['PATH']}"
        identity = self.node.identity
        user = {} if identity is None else {"user": identity.uid, "group": identity.gid, "extra_groups": []}
        with told.open("wb") as output:
            process = subprocess.Popen(
                ["bash", str(self.script)], env=environment, cwd="/", stdout=output, stderr=output, **user
            )  # type: ignore[call-overload]
        ends = time.monotonic() + LIMIT_S
        try:
            while process.poll() is None and until not in told.read_text():
                assert time.monotonic() < ends, told.read_text()
                time.sleep(0.02)
            if override:
                (self.folder / "tmp" / "start-anyway").touch()
                process.wait(LIMIT_S)
        finally:
            if process.poll() is None:
                process.terminate()
                assert process.wait(LIMIT_S) == 1
        return called.exists(), told.read_text()


@pytest.fixture(scope="module")
def folder(server_tools: PgTools) -> Iterator[Path]:
    folder, identity = servers_dir("rendered-gate"), server_identity()
    node = PgServer(
        server_tools, identity, make_private_dir(folder / "pg", identity) / "data", folder, 5432, folder / "log"
    )
    node.init(durable=False)
    for name in ("bin", "secrets", "tmp"):
        (folder / name).mkdir()
    entrypoint = folder / "bin" / "docker-entrypoint.sh"
    entrypoint.write_text('#!/bin/sh\necho "$@" >"$CALLED"\n')
    for path, mode in ((folder, 0o755), (folder / "bin", 0o755), (entrypoint, 0o755), (folder / "tmp", 0o777)):
        path.chmod(mode)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def prober_port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def rendered(folder: Path, prober_port: int, bucket: str, object_store_access: StoreAccess) -> Path:
    """The rendered script and the prober's rendered spec, with this host's paths and addresses."""
    more = {
        "name": "synapse",
        "watch": {"port": prober_port},
        "object_store": {"endpoint": object_store_access.endpoint},
        "backup": {"database": {"destination": f"{bucket}start-gate/"}},
    }
    loaded, faults = check_text(json.dumps(more), Path("spec.yaml"))
    assert loaded is not None, faults
    documents = render_bundle(loaded.spec).by_path
    nobody = free_ports(1)[0]
    changes = {"/tmp/": f"{folder}/tmp/", "/run/secrets": f"{folder}/secrets", "host: '0.0.0.0'": "host: 127.0.0.1"}
    changes |= {"host=db-standby port=5432": f"host=127.0.0.1 port={nobody}", "ask synapse-ops": "ask 127.0.0.1"}
    for path, name in {
        "docker/start-primary.sh": "start.sh",
        "docker/synapse-ops/infrastructure.yaml": "infrastructure.yaml",
    }.items():
        text = documents[path].text
        for old, new in changes.items():
            text = text.replace(old, new)
        (folder / name).write_text(text)
    (folder / "secrets" / "replication-password").write_text("x\n")
    (folder / "secrets" / "tls.key").write_text("x\n")
    (folder / "secrets" / "object-store-credentials").write_text(
        f"[default]\naws_access_key_id = {object_store_access.access_key}\n"
        f"aws_secret_access_key = {object_store_access.secret_key}\n"
    )
    return folder


@pytest.fixture(scope="module")
def prober(rendered: Path, prober_port: int) -> Iterator[None]:
    """The rendered prober, which answers."""
    command = [sys.executable, "-m", "synapse_ops.services.watch", "--spec", str(rendered / "infrastructure.yaml")]
    process = subprocess.Popen([*command, "--state-dir", str(rendered / "state")], cwd=rendered)
    ends = time.monotonic() + LIMIT_S
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", prober_port), 1):
                break
            assert time.monotonic() < ends
            assert process.poll() is None
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(LIMIT_S)


@pytest.fixture
def gate(rendered: Path, server_tools: PgTools, bucket: str, object_store_access: StoreAccess) -> Iterator[Gate]:
    store = ObjectStore(f"{bucket}start-gate/", object_store_access)
    node = PgServer(server_tools, server_identity(), rendered / "pg" / "data", rendered, 5432, rendered / "log")
    yield Gate(node, rendered, store)
    store.delete([one.key for one in store.list_objects("")])
    for name in (FENCE_MARKER, RECOVERY_SIGNAL, STANDBY_SIGNAL):
        (node.data_dir / name).unlink(missing_ok=True)


@pytest.mark.usefixtures("prober")
def test_a_node_whose_timeline_was_superseded_is_started_by_a_person_only(gate: Gate) -> None:
    """However its container was started. The repository has the WAL of whoever was promoted."""
    gate.wrote(1)
    gate.wrote(2)

    refused = gate.started(until="hint:")
    forced = gate.started(until="hint:", override=True)

    assert not refused[0]
    assert "db-primary does not start as the primary: it would go on writing timeline 1, and the repo" in refused[1]
    assert "of timeline 2" in refused[1]
    assert f"touch {gate.folder}/tmp/start-anyway" in refused[1]
    assert forced[0]
    assert not (gate.folder / "tmp" / "start-anyway").exists()  # for one start


@pytest.mark.usefixtures("prober")
def test_the_node_whose_timeline_is_the_newest_is_started(gate: Gate) -> None:
    """A copy of it that went live elsewhere has another generation, and a new server no WAL at all."""
    called, told = gate.started(until="hint:")
    assert called, told
    gate.wrote(1)
    gate.wrote(5, COPY)
    called, told = gate.started(until="hint:")
    assert called, told
    gate.wrote(1, COPY)  # which of both it is nobody can say
    called, told = gate.started(until="hint:")
    assert called, told


@pytest.mark.usefixtures("prober")
def test_a_claim_to_end_its_timeline_is_one_to_keep_it_stopped(gate: Gate) -> None:
    gate.store.put_bytes(timeline_end_key(gate.identifier, 1), b'{"incident": "20261130T114210Z-3f9a1c"}')
    called, told = gate.started(until="hint:")

    assert not called
    assert "its timeline 1 was ended by incident 20261130T114210Z-3f9a1c" in told


@pytest.mark.usefixtures("prober")
@pytest.mark.parametrize("signal_file", [STANDBY_SIGNAL, RECOVERY_SIGNAL])
def test_who_goes_on_with_no_timeline_is_not_asked(gate: Gate, signal_file: str) -> None:
    gate.wrote(1)
    gate.wrote(2)
    (gate.node.data_dir / signal_file).touch()

    called, told = gate.started(until="hint:")
    assert called, told


def test_a_fenced_node_stays_stopped_whoever_is_away(gate: Gate) -> None:
    gate.node.write_fence("20261130T114210Z-3f9a1c")
    called, told = gate.started(until="hint:")

    assert not called
    assert "it is fenced by incident 20261130T114210Z-3f9a1c" in told


def test_what_nobody_says_is_waited_for(gate: Gate, prober_port: int) -> None:
    """Whoever is away may be what took its place. Nothing but a person's word starts it."""
    script = gate.script.read_text()
    gate.script.write_text(script.replace(f"ask 127.0.0.1 {prober_port}", f"ask 127.0.0.1 {free_ports(1)[0]}"))
    try:
        called, told = gate.started(until="hint:")
    finally:
        gate.script.write_text(script)

    assert not called
    assert f"neither the other node nor the prober at synapse-ops:{prober_port} says" in told


def test_a_store_that_is_away_is_no_answer(gate: Gate, tmp_path: Path) -> None:
    """Else an old primary would start whenever the store has an outage."""
    spec = (gate.folder / "infrastructure.yaml").read_text()
    endpoint = yaml.safe_load(spec)["object_store"]["endpoint"]
    (tmp_path / "spec.yaml").write_text(spec.replace(endpoint, f"http://127.0.0.1:{free_ports(1)[0]}"))

    with pytest.raises(Unreachable):
        refusal(open_stack(tmp_path / "spec.yaml", tmp_path), "db-primary", ("7", 1))


def test_a_store_that_hangs_takes_one_thread_of_the_prober(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node asks every few seconds, and the store's client gives up after minutes."""
    answers, asked = threading.Event(), []

    def hangs(*question: object) -> str:
        asked.append(question)
        answers.wait(LIMIT_S)
        return ""

    monkeypatch.setattr(metrics, "refusal", hangs)
    monkeypatch.setattr(metrics, "GATE_ANSWER_S", 0.05)
    (tmp_path / "spec.yaml").write_text("name: tests\n")
    app = metrics.MetricsApp(Prober(tmp_path / "spec.yaml", tmp_path))
    app.hosts = frozenset({"prober"})

    async def ask(query: str = "node=db-primary&system_identifier=7&timeline=1") -> int:
        told: list[Mapping[str, Any]] = []

        async def send(message: Mapping[str, Any]) -> None:
            told.append(message)

        scope = {"type": "http", "method": "GET", "path": PATH, "query_string": query.encode()}
        await app({**scope, "headers": [(b"host", b"prober")]}, send, send)  # type: ignore[arg-type]
        return int(told[0]["status"])

    async def all_told() -> list[int]:
        told = [await ask() for _ in range(3)]
        answers.set()
        ends = time.monotonic() + LIMIT_S
        while (last := await ask()) != 200:
            await asyncio.sleep(0.01)
            assert time.monotonic() < ends
        return [*told, last, await ask("node=db-primary&timeline=x")]

    assert asyncio.run(all_told()) == [503, 503, 503, 200, 400]
    assert len(asked) == 2


@pytest.mark.usefixtures("prober")
def test_a_node_that_died_right_after_its_promotion_is_started(gate: Gate) -> None:
    """Its control file has the new timeline only as the end of its recovery. The last test with this data directory."""
    node = gate.node
    (node.data_dir / STANDBY_SIGNAL).touch()
    node.start()
    node.wait_ready()
    with psycopg.connect(node.conninfo("postgres", "postgres"), autocommit=True) as connection:
        [(checkpointer,)] = connection.execute(
            "select pid from pg_stat_activity where backend_type = 'checkpointer'"
        ).fetchall()
        os.kill(checkpointer, signal.SIGSTOP)
        connection.execute("select pg_promote()")
    postmaster = node.pid()
    assert postmaster is not None
    for pid in (postmaster, checkpointer):
        os.kill(pid, signal.SIGKILL)
    node.end_orphans()
    control = control_data(node.data_dir, node.tools, node.identity)
    gate.wrote(1)
    gate.wrote(2)

    called, told = gate.started(until="hint:")

    assert called, told
    assert (control["Latest checkpoint's TimeLineID"], timeline_to_write(control)) == ("1", 2)


@pytest.mark.parametrize("failover", [{"standby": None}, {"manager": "external"}], ids=["no standby", "external"])
def test_who_does_not_fail_over_has_no_gate(failover: dict[str, str | None]) -> None:
    """Another manager starts its own nodes, and a single node has nobody who could take its place."""
    loaded, faults = check_text(json.dumps({"failover": failover}), Path("spec.yaml"))
    assert loaded is not None, faults
    documents = render_bundle(loaded.spec).by_path

    for path in ("docker/start-primary.sh", "kubernetes/30-database.yaml", "kubernetes/20-network.yaml"):
        assert "gate" not in documents[path].text.replace("gateway", "")
        assert "pg_controldata" not in documents[path].text
