"""The server whose WAL is received: how it is reached, and what is asked of it in SQL beside the stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.backup.layout import Identity
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal_space import WalPace
from synapse_ops.errors import ConfigError
from synapse_ops.operations.stack import Stack
from synapse_ops.systems.postgres.connection import connect, conninfo_parts, postgres_errors
from synapse_ops.systems.postgres.identity import ensure_identity
from synapse_ops.systems.postgres.wal_pace import read_wal_pace

if TYPE_CHECKING:
    import psycopg

SLOT = "synapse_wal"  # the receiver's, on every node


def wal_conninfo(stack: Stack) -> str:
    """Return a libpq conninfo that leads to whichever node of the database takes writes. Never log it."""
    return _node_conninfo(stack, stack.replication_conninfo("postgres"), "read-write")


def primary_conninfo(stack: Stack, database: str) -> str:
    """Return that of a database for the superuser, at whichever node takes writes. Never log it."""
    return _node_conninfo(stack, stack.admin_conninfo(database), "read-write")


def names_standby(stack: Stack) -> bool:
    """Say whether `database.nodes` leads to a standby, under whichever name: a failover exchanges the roles."""
    nodes = stack.spec.database.nodes
    return stack.spec.failover.standby in nodes or len(nodes) > 1


def standby_conninfo(stack: Stack, database: str) -> str:
    """Return a libpq conninfo of a database at the first node that is a standby. Never log it."""
    return _node_conninfo(stack, stack.admin_conninfo(database), "standby")


def wal_conninfos(stack: Stack) -> tuple[str, ...]:
    """Return a libpq conninfo of each node, as `wal_conninfo` otherwise. Never log them."""
    from psycopg.conninfo import make_conninfo

    parts = conninfo_parts(stack.replication_conninfo("postgres"))
    parts.pop("hostaddr", None)
    return tuple(make_conninfo("", **{**parts, "host": host, "port": port}) for host, port in _places(stack, parts))


def _places(stack: Stack, parts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return host and port of each node; empty where the spec names none. parts: of the URL."""
    nodes = stack.spec.database.nodes
    places = [(host.strip("[]"), port) for host, _, port in (address.rpartition(":") for address in nodes.values())]
    if places and stack.spec.failover.primary not in nodes:  # then it is where the URL points
        places.insert(0, (parts.get("host", "localhost"), parts.get("port", "5432")))
    return places


def _node_conninfo(stack: Stack, conninfo: str, attributes: str) -> str:
    from psycopg.conninfo import make_conninfo

    parts = conninfo_parts(conninfo)
    if places := _places(stack, parts):
        parts.pop("hostaddr", None)
        parts["host"], parts["port"] = (",".join(column) for column in zip(*places, strict=True))
        parts["target_session_attrs"] = attributes
    return make_conninfo("", **parts)


@dataclass
class WalServer:
    """An open session with the primary, and what it said of itself. address: host and port, for people."""

    address: str
    identity: Identity
    version_num: int
    segment_bytes: int
    page_bytes: int
    connection: psycopg.Connection[Any] = field(repr=False)

    def close(self) -> None:
        self.connection.close()

    def stored_segments(self, names: Sequence[str]) -> frozenset[str]:
        """Return which of these segments the server still has."""
        with postgres_errors(f"WAL of {self.address}"):
            rows = self.connection.execute("SELECT name FROM pg_ls_waldir() WHERE name = ANY(%s)", [list(names)])
            return frozenset(name for (name,) in rows)

    def position(self) -> tuple[int, Lsn]:
        """Return the timeline that the server writes, and up to where WAL is on its disk."""
        with postgres_errors(f"the WAL position of {self.address}"):
            query = "SELECT left(pg_walfile_name(lsn), 8), lsn::text FROM pg_current_wal_flush_lsn() AS lsn"
            [(timeline, lsn)] = self.connection.execute(query).fetchall()
        return int(timeline, 16), Lsn.parse(lsn)

    def pace(self) -> WalPace:
        """Return how fast it writes WAL, and how much more until it drops the receiver's slot."""
        return read_wal_pace(self.connection, SLOT)

    def end_stale_sender(self, slot: str) -> None:
        """End the walsender that streams from a slot, if there is one."""
        with postgres_errors(f"slot {slot} of {self.address}"):
            self.connection.execute(
                "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots"
                " WHERE slot_name = %s AND active_pid IS NOT NULL",
                [slot],
            )


_SETTINGS = """
SELECT current_setting('server_version_num')::int,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'),
       (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_block_size')"""


@contextmanager
def open_wal_server(conninfo: str) -> Iterator[WalServer]:
    """Yield the primary; gives it a generation the first time. Raises Unreachable, ConfigError."""
    with connect(conninfo, application_name="synapse-ops wal") as connection:
        try:
            identity = ensure_identity(connection)
        except ConfigError as refused:  # the first time takes a superuser
            refused.hint = (
                f"The first backup as database.admin makes it: synapse-ops backup now. {refused.hint}".strip()
            )
            raise
        with postgres_errors("the WAL settings of the server"):
            [(version, segment_bytes, page_bytes)] = connection.execute(_SETTINGS).fetchall()
        address = f"{connection.info.host}:{connection.info.port}"
        yield WalServer(address, identity, version, int(segment_bytes), int(page_bytes), connection)
