"""The three PostgreSQL servers of the embedded stack: primary, streaming standby, and `ops` for Dagster's own storage.

`db-primary` and `db-standby` are names of nodes, not of roles: after a failover the roles are read from the servers.
Nothing here initialises, clones or starts past a fence marker, and a promoted standby is never cloned over.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from synapse_ops.local.credentials import read_or_make_password, write_secret
from synapse_ops.local.layout import StackLayout
from synapse_ops.systems.host.processes import give_to, run_as
from synapse_ops.systems.postgres.connection import postgres_errors
from synapse_ops.systems.postgres.programs import PgTools, find_pg_tools, tools_for
from synapse_ops.systems.postgres.server import STANDBY_SIGNAL, PgServer, make_socket_dir

if TYPE_CHECKING:
    import psycopg

POSTGRES_MAJOR = 17
SUPERUSER = "postgres"
APP_USER = "synapse_user"
APP_DATABASE = "synapse"
REPLICATION_USER = "synapse_replication"
OPS_USER = "dagster"
OPS_DATABASE = "dagster"
SLOT = "db_standby"
CLONE_TIMEOUT_S = 600.0

_COMMON: Mapping[str, object] = {
    "shared_buffers": "64MB",
    "max_connections": 60,
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_checkpoints": False,
    "ssl": True,
    "ssl_min_protocol_version": "TLSv1.2",
}
_REPLICATED: Mapping[str, object] = {
    **_COMMON,
    "wal_level": "replica",
    "wal_log_hints": True,  # pg_rewind needs it, or checksums
    "max_wal_senders": 10,
    "max_replication_slots": 10,
    "max_slot_wal_keep_size": "512MB",  # a dead standby must not fill the primary's disk
    "wal_keep_size": "64MB",
    "max_wal_size": "512MB",
    "wal_retrieve_retry_interval": "200ms",  # at its default of 5 s, half of all promotions took 5 s
    "wal_receiver_timeout": "5s",  # a primary that is silent must not look alive to its standby for a minute
    "hot_standby": True,
    "track_io_timing": True,
}
_HBA = (
    "local all all scram-sha-256",
    "hostssl all all 127.0.0.1/32 scram-sha-256",
    f"hostssl replication {REPLICATION_USER} 127.0.0.1/32 scram-sha-256",
)


@dataclass(frozen=True)
class DatabasePasswords:
    """Passwords by role; never in a repr."""

    superuser: str
    app: str
    replication: str
    ops: str

    def __repr__(self) -> str:
        return "DatabasePasswords(...)"


@dataclass(frozen=True)
class DatabaseServers:
    """The three servers of one layout, and the steps that make them."""

    layout: StackLayout
    passwords: DatabasePasswords
    primary: PgServer
    standby: PgServer
    ops: PgServer

    def roles(self) -> tuple[PgServer, PgServer]:
        """Return the node that takes writes and the one that follows, by their data directories.

        A fenced node never leads, and one with `standby.signal` does not. Where neither is either, the newer timeline
        leads: the other one was left behind by a promotion and has not been rejoined.
        """
        nodes = (self.primary, self.standby)
        leading = [node for node in nodes if node.data_dir.exists() and not node.is_standby() and node.fence() is None]
        if len(leading) == 2:
            leading.sort(key=lambda node: node.control_timeline(), reverse=True)
        leader = leading[0] if leading else next((node for node in nodes if not node.is_standby()), self.primary)
        return leader, self.standby if leader is self.primary else self.primary

    def make_leader(self) -> PgServer:
        """Initialise the first primary's data directory unless there is one; return the node that takes writes."""
        if not self.primary.data_dir.exists() and not self.standby.data_dir.exists():
            self.primary.init(SUPERUSER, self.passwords.superuser)
        return self.roles()[0]

    def make_ops(self) -> None:
        if not self.ops.data_dir.exists():
            self.ops.init(SUPERUSER, self.passwords.superuser)

    @contextmanager
    def connect(self, server: PgServer, database: str = "postgres") -> Iterator[psycopg.Connection[tuple[object, ...]]]:
        """Yield a connection as superuser over the socket, autocommit on; PostgreSQL's errors become ours."""
        import psycopg

        address = server.conninfo(database, SUPERUSER, password=self.passwords.superuser)
        with postgres_errors(f"server {server.data_dir.name} of the embedded stack"):
            connection = psycopg.connect(
                address, autocommit=True, application_name="synapse-ops local", connect_timeout=10
            )
            with connection:
                yield connection

    def prepare_leader(self, leader: PgServer) -> None:
        """Make roles, database and slot where they are missing; only on a server that takes writes. Safe to repeat."""
        with self.connect(leader) as connection:
            if connection.execute("select pg_is_in_recovery()").fetchone() == (True,):
                return
            _make_role(connection, APP_USER, self.passwords.app, "login")
            _make_role(connection, REPLICATION_USER, self.passwords.replication, "login replication")
            _make_database(connection, APP_DATABASE, APP_USER)
            found = connection.execute("select wal_status from pg_replication_slots where slot_name = %s", [SLOT])
            status = found.fetchone()
            if status == ("lost",):
                connection.execute("select pg_drop_replication_slot(%s)", [SLOT])
                self._forget_follower()
            if status is None or status == ("lost",):
                connection.execute("select pg_create_physical_replication_slot(%s, true)", [SLOT])

    def _forget_follower(self) -> None:
        """Remove a standby that lost its slot, for it can never catch up; a promoted or a fenced one stays."""
        follower = self.roles()[1]
        if _follows(follower):
            follower.stop()
            shutil.rmtree(follower.data_dir)

    def make_follower(self) -> PgServer | None:
        """Clone the node that takes writes unless the other one's data directory exists; whole or not at all.

        None: the other one is fenced or was left behind by a promotion. It is no standby until it has been rejoined.
        """
        leader, follower = self.roles()
        self._write_passfile()
        if not follower.data_dir.exists():
            self.clone(follower, leader)
        return follower if _follows(follower) else None

    def clone(self, node: PgServer, source: PgServer) -> None:
        """Make a node's data directory anew as a standby of `source`, whole or not at all."""
        making = node.clear_half_made()
        address = _replication_address(self.layout, source.port)
        command: list[str | Path] = [node.tools.path("pg_basebackup"), "-d", address, "-D", making]
        command += ["-X", "stream", "-S", SLOT, "--checkpoint=fast", "--no-password"]
        run_as(self.layout.identity, command, timeout_s=CLONE_TIMEOUT_S, env=node.tools.environment())
        signal_file = making / STANDBY_SIGNAL
        signal_file.touch(mode=0o600)
        give_to(self.layout.identity, signal_file)  # a base backup of the standby reads it
        making.rename(node.data_dir)

    def _write_passfile(self) -> None:
        line = f"127.0.0.1:*:*:{REPLICATION_USER}:{self.passwords.replication}\n"
        write_secret(_passfile(self.layout), line, self.layout.identity)

    def prepare_ops(self) -> None:
        with self.connect(self.ops) as connection:
            _make_role(connection, OPS_USER, self.passwords.ops, "login")
            _make_database(connection, OPS_DATABASE, OPS_USER)


