"""Real servers for tests: PostgreSQL 17 per xdist worker, one SeaweedFS for the whole run. Nothing outlives the run.

Fixtures: `postgres_server`, `fresh_database`, `object_store_access` (of `seaweedfs_access` and `versitygw_access`),
`bucket_url`. All of them are made on first use.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from synapse_ops.errors import Unreachable
from synapse_ops.systems.host.processes import (
    START_TIMEOUT_S,
    free_ports,
    give_to,
    make_private_dir,
    run_as,
    server_identity,
)
from synapse_ops.systems.postgres.programs import PgTools, find_pg_tools, tools_for
from synapse_ops.systems.postgres.server import PgServer, make_socket_dir
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess

SUPERUSER = "postgres"
PASSWORD = "tests-only"


@dataclass(frozen=True)
class PostgresServer:
    """A running PostgreSQL 17 with every setting that backups rely on. conninfo: as superuser, over TCP loopback."""

    server: PgServer

    def conninfo(self, database: str = "postgres", user: str = SUPERUSER, password: str = PASSWORD) -> str:
        return self.server.conninfo(database, user, password=password, host="127.0.0.1")

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run statements outside a transaction."""
        with psycopg.connect(self.conninfo(database), autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[arg-type]


def servers_dir(name: str) -> Path:
    """Return a new folder that servers can enter even when tests run as root (pytest's own are of mode 0700)."""
    identity = server_identity()
    folder = Path("/tmp") / f"synapse-tests-{name}-{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o755)
    if identity is not None:
        make_private_dir(folder, identity)
    return folder


@pytest.fixture(scope="session")
def programs_dir() -> Iterator[Path]:
    """Copies of programs, of this worker's own: made where the servers' user cannot enter the checkout."""
    folder = servers_dir("programs")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server_tools(programs_dir: Path) -> PgTools:
    """PostgreSQL 17's programs, where the servers' user can run them."""
    return tools_for(server_identity(), find_pg_tools(17), programs_dir)


@pytest.fixture(scope="session")
def postgres_server(server_tools: PgTools) -> Iterator[PostgresServer]:
    """A PostgreSQL 17 of this worker's own: checksums, SCRAM over TCP, wal_level logical, room for replicas."""
    with running_postgres(server_tools) as server:
        yield server


@contextmanager
def running_postgres(
    tools: PgTools, *, settings: Mapping[str, object] | None = None, init: Sequence[str] = ()
) -> Iterator[PostgresServer]:
    """Run a server with the settings of `postgres_server`, for what would leave roles or tablespaces on that one.

    settings: in place of those. init: further options of initdb.
    """
    folder = servers_dir("pg")
    [port] = free_ports(1)
    server = PgServer(
        tools=tools,
        identity=server_identity(),
        data_dir=folder / "data",
        socket_dir=make_socket_dir(folder / "data", server_identity()),
        port=port,
        log_path=folder / "postgres.log",
        listen=("127.0.0.1",),
        settings={
            "fsync": False,
            "full_page_writes": True,
            "shared_buffers": "64MB",
            "max_connections": 60,
            "max_wal_senders": 10,
            "wal_level": "logical",
            "max_prepared_transactions": 4,
            **(settings or {}),
        },
        hba=(
            "local all all trust",
            "host all all 127.0.0.1/32 scram-sha-256",
            "host replication all 127.0.0.1/32 scram-sha-256",
        ),
    )
    try:
        server.init(SUPERUSER, PASSWORD, durable=False, extra=init)
        server.start(START_TIMEOUT_S)
        yield PostgresServer(server)
    finally:
        server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(server.socket_dir, ignore_errors=True)


@contextmanager
def running_standby(
    source: PostgresServer, *, settings: Mapping[str, object] | None = None, is_clone: bool = False
) -> Iterator[PostgresServer]:
    """Run a standby that streams from a server. settings: in place of its own. is_clone: it takes writes instead."""
    folder = servers_dir("standby")
    primary = source.server
    [port] = free_ports(1)
    address = source.conninfo()
    server = replace(
        primary,
        data_dir=folder / "data",
        socket_dir=make_socket_dir(folder / "data", server_identity()),
        port=port,
        log_path=folder / "postgres.log",
        settings={
            **primary.settings,
            "primary_conninfo": address,
            "hot_standby": True,
            "wal_keep_size": "64MB",
            **(settings or {}),
        },
        _child=None,
    )
    try:
        command = [primary.tools.path("pg_basebackup"), "-d", address, "-D", server.data_dir]
        command += ["-X", "stream", "--checkpoint=fast", "--no-sync"]
        run_as(server.identity, command, timeout_s=60, env=primary.tools.environment())
        if not is_clone:
            signal_file = server.data_dir / "standby.signal"
            signal_file.touch(mode=0o600)
            give_to(server.identity, signal_file)
        server.start()
        if is_clone:
            server.wait_recovered(START_TIMEOUT_S)
        yield PostgresServer(server)
    finally:
        server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(server.socket_dir, ignore_errors=True)


@pytest.fixture
def fresh_database(postgres_server: PostgresServer) -> Iterator[Callable[..., str]]:
    """Call it for the conninfo of a new empty database; every one made is dropped after the test.

    name: the database's own name where the test cares for it; must be free on this worker's server.
    """
    made: list[str] = []

    def make(name: str | None = None, *, template: str = "template0") -> str:
        chosen = name or f"test_{secrets.token_hex(6)}"
        with psycopg.connect(postgres_server.conninfo(), autocommit=True) as connection:
            statement = sql.SQL("create database {} template {}")
            connection.execute(statement.format(sql.Identifier(chosen), sql.Identifier(template)))
        made.append(chosen)
        return postgres_server.conninfo(chosen)

    yield make
    with psycopg.connect(postgres_server.conninfo(), autocommit=True) as connection:
        for name in made:
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def object_store_access(request: pytest.FixtureRequest) -> StoreAccess:
    """The store that repositories of tests lie in: SeaweedFS, or what SYNAPSE_TEST_STORE names."""
    access: StoreAccess = request.getfixturevalue(os.environ.get("SYNAPSE_TEST_STORE", "seaweedfs") + "_access")
    return access


@pytest.fixture(scope="session")
def seaweedfs_access(seaweedfs_accesses: tuple[StoreAccess, StoreAccess]) -> StoreAccess:
    return seaweedfs_accesses[0]


@pytest.fixture(scope="session")
def reader_access(object_store_access: StoreAccess, seaweedfs_accesses: tuple[StoreAccess, StoreAccess]) -> StoreAccess:
    """Keys of the same store that may only read."""
    if object_store_access != seaweedfs_accesses[0]:
        pytest.skip("only the tests' SeaweedFS has a second identity")
    return seaweedfs_accesses[1]


@pytest.fixture(scope="session")
def seaweedfs_accesses(tmp_path_factory: pytest.TempPathFactory) -> tuple[StoreAccess, StoreAccess]:
    """The one SeaweedFS of this test run, all workers included; it ends with the run, even when that is killed.

    Its administrator's keys, and keys that may only read.
    """
    in_worker = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if in_worker else base
    controller = os.getppid() if in_worker else os.getpid()
    description = shared / "object-store.json"
    with (shared / "object-store.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not description.exists():
            _start_store(description, controller)
    admin, reader = (StoreAccess(**keys) for keys in json.loads(description.read_text()))
    return admin, reader


def _start_store(description: Path, controller: int) -> None:
    log = description.with_suffix(".log")
    with log.open("ab") as output:
        guard = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("store_guard.py")), str(description), str(controller)],
            cwd=Path(__file__).parents[1],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while not description.exists():
        if guard.poll() is not None or time.monotonic() > deadline:
            pytest.fail("SeaweedFS did not start:\n" + log.read_text()[-2000:])
        time.sleep(0.05)


