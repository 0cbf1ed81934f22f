"""The same outage under Patroni with etcd, as its documentation sets both up: defaults of all timers.

`sh requirements/patroni` installs what this needs. Two faults: `node`, kill -9 of Patroni and its PostgreSQL, as when a
host is lost; `postgres`, kill -9 of PostgreSQL alone, which Patroni may start again where it was.
"""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synapse_ops.manifests.yaml_text import write_yaml
from synapse_ops.systems.host.processes import (
    free_ports,
    make_private_dir,
    processes_in,
    server_identity,
    spawn,
)
from synapse_ops.systems.postgres.programs import PgTools, find_pg_tools, tools_for

TOOLS = Path(__file__).parents[1] / ".synapse-tools"
NAMES = ("a", "b")
START_LIMIT_S = 180.0
FAULTS = ("node", "postgres")


@dataclass
class Cluster:
    """etcd and two nodes. ports: of PostgreSQL and of Patroni's REST API, by name."""

    folder: Path
    tools: PgTools
    etcd_port: int
    ports: dict[str, int]
    api_ports: dict[str, int]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def conninfo(self) -> str:
        hosts, ports = ",".join("127.0.0.1" for _ in NAMES), ",".join(str(self.ports[name]) for name in NAMES)
        return (
            f"host={hosts} port={ports} user=postgres password=tests-only dbname=postgres connect_timeout=2 "
            "target_session_attrs=read-write"
        )

    def start_etcd(self) -> None:
        [peer] = free_ports(1)
        client = f"http://127.0.0.1:{self.etcd_port}"
        options = {
            "name": "e",
            "data-dir": str(self.folder / "etcd"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": f"http://127.0.0.1:{peer}",
            "initial-advertise-peer-urls": f"http://127.0.0.1:{peer}",
            "initial-cluster": f"e=http://127.0.0.1:{peer}",
            "log-level": "error",
        }
        argv = [TOOLS / "bin" / "etcd", *(f"--{name}={value}" for name, value in options.items())]
        self.running["etcd"] = spawn(server_identity(), argv, log_path=self.folder / "etcd.log")

    def start(self, name: str) -> None:
        """Start Patroni of a node."""
        home = make_private_dir(self.folder / name, server_identity())
        address = f"127.0.0.1:{self.ports[name]}"
        access = {role: {"username": user, "password": "tests-only"} for role, user in _ROLES.items()}
        config: dict[str, Any] = {
            "scope": "benchmark",
            "name": name,
            "restapi": {
                "listen": f"127.0.0.1:{self.api_ports[name]}",
                "connect_address": f"127.0.0.1:{self.api_ports[name]}",
            },
            "etcd3": {"host": f"127.0.0.1:{self.etcd_port}"},
            "bootstrap": {
                "dcs": {"postgresql": {"use_pg_rewind": True, "parameters": {"wal_log_hints": "on"}}},
                "initdb": [{"encoding": "UTF8"}, "data-checksums"],
            },
            "postgresql": {
                "listen": address,
                "connect_address": address,
                "data_dir": str(home / "data"),
                "bin_dir": str(self.tools.bin_dir),
                "pgpass": str(home / "pgpass"),
                "authentication": access,
                "parameters": {"unix_socket_directories": str(home), "shared_buffers": "64MB", "max_connections": 60},
                "pg_hba": [f"host {what} all 127.0.0.1/32 scram-sha-256" for what in ("all", "replication")],
            },
        }
        (self.folder / f"{name}.yml").write_text(write_yaml(config))
        argv = [TOOLS / "patroni" / "bin" / "patroni", self.folder / f"{name}.yml"]
        environment = self.tools.environment() | {"HOME": str(home), "LANG": "C.UTF-8"}
        self.running[name] = spawn(
            server_identity(), argv, log_path=self.folder / f"{name}.log", env=environment, cwd=home
        )

    def members(self) -> dict[str, dict[str, Any]]:
        for port in self.api_ports.values():
            with (
                suppress(OSError, ValueError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/cluster", timeout=2) as reply,
            ):
                return {one["name"]: one for one in json.load(reply)["members"]}
        return {}

    def await_pair(self) -> str:
        """Return the leader's name once both are well."""
        end_s = time.monotonic() + START_LIMIT_S
        while True:
            found = {name: (one["role"], one["state"]) for name, one in self.members().items()}
            leaders = [name for name, state in found.items() if state == ("leader", "running")]
            if len(leaders) == 1 and ("replica", "streaming") in found.values():
                return leaders[0]
            if time.monotonic() > end_s:
                raise TimeoutError(f"no pair under Patroni: {found}; see {self.folder}")
            time.sleep(0.1)

    def kill(self, name: str, fault: str) -> None:
        if fault == "node":
            self.running[name].kill()
            self.running[name].wait()
        for mark in processes_in(self.folder / name / "data"):
            mark.signal(signal.SIGKILL)

    def stop(self) -> None:
        for name, process in reversed(self.running.items()):
            process.kill()
            process.wait()
            if name in NAMES:
                for mark in processes_in(self.folder / name / "data"):
                    mark.signal(signal.SIGKILL)


_ROLES = {"superuser": "postgres", "replication": "replicator", "rewind": "rewinder"}


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    if not (TOOLS / "bin" / "etcd").exists() or not (TOOLS / "patroni").exists():
        raise SystemExit("error: Patroni and etcd are not there; `sh requirements/patroni` installs them")
    folder = Path(tempfile.mkdtemp(prefix="synapse-bench-patroni-", dir="/var/tmp"))
    identity = server_identity()
    make_private_dir(folder, identity)
    folder.chmod(0o755)
    etcd, *ports = free_ports(5)
    tools = tools_for(identity, find_pg_tools(17), folder / "programs")
    cluster = Cluster(
        folder, tools, etcd, dict(zip(NAMES, ports[:2], strict=True)), dict(zip(NAMES, ports[2:], strict=True))
    )
    try:
        cluster.start_etcd()
        for name in NAMES:
            cluster.start(name)
        cluster.await_pair()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def measure_patroni(rounds: int, new_writer: Callable[[str], Any]) -> None:
    """Print, for each fault, the seconds from the kill to the first acknowledged write by the clients' address."""
    with running_cluster() as cluster:
        for fault in FAULTS:
            writer = new_writer(cluster.conninfo)
            writer.thread.start()
            seconds: list[float] = []
            try:
                for number in range(rounds):
                    leader = cluster.await_pair()
                    seconds.append(_one(cluster, writer, leader, fault))
                    print(f"Patroni, {fault} {number + 1:2} {leader}: {seconds[-1]:.2f} s", flush=True)
                    if fault == "node":
                        cluster.start(leader)
                cluster.await_pair()
            finally:
                writer.stopping.set()
                writer.thread.join()
            print(f"Patroni, {fault}: p50 {statistics.median(seconds):.2f} s, max {max(seconds):.2f} s")
            print(f"acknowledged and not there: {writer.missing()} of {len(writer.acknowledged)}")


def _one(cluster: Cluster, writer: Any, leader: str, fault: str) -> float:
    """Kill once rows are written; return the seconds to the next acknowledged one."""
    count, end_s = len(writer.acknowledged), time.monotonic() + START_LIMIT_S
    while len(writer.acknowledged) < count + 100:
        if time.monotonic() > end_s:
            raise TimeoutError("rows are not written")
        time.sleep(0.02)
    cluster.kill(leader, fault)
    killed_s = time.monotonic()
    while not (later := [at for _, at, _ in writer.acknowledged[count:] if at > killed_s + 0.1]):
        if time.monotonic() > end_s + START_LIMIT_S:
            raise TimeoutError("writes do not go on")
        time.sleep(0.02)
    return float(later[0] - killed_s)