def _follows(node: PgServer) -> bool:
    """Return whether a node starts as a standby: neither one that takes writes nor a fenced one does."""
    return node.is_standby() and node.fence() is None


def stack_databases(layout: StackLayout, ports: Mapping[str, int]) -> DatabaseServers:
    """Return the three servers of a stack with its own passwords, which are made where they are missing."""
    passwords = DatabasePasswords(
        superuser=read_or_make_password(layout.secrets, "postgres.password"),
        app=read_or_make_password(layout.secrets, "synapse_user.password"),
        replication=read_or_make_password(layout.secrets, "synapse_replication.password"),
        ops=read_or_make_password(layout.secrets, "ops-password"),
    )
    tools = tools_for(layout.identity, find_pg_tools(POSTGRES_MAJOR), layout.programs)
    return database_servers(layout, tools, ports, passwords)


def database_servers(
    layout: StackLayout, tools: PgTools, ports: Mapping[str, int], passwords: DatabasePasswords
) -> DatabaseServers:
    """Return the three servers with their settings; starts nothing."""
    tls = {
        "ssl_cert_file": str(layout.data / "tls" / "server.crt"),
        "ssl_key_file": str(layout.data / "tls" / "server.key"),
    }

    def server(name: str, settings: Mapping[str, object]) -> PgServer:
        data_dir = layout.data / name
        return PgServer(
            tools=tools,
            identity=layout.identity,
            data_dir=data_dir,
            socket_dir=make_socket_dir(data_dir, layout.identity),
            port=ports[name],
            log_path=layout.log(name),
            settings={**settings, **tls, "cluster_name": name},
            hba=_HBA,
            listen=("127.0.0.1",),
        )

    def following(other: str) -> dict[str, object]:
        # honoured only where standby.signal exists; so each node can follow the other after a failover
        return {"primary_conninfo": _replication_address(layout, ports[other]), "primary_slot_name": SLOT}

    ops = {**_COMMON, "shared_buffers": "32MB", "wal_level": "minimal", "max_wal_senders": 0, "max_wal_size": "256MB"}
    return DatabaseServers(
        layout,
        passwords,
        primary=server("db-primary", {**_REPLICATED, **following("db-standby")}),
        standby=server("db-standby", {**_REPLICATED, **following("db-primary")}),
        ops=server("ops", ops),
    )


def _make_role(connection: psycopg.Connection[tuple[object, ...]], name: str, password: str, attributes: str) -> None:
    from psycopg import sql

    if connection.execute("select 1 from pg_roles where rolname = %s", [name]).fetchone() is None:
        # the verifier is computed here, so that the password itself never reaches the server's log
        verifier = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
        statement = sql.SQL("create role {} with {} password {}")  # roles only log in
        connection.execute(statement.format(sql.Identifier(name), sql.SQL(attributes), sql.Literal(verifier)))


def _make_database(connection: psycopg.Connection[tuple[object, ...]], name: str, owner: str) -> None:
    from psycopg import sql

    if connection.execute("select 1 from pg_database where datname = %s", [name]).fetchone() is None:
        connection.execute(sql.SQL("create database {} owner {}").format(sql.Identifier(name), sql.Identifier(owner)))


def _passfile(layout: StackLayout) -> Path:
    return layout.data / "replication.pgpass"


def _replication_address(layout: StackLayout, port: int) -> str:
    """Return where a standby streams from; the password stays in a file that only servers read."""
    authority, passfile = _escaped(layout.authority), _escaped(_passfile(layout))
    return (
        f"host=127.0.0.1 port={port} user={REPLICATION_USER} connect_timeout=2 sslmode=verify-full "
        f"sslrootcert='{authority}' passfile='{passfile}'"
    )


def _escaped(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace("'", "\\'")