@pytest.fixture(scope="session")
def versitygw_access(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreAccess]:
    """A versitygw of this worker's own; its gaps complement SeaweedFS's."""
    binary = shutil.which("versitygw")
    if binary is None:
        pytest.skip("versitygw is not on PATH; `make test-stores` builds it")
    folder = tmp_path_factory.mktemp("versitygw")
    [port] = free_ports(1)
    access = StoreAccess(endpoint=f"http://127.0.0.1:{port}", access_key="gateway", secret_key=secrets.token_hex(16))
    environment = {**os.environ, "ROOT_ACCESS_KEY": "gateway", "ROOT_SECRET_KEY": str(access.secret_key)}
    argv = [binary, "--port", f"127.0.0.1:{port}", "--quiet", "posix", str(folder)]
    with (folder.parent / "versitygw.log").open("wb") as log:
        server = subprocess.Popen(argv, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(access):
            assert time.monotonic() < deadline, "versitygw did not answer in time"
            time.sleep(0.05)
        yield access
    finally:
        server.terminate()
        server.wait(10)


def _answers(access: StoreAccess) -> bool:
    try:
        ObjectStore("s3://ready-probe/", access).create_bucket()
    except Unreachable:
        return False
    return True


@pytest.fixture(scope="session")
def bucket(object_store_access: StoreAccess) -> str:
    """One bucket for all: SeaweedFS sets volumes aside for each, and runs out of them after fifty."""
    ObjectStore("s3://tests/", object_store_access).create_bucket()
    return "s3://tests/"


@pytest.fixture
def bucket_url(bucket: str) -> str:
    """A fresh prefix."""
    return f"{bucket}{secrets.token_hex(8)}/database/"


def with_database(conninfo: str, database: str) -> str:
    """Return the same conninfo for another database."""
    return make_conninfo(conninfo, dbname=database)
