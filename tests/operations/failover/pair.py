"""A primary and its standby as the embedded stack has them, a watcher in this process, a writer that keeps count."""

from __future__ import annotations

import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import psycopg
from psycopg.conninfo import make_conninfo

from synapse_ops.domain.failover.incident import Entry, Incident
from synapse_ops.domain.failover.transitions import State
from synapse_ops.local.credentials import make_certificates
from synapse_ops.local.layout import StackLayout
from synapse_ops.local.node_control import LocalNode
from synapse_ops.local.servers.databases import (
    APP_DATABASE,
    APP_USER,
    SLOT,
    DatabasePasswords,
    DatabaseServers,
    database_servers,
)
from synapse_ops.operations.failover.control import FailoverPlace
from synapse_ops.operations.failover.ledger import Ledger
from synapse_ops.operations.stack import Stack, open_stack
from synapse_ops.services.prober.failover_watch import FailoverWatch
from synapse_ops.systems.host.processes import free_ports, make_private_dir, server_identity
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.server import PgServer, make_socket_dir
from synapse_ops.systems.s3.store import StoreAccess
from tests.servers import servers_dir

NODES = ("db-primary", "db-standby")
PASSWORDS = DatabasePasswords(superuser="super", app="app", replication="replication", ops="ops")
DEADLINE_S = 180.0
Found = TypeVar("Found")


def wait_for(ask: Callable[[], Found], what: str, deadline_s: float = DEADLINE_S) -> Found:
    """Return the first answer that is true."""
    end_s = time.monotonic() + deadline_s
    while True:
        found = ask()
        if found:
            return found
        assert time.monotonic() < end_s, f"after {deadline_s:g} s: {what}"
        time.sleep(0.05)


@dataclass
class Pair:
    """Two nodes by name; either may be the primary."""

    databases: DatabaseServers
    layout: StackLayout
    bucket_url: str
    access: StoreAccess
    addresses: dict[str, str]
    incidents_before: int = 0
    wal: str = 'wal_archiving: "off"'  # of the spec's backup.database

    @property
    def servers(self) -> Mapping[str, PgServer]:
        return {"db-primary": self.databases.primary, "db-standby": self.databases.standby}

    @property
    def ledger(self) -> Ledger:
        return Ledger.of(self.layout.root)

    def primary(self) -> str:
        return self.databases.roles()[0].data_dir.name

    def stack(self, **failover: object) -> Stack:
        """Return the stack of a spec; failover: its block, over values that let every test fail over."""
        block: dict[str, object] = {"cool_down": "0s", "max_per_hour": 60, "timeout": "60s", **failover}
        text = ", ".join(f"{name}: {value}" for name, value in block.items())
        folder = self.layout.root
        folder.joinpath("admin").write_text(
            f"postgresql://postgres:super@127.0.0.1:{self.databases.primary.port}/postgres"
            f"?sslmode=verify-full&sslrootcert={self.layout.authority}"
        )
        folder.joinpath("store").write_text(
            f"[default]\naws_access_key_id = {self.access.access_key}\n"
            f"aws_secret_access_key = {self.access.secret_key}\n"
        )
        for name in ("admin", "store"):
            folder.joinpath(name).chmod(0o600)
        spec = folder / "infrastructure.yaml"
        nodes = ", ".join(f'{name}: "{address}"' for name, address in self.addresses.items())
        spec.write_text(
            f"""
name: tests
database: {{host: 127.0.0.1, port: {self.databases.primary.port}, name: {APP_DATABASE}, user: {APP_USER},
            admin: "file:{folder}/admin", nodes: {{{nodes}}}}}
backup: {{database: {{destination: "{self.bucket_url}", {self.wal}}}}}
object_store: {{endpoint: "{self.access.endpoint}", credentials: "file:{folder}/store"}}
failover: {{{text}}}
"""
        )
        return open_stack(spec, folder)

    def application(self) -> str:
        servers = self.servers
        return make_conninfo(
            host="127.0.0.1,127.0.0.1",
            port=",".join(str(servers[name].port) for name in NODES),
            dbname=APP_DATABASE,
            user=APP_USER,
            password=PASSWORDS.app,
            sslmode="verify-full",
            sslrootcert=str(self.layout.authority),
            target_session_attrs="read-write",
            connect_timeout=2,
        )

    def place(self, here: Collection[str] = NODES) -> FailoverPlace:
        """Return what a watcher works with on the host of these nodes."""
        others = {"db-primary": self.databases.standby, "db-standby": self.databases.primary}
        return FailoverPlace(
            controls={
                name: LocalNode(
                    name, server, self.layout.root / "kept", clone=partial(self.databases.clone, server, others[name])
                )
                for name, server in self.servers.items()
                if name in here
            },
            application=self.application,
            slots=(SLOT,),
        )

    @contextmanager
    def watched(
        self,
        *,
        on_entry: Callable[[Entry], None] = lambda entry: None,
        armed: bool = True,
        here: Collection[str] = NODES,
        **failover: object,
    ) -> Iterator[FailoverWatch]:
        """Run a watcher while the block lasts; armed: begin once it would act; here: nodes that are on its host."""
        stack = self.stack(**failover)
        self.incidents_before = len(self.ledger.incidents())
        watch = FailoverWatch(lambda: stack, self.layout.root, self.place(here), on_entry=on_entry)
        thread = threading.Thread(target=watch.run, name="watch")
        thread.start()
        try:
            if armed:
                wait_for(lambda: watch.unarmed() == "", "the watcher is armed")
            yield watch
        finally:
            watch.stop()
            thread.join(DEADLINE_S)
            assert not thread.is_alive()

    def ended(self) -> Incident:
        """Return the incident of this watcher once it has come to an end."""

        def found() -> Incident | None:
            new = self.ledger.incidents()[self.incidents_before :]
            return new[0] if new and not new[0].is_open else None

        return wait_for(found, f"an incident has ended: {self.ledger.incidents()[-1:]}")

    def rejoined(self, incident: Incident) -> dict[str, object]:
        """Return how the old primary came back, once it did."""
        assert incident.state is State.DONE, incident.facts
        return wait_for(lambda: self.ledger.rejoin(incident.id), "the old primary is back")

    def stop(self) -> None:
        for server in self.servers.values():
            server.stop("immediate")


