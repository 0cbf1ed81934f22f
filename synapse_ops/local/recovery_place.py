"""A recovery of the embedded stack: fresh data directories beside the old ones, which are fenced and set aside.

The object store and Dagster's own PostgreSQL are left alone. What is made of a person's data is never removed here.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.progress import Progress, ReportProgress
from synapse_ops.domain.recovery.impact import Node
from synapse_ops.domain.recovery.recovery_record import RecoveryRecord
from synapse_ops.errors import Refused, Unreachable
from synapse_ops.local.embedded_stack import changing_stack, start_stack
from synapse_ops.local.layout import StackLayout, find_layout
from synapse_ops.local.node_control import LocalNode
from synapse_ops.local.servers.databases import APP_DATABASE, APP_USER, REPLICATION_USER, SUPERUSER
from synapse_ops.local.servers.redis import redis_server
from synapse_ops.local.servers.vectors import vector_server
from synapse_ops.local.stack import StackServers
from synapse_ops.operations.failover.ledger import FOLDER as FAILOVER_FOLDER
from synapse_ops.operations.recovery.choice import LATEST
from synapse_ops.operations.recovery.journal import FOLDER
from synapse_ops.operations.recovery.named_servers import INERT, NamedServers
from synapse_ops.operations.recovery.place import Conninfo, RecoveryPlace
from synapse_ops.operations.recovery.restored_stack import CLUSTER, REDIS
from synapse_ops.operations.stack import Stack
from synapse_ops.systems.host.processes import free_ports, give_to, processes_in
from synapse_ops.systems.postgres.connection import connect, postgres_errors
from synapse_ops.systems.postgres.server import PgServer, make_socket_dir

if TYPE_CHECKING:
    from synapse_ops.spec.blocks.stores import Qdrant

MARKER = "synapse.recovered"  # in a restored data directory: of which recovery; it is not set aside by that one
QDRANT = "qdrant"
_MADE_AT_EACH_START = {"redis.conf"}
VALIDATION_LIMIT_S = 60.0
REQUEST_LIMIT_S = 10.0
POLL_S = 0.2


def is_embedded(state_dir: Path) -> bool:
    """Return whether a state directory is of an embedded stack, however much of it is lost: its bucket is there."""
    return (find_layout(state_dir).data / "s3").is_dir()


def place_of(stack: Stack) -> RecoveryPlace:
    """Return what a recovery of a spec works with: the embedded stack of its state directory, or the named servers."""
    if is_embedded(stack.state_dir):
        return EmbeddedRecovery(stack.state_dir, stack.spec.qdrant)
    return NamedServers(stack)


@dataclass(frozen=True)
class EmbeddedRecovery:
    """The embedded stack in a state directory. block: of its spec, as Qdrant is reached in service.

    dies_with_us: what it starts ends with the calling thread, as of `start_stack`.
    """

    state_dir: Path
    block: Qdrant
    dies_with_us: bool = False
    is_embedded: bool = True

    @property
    def layout(self) -> StackLayout:
        return find_layout(self.state_dir)

    def begin(self) -> None:
        with changing_stack(self.state_dir) as servers:
            if servers.store.mark() is None:
                servers.store.begin_start(die_with_parent=self.dies_with_us)
            servers.store.wait_ready()

    def nodes(self) -> tuple[Node, ...]:
        with changing_stack(self.state_dir) as servers:
            found = (servers.databases.primary, servers.databases.standby)
            return tuple(_seen(one) for one in found)

    def folder(self, recovery_id: str) -> Path:
        folder = self.layout.root / FOLDER / recovery_id
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        return folder

    @contextmanager
    def vectors(self, folder: Path) -> Iterator[Qdrant]:
        [port] = free_ports(1)
        server = replace(vector_server(self.layout, port, folder / QDRANT), log_path=folder / "qdrant.log")
        server.stop()  # of a run that was cut
        server.begin_start()
        try:
            server.wait_ready()
            yield self.block.model_copy(update={"host": "127.0.0.1", "port": port, "tls": False, "nodes": ()})
        finally:
            server.stop()

    def name_of(self, collection: str, recovery_id: str) -> str:
        del recovery_id  # its server is new
        return collection

    @contextmanager
    def cluster(self, directory: Path) -> Iterator[Conninfo]:
        """Its roles get the passwords of this stack: those of the source may be lost with it."""
        with changing_stack(self.state_dir) as servers:
            databases = servers.databases
        copy = replace(
            databases.primary,
            data_dir=directory,
            socket_dir=make_socket_dir(directory, self.layout.identity),
            log_path=directory.parent / "cluster.log",
            settings={**databases.primary.settings, **INERT},
            hba=("local all all trust",),
            listen=(),
        )
        copy.stop("immediate")
        copy.start()
        try:
            _set_passwords(copy, databases.passwords)
            yield lambda database: copy.conninfo(database, SUPERUSER)
        finally:
            copy.stop("fast")

    def prepare_redis(self, directory: Path) -> None:
        """Have it write its log of commands: a server that keeps one and finds none begins empty."""
        from redis import Redis

        [port], password = free_ports(1), secrets.token_hex(16)
        with changing_stack(self.state_dir) as servers:
            program = servers.redis.argv[0]
        made = redis_server(
            Path(program), self.layout.identity, directory, directory.parent / "redis.log", port=port, password=password
        )
        server = replace(made, argv=[*made.argv, "--appendonly", "no"])
        server.begin_start()
        try:
            server.wait_ready()
            with Redis("127.0.0.1", port, password=password, socket_timeout=REQUEST_LIMIT_S) as client:
                client.config_set("appendonly", "yes")
                deadline_s = time.monotonic() + VALIDATION_LIMIT_S
                while client.info("persistence")["aof_rewrite_in_progress"] and time.monotonic() < deadline_s:
                    time.sleep(POLL_S)
        finally:
            server.stop()

    def refuse_unless_replaceable(self, record: RecoveryRecord, folder: Path, gone: str) -> None:
        """Raises Refused for a copy of the latest moment beside a primary that has gone on since."""
        del folder, gone  # both nodes are on this host, and are ended here
        with changing_stack(self.state_dir) as servers:
            old = [one for one in servers.databases.roles() if not _is_of(one.data_dir, record.id)]
            running = [one.data_dir.name for one in old if _seen(one).takes_writes]
        if running and record.until == LATEST:
            raise Refused(
                f"{running[0]} takes writes: what it committed since the copy was made would be lost",
                detail="nothing was changed",
                hint="To go back on purpose, name the moment: `synapse-ops recover --plan --until time:...`.",
            )

    def switch(self, record: RecoveryRecord, folder: Path, progress: ReportProgress) -> dict[str, Any]:
        for restored in (folder / CLUSTER, folder / QDRANT, folder / REDIS):
            if restored.exists():
                (restored / MARKER).write_text(f"{record.id}\n", encoding="utf-8")
                if restored.name != QDRANT:
                    give_to(self.layout.identity, restored / MARKER)
        with changing_stack(self.state_dir) as servers:
            _stop_clients(servers)
            databases = servers.databases
            fenced = [self._retire(one, folder, record.id) for one in (databases.primary, databases.standby)]
            set_aside = [_put(self.layout, folder, name, record.id) for name in (CLUSTER, QDRANT, REDIS)]
        states = self.start(progress)
        return {"fenced": fenced, "set_aside": [one for one in set_aside if one], "servers": states}

    def start(self, progress: ReportProgress) -> dict[str, str]:
        progress(Progress("starting the restored servers", 0, None, "servers"))
        running = start_stack(self.state_dir, die_with_us=self.dies_with_us, progress=progress)
        return {name: server.state for name, server in running.state.servers.items()}

    def _retire(self, server: PgServer, folder: Path, recovery_id: str) -> dict[str, Any]:
        """Fence an old node for good, and note what came of it: a switch that is taken up finds nothing left of it."""
        name = server.data_dir.name
        note = folder / f"fenced-{name}.json"
        if not server.data_dir.exists() or _is_of(server.data_dir, recovery_id):
            with suppress(OSError, ValueError):
                return dict(json.loads(note.read_text(encoding="utf-8")))
            found = {"node": name, "killed": 0, "left": 0, "attached": 0, "kept": ""}
        else:
            node = LocalNode(name, server, self.layout.root / FAILOVER_FOLDER / "wal")
            found = node.retire(f"recovery-{recovery_id}")
        note.write_text(json.dumps(found), encoding="utf-8")
        return found

    def validate(self, record: RecoveryRecord) -> dict[str, Any]:
        """By the API of the example: a document is written, read back and found, and every acknowledged one counted."""
        with changing_stack(self.state_dir) as servers:
            base = f"http://127.0.0.1:{servers.ports['api']}"
            databases = servers.databases
        title = f"recovery {record.id}"
        deadline_s, faults = time.monotonic() + VALIDATION_LIMIT_S, list[str]()
        written, write_s = _timed(lambda: _until(deadline_s, base, "/generate", {"prompt": title}))
        _, read_s = _timed(lambda: _until(deadline_s, base, f"/documents/{written['id']}"))
        found, search_s = _timed(lambda: _until(deadline_s, base, f"/search?q={title.replace(' ', '%20')}"))
        if not found["found"]:
            faults.append("the search found nothing")
        with databases.connect(databases.primary, APP_DATABASE) as connection:
            lost = _lost(self.layout, connection)
        return {"write_s": write_s, "read_s": read_s, "search_s": search_s, "lost_writes": lost, "faults": faults}


def _seen(server: PgServer) -> Node:
    name, has_data = server.data_dir.name, (server.data_dir / "global" / "pg_control").exists()
    runs = has_data and server.is_ready()
    return Node(name, runs, runs and not server.is_standby(), has_data, server.fence() or "")


def _set_passwords(server: PgServer, passwords: Any) -> None:
    from psycopg import sql

    wanted = {SUPERUSER: passwords.superuser, APP_USER: passwords.app, REPLICATION_USER: passwords.replication}
    with connect(server.conninfo("postgres", SUPERUSER)) as connection, postgres_errors("the passwords of the roles"):
        for role, password in wanted.items():
            if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
                verifier = connection.pgconn.encrypt_password(
                    password.encode(), role.encode(), b"scram-sha-256"
                ).decode()
                statement = sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier))
                connection.execute(statement)


def _stop_clients(servers: StackServers) -> None:
    """Stop what writes, the watcher first: nothing may fail over, start or store while servers are replaced."""
    for one in (servers.watch, servers.wal, servers.api, servers.redis, servers.qdrant):
        if one is not None:
            one.stop()


def _is_of(data_dir: Path, recovery_id: str) -> bool:
    with suppress(OSError):
        return (data_dir / MARKER).read_text(encoding="utf-8").strip() == recovery_id
    return False


def _put(layout: StackLayout, folder: Path, what: str, recovery_id: str) -> str:
    """Move a restored directory to where its server works; return where the old one is kept, if it held anything.

    A store that is not restored begins empty: the old one's content is of another moment. Safe to repeat.
    """
    place = layout.data / ("db-primary" if what == CLUSTER else what)
    restored, kept = folder / what, place.with_name(f"{place.name}.recovery-{recovery_id}")
    if place.exists() and not kept.exists() and not _is_of(place, recovery_id):
        for mark in processes_in(place):
            raise Unreachable(f"process {mark.pid} works in {place}")
        place.rename(kept)
        with suppress(Refused):
            _remove_if_empty(kept)
    if restored.exists():
        if place.exists():
            _remove_if_empty(place)
        restored.rename(place)
    return str(kept) if kept.exists() else ""


def _remove_if_empty(folder: Path) -> None:
    """Remove what each start makes. Raises Refused for a directory that holds more."""
    more = {one.name for one in folder.iterdir()} - _MADE_AT_EACH_START
    if more:
        raise Refused(
            f"{folder} was made while the recovery stood still: it holds {', '.join(sorted(more)[:5])}",
            hint=f"Nothing was replaced. Move it away, and repeat the command: mv {folder} {folder}.mine",
        )
    shutil.rmtree(folder)


def _timed(call: Any) -> tuple[Any, float]:
    began_s = time.monotonic()
    found = call()
    return found, round(time.monotonic() - began_s, 3)


def _until(deadline_s: float, base: str, path: str, body: dict[str, str] | None = None) -> dict[str, Any]:
    """Return what the application answers, once it does. Raises Unreachable with the last answer."""
    import httpx

    said = ""
    with httpx.Client(base_url=base, timeout=REQUEST_LIMIT_S, trust_env=False) as client:
        while True:
            try:
                reply = client.post(path, json=body) if body is not None else client.get(path)
                if reply.status_code == httpx.codes.OK:
                    return dict(reply.json())
                said = f"{reply.status_code} {reply.text[:200]}"
            except httpx.HTTPError as error:
                said = str(error)
            if time.monotonic() > deadline_s:
                raise Unreachable(f"the application did not answer {path} within {VALIDATION_LIMIT_S:g} s", detail=said)
            time.sleep(POLL_S)


def _lost(layout: StackLayout, connection: Any) -> int | None:
    """Return how many acknowledged documents are not there; None where the application kept no ledger."""
    try:
        lines = (layout.root / "ledger" / "acknowledged.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    wanted = set()
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            body = json.loads(line)
            wanted.add((body["id"], body["sha256"]))
    [exists] = connection.execute("select to_regclass('documents') is not null").fetchone()
    there = set(connection.execute("select id, encode(sha256, 'hex') from documents").fetchall()) if exists else set()
    return len(wanted - there)
