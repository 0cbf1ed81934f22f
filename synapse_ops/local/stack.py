"""The servers of the embedded stack as one thing: made from a layout, started side by side, stopped in order.

Order of start: SeaweedFS, Redis, Qdrant and `ops` at once; the primary once SeaweedFS was asked whether its timeline
was ended (start_gate.py), at the first start at once as well; the standby once the primary can be cloned or
followed; the application once its database exists; prober and WAL receiver at the end, when their spec is written.
Every process is launched from the calling thread, because the kernel ends a child when the *thread* that forked it
ends; only waiting happens in other threads.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from synapse_ops.errors import Refused, SynapseOpsError
from synapse_ops.local.credentials import make_certificates, now_utc, read_or_make_password
from synapse_ops.local.layout import StackLayout
from synapse_ops.local.servers.api import api_server
from synapse_ops.local.servers.databases import DatabaseServers, stack_databases
from synapse_ops.local.servers.program import ProgramServer
from synapse_ops.local.servers.redis import find_redis, redis_server
from synapse_ops.local.servers.s3 import LISTENERS, SeaweedServer, find_weed
from synapse_ops.local.servers.vectors import vector_server
from synapse_ops.local.servers.wal import wal_server
from synapse_ops.local.servers.watch import watch_server
from synapse_ops.local.start_gate import fence_if_ended
from synapse_ops.systems.host.processes import (
    ProcessMark,
    copy_tree_once,
    free_ports,
    is_port_free,
    processes_in,
    reachable_by,
)
from synapse_ops.systems.postgres.server import PgServer, make_socket_dir
from synapse_ops.systems.s3.store import ObjectStore

BUCKET = "backups"
S3_ACCESS_KEY = "synapse"
TELL = Callable[[str], None]
PORT_NAMES = ("db-primary", "db-standby", "ops", "redis", "qdrant", "api", "watch", "wal", *LISTENERS)
SERVER_NAMES = ("db-primary", "db-standby", "ops", "redis", "qdrant", "s3", "api", "watch", "wal")


Server = PgServer | SeaweedServer | ProgramServer


class Launcher:
    """Lets worker threads launch servers from the thread that `serve` is called in.

    die_with_us: each server ends when that thread ends, however it ends; without it, each runs until it is stopped.
    """

    def __init__(self, *, die_with_us: bool) -> None:
        self._die_with_us = die_with_us
        self._calls: queue.Queue[tuple[Server, Future[None]]] = queue.Queue()
        self._is_over = threading.Event()

    def launch(self, server: Server) -> None:
        """From a worker: start a server unless it runs; raises what its start raised."""
        done: Future[None] = Future()
        self._calls.put((server, done))
        while not self._is_over.is_set():
            if wait([done], timeout=0.1).done:
                return done.result()
        raise CancelledError  # Ctrl-C: no thread takes it up

    def serve(self, futures: list[Future[None]]) -> None:
        """Launch what is asked for until every future is done. Raises none of their errors."""
        try:
            while not all(future.done() for future in futures):
                with suppress(queue.Empty):
                    server, done = self._calls.get(timeout=0.02)
                    self._launch(server, done)
        finally:
            self._is_over.set()

    def _launch(self, server: Server, done: Future[None]) -> None:
        try:
            if server.mark() is None:
                server.begin_start(die_with_parent=self._die_with_us)
        except Exception as error:  # noqa: BLE001 - handed to the thread that asked
            done.set_exception(error)
        else:
            done.set_result(None)


@dataclass
class StackServers:
    """All servers of one layout. Objects only; nothing runs until `start`.

    without: names of servers that this stack does not have; a disposable copy needs only some.
    """

    layout: StackLayout
    ports: dict[str, int]
    databases: DatabaseServers
    store: SeaweedServer
    redis: ProgramServer
    qdrant: ProgramServer
    api: ProgramServer | None
    watch: ProgramServer
    wal: ProgramServer
    without: frozenset[str] = frozenset()

    def postgres(self) -> Mapping[str, PgServer]:
        databases = self.databases
        return {"db-primary": databases.primary, "db-standby": databases.standby, "ops": databases.ops}

    def marks(self) -> dict[str, ProcessMark | None]:
        """Return the living main process of each server, by name, in the order of SERVER_NAMES."""
        found: dict[str, ProcessMark | None] = {name: server.mark() for name, server in self.postgres().items()}
        found["redis"] = self.redis.mark()
        found["qdrant"] = self.qdrant.mark()
        found["s3"] = self.store.mark()
        if self.api is not None:
            found["api"] = self.api.mark()
        found["watch"] = self.watch.mark()
        found["wal"] = self.wal.mark()
        return {name: mark for name, mark in found.items() if name not in self.without}

    def logs(self) -> dict[str, Path]:
        return {name: self.layout.log(name) for name in SERVER_NAMES if name != "api" or self.api is not None}

    def start(self, tell: TELL, *, die_with_us: bool) -> None:
        """Start what does not run, and return when all but the prober is ready. Raises the first error of any server.

        die_with_us: what is started ends when the calling *thread* ends, even by kill -9.
        """
        launcher = Launcher(die_with_us=die_with_us)
        leader_is_over, store_is_over = threading.Event(), threading.Event()

        def start_leader() -> None:
            try:
                leader = self.databases.make_leader()
                fence_if_ended(leader, self.layout, self.store.access, store_is_over)
                if leader.fence() is None:  # else it is a state, which a rejoin or a person ends
                    self._start(launcher, leader)
                    self.databases.prepare_leader(leader)
            finally:
                leader_is_over.set()

        def start_follower() -> None:
            leader_is_over.wait()
            leader, follower = self.databases.roles()
            if not follower.data_dir.exists() and not leader.is_ready():
                raise Refused(f"{follower.data_dir.name} was not made: {leader.data_dir.name} does not run")
            made = self.databases.make_follower()
            if made is not None:  # else it is fenced: a state, which a rejoin ends
                self._start(launcher, made)

        def start_ops() -> None:
            self.databases.make_ops()
            self._start(launcher, self.databases.ops)
            self.databases.prepare_ops()

        def start_store() -> None:
            try:
                self._start(launcher, self.store)
                ObjectStore(f"s3://{BUCKET}/", self.store.access).create_bucket()
            finally:
                store_is_over.set()

        def start_api(api: ProgramServer) -> None:
            leader_is_over.wait()  # its database first
            self._start(launcher, api)

        steps: dict[str, Callable[[], None]] = {
            "s3": start_store,
            "redis": lambda: self._start(launcher, self.redis),
            "ops": start_ops,
            self.databases.roles()[0].data_dir.name: start_leader,
            self.databases.roles()[1].data_dir.name: start_follower,
            "qdrant": lambda: self._start(launcher, self.qdrant),
        }
        if self.api is not None:
            steps["api"] = partial(start_api, self.api)
        with ThreadPoolExecutor(len(steps), thread_name_prefix="start") as pool:
            wanted = {name: step for name, step in steps.items() if name not in self.without}
            futures = [pool.submit(_told, name, step, tell) for name, step in wanted.items()]
            launcher.serve(futures)
        _raise_first(futures)

    def _start(self, launcher: Launcher, server: Server) -> None:
        launcher.launch(server)
        server.wait_ready()

    def start_residents(self, tell: TELL, *, die_with_us: bool) -> None:
        """Start prober and WAL receiver where they do not run: once the spec is written and all servers are up."""
        residents = [one for one in (self.watch, self.wal) if one.name not in self.without]
        for one in residents:
            if one.mark() is None:
                one.begin_start(die_with_parent=die_with_us)
        for one in residents:
            with _telling(one.name, tell):
                one.wait_ready()

    def stop(self, tell: TELL) -> None:
        """Stop everything: clients first, the primary before its standby (it sends the last WAL). Safe to repeat."""
        for one in (self.watch, self.wal):
            with _telling(one.name, tell):
                one.stop()
        if self.api is not None:
            with _telling("api", tell):
                self.api.stop()
        with ThreadPoolExecutor(5, thread_name_prefix="stop") as pool:
            steps: dict[str, Callable[[], None]] = {
                "databases": self._stop_replicated,
                "ops": self.databases.ops.stop,
                "redis": self.redis.stop,
                "qdrant": self.qdrant.stop,
                "s3": self.store.stop,
            }
            futures = [pool.submit(_told, name, step, tell) for name, step in steps.items()]
        _raise_first(futures)

    def _stop_replicated(self) -> None:
        for node in self.databases.roles():
            node.stop()


def _told(name: str, step: Callable[[], None], tell: TELL) -> None:
    with _telling(name, tell):
        step()


@contextmanager
def _telling(name: str, tell: TELL) -> Iterator[None]:
    yield
    tell(name)


def _raise_first(futures: list[Future[None]]) -> None:
    """Raise the errors: one as it is, several as one that lists them."""
    errors = [error for future in futures if (error := future.exception()) is not None]
    ours = [error for error in errors if isinstance(error, SynapseOpsError)]
    for error in errors:
        if not isinstance(error, SynapseOpsError):
            raise error
    if len(ours) == 1:
        raise ours[0]
    if ours:
        first = ours[0]
        first.detail = "\n".join([first.detail, *(f"also: {other.message}" for other in ours[1:])]).strip()
        raise first


def make_stack(
    layout: StackLayout, kept_ports: Mapping[str, int], without: frozenset[str] = frozenset()
) -> StackServers:
    """Return the servers of a layout: passwords, certificates and ports are made where they are missing.

    kept_ports: from the last time; one that a stranger has taken meanwhile is replaced. without: servers that are never
    started; the application then has no vectors, where that is Qdrant.
    """
    identity = layout.identity

    def secret(name: str) -> str:
        return read_or_make_password(layout.secrets, name)

    make_certificates(layout.data / "tls", layout.authority, identity, now_utc())
    ports = _choose_ports(layout, kept_ports)
    store = SeaweedServer(
        weed=_reachable_program(layout, find_weed(), "weed"),
        identity=identity,
        data_dir=layout.data / "s3",
        socket_dir=make_socket_dir(layout.data / "s3", identity),
        log_path=layout.log("s3"),
        ports={name: ports[name] for name in LISTENERS},
        access_key=S3_ACCESS_KEY,
        secret_key=secret("s3.password"),
    )
    redis = redis_server(
        _reachable_program(layout, find_redis(), "redis-server"),
        identity,
        layout.data / "redis",
        layout.log("redis"),
        port=ports["redis"],
        password=secret("redis.password"),
    )
    qdrant = vector_server(layout, ports["qdrant"])
    databases = stack_databases(layout, ports)
    app_password = databases.passwords.app
    nodes = (ports["db-primary"], ports["db-standby"])
    api = api_server(layout, ports["api"], nodes, None if "qdrant" in without else ports["qdrant"], app_password)
    wal = wal_server(layout, ports["wal"])
    return StackServers(layout, ports, databases, store, redis, qdrant, api, watch_server(layout), wal, without)


def _reachable_program(layout: StackLayout, program: Path, name: str) -> Path:
    if reachable_by(layout.identity, program):
        return program
    size = program.stat().st_size
    return copy_tree_once(program, layout.programs / f"{name}-{size}")


def _choose_ports(layout: StackLayout, kept: Mapping[str, int]) -> dict[str, int]:
    """Keep every port that is free or is our own living server's; choose the others anew."""
    ports = {name: kept[name] for name in PORT_NAMES if name in kept and _is_ours(layout, name, kept[name])}
    missing = [name for name in PORT_NAMES if name not in ports]
    spare = [port for port in free_ports(len(missing) + len(ports)) if port not in ports.values()]
    return ports | dict(zip(missing, spare, strict=False))


def _is_ours(layout: StackLayout, name: str, port: int) -> bool:
    return is_port_free(port) or bool(processes_in(layout.data / ("s3" if name in LISTENERS else name)))