def one_primary(pair: Pair) -> str:
    """Return the node that takes writes; the other one must not."""
    found = []
    for name, server in pair.servers.items():
        with psycopg.connect(server.conninfo(user="postgres", password="super", host="127.0.0.1")) as connection:
            if connection.execute("select pg_is_in_recovery()").fetchone() == (False,):
                found.append(name)
    assert len(found) == 1, found
    return found[0]


def command_line(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
        return file.read()


@dataclass
class Writer:
    """Writes a row at a time as the application does, and remembers what was acknowledged: number, time, port.

    No number is ever written twice, by whichever writer.
    """

    conninfo: str
    acknowledged: list[tuple[int, float, int]] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def work(self) -> None:
        number = secrets.randbits(40) << 20
        while not self._stopping.is_set():
            with suppress(psycopg.Error), psycopg.connect(self.conninfo, autocommit=True) as connection:
                while not self._stopping.is_set():
                    number += 1
                    row = connection.execute(
                        "insert into ledger values (%s) returning inet_server_port()", [number]
                    ).fetchone()
                    assert row is not None
                    self.acknowledged.append((number, time.monotonic(), row[0]))
                    self._stopping.wait(0.005)

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self.work, name="writer")
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join(DEADLINE_S)

    def missing(self) -> int:
        """Return how many acknowledged rows are gone."""
        with psycopg.connect(self.conninfo) as connection:
            there = {number for (number,) in connection.execute("select n from ledger").fetchall()}
        return len({number for number, _, _ in self.acknowledged} - there)


@contextmanager
def new_pair(tools: PgTools, folder: Path, bucket_url: str, access: StoreAccess) -> Iterator[Pair]:
    """Yield two running servers, the standby streaming from the primary. folder: one that servers can enter."""
    identity = server_identity()
    layout = StackLayout(folder, folder, identity)
    for path in (layout.logs, layout.temp):
        path.mkdir(mode=0o755)
    make_private_dir(layout.data, identity)
    make_certificates(layout.data / "tls", layout.authority, identity, datetime.now(UTC))
    ports = dict(zip(("db-primary", "db-standby", "ops"), free_ports(3), strict=True))
    databases = database_servers(layout, tools, ports, PASSWORDS)
    addresses = {name: f"127.0.0.1:{ports[name]}" for name in NODES}
    pair = Pair(databases, layout, bucket_url, access, addresses)
    try:
        leader = databases.make_leader()
        leader.start()
        databases.prepare_leader(leader)
        with psycopg.connect(pair.application(), autocommit=True) as connection:
            connection.execute("create table ledger (n bigint)")
        follower = databases.make_follower()
        assert follower is not None
        follower.start()
        yield pair
    finally:
        pair.stop()
        for server in pair.servers.values():
            with suppress(OSError):
                make_socket_dir(server.data_dir, identity).rmdir()


@contextmanager
def made_pair(tools: PgTools, bucket: str, access: StoreAccess, name: str) -> Iterator[Pair]:
    """Yield a new pair in a directory of its own, which is removed with it. name: for people who look there."""
    folder = servers_dir(name)
    folder.chmod(0o755)
    with new_pair(tools, folder, f"{bucket}{secrets.token_hex(8)}/database/", access) as found:
        yield found
    shutil.rmtree(folder)


class CutCable:
    """A TCP proxy before a server. `cut`: nothing passes any more, and nobody is told."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._is_cut = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._is_cut.set()

    def mend(self) -> None:
        self._is_cut.clear()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                while self._is_cut.is_set():
                    time.sleep(0.01)
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
