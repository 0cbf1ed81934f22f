"""Which server this is: system identifier and our generation token, and the facts of a server that a backup records.

Two servers can share a system identifier (a standby promoted, a clone gone live); the generation distinguishes them. It
is kept in the server itself, where a physical copy carries it along and a logical one does not, as a setting of the
database `postgres` (of a template where there is none): visible to an operator, without a table of ours.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.backup.layout import Identity
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.errors import Refused
from synapse_ops.systems.postgres.connection import postgres_errors

if TYPE_CHECKING:
    import psycopg

SETTING = "synapse_ops.generation"
OLDEST_MAJOR = 15  # the catalogs of older servers differ, BASE_BACKUP has another syntax, and they are out of support
_TOKEN = re.compile(rf" ?\b{re.escape(SETTING)}=([0-9a-f]{{8}})\b")

_HOLDERS = "('postgres', 'template0', 'template1')"  # any of them may have been dropped; no restore makes one
_HOLDER = f"""
SELECT quote_ident(datname), shobj_description(oid, 'pg_database') FROM pg_database
 WHERE datname IN {_HOLDERS} ORDER BY datname LIMIT 1"""
_STORED = f"""
SELECT given FROM (
  SELECT 1 AS place, d.datname, unnest(s.setconfig) AS given
    FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase WHERE s.setrole = 0
  UNION ALL SELECT 2, d.datname, shobj_description(d.oid, 'pg_database') FROM pg_database d
) AS found WHERE datname IN {_HOLDERS} AND given IS NOT NULL ORDER BY place, datname"""

_FACTS = """
SELECT current_setting('server_version'), current_setting('server_version_num')::int, pg_is_in_recovery(),
       pg_database_size(d.oid), pg_encoding_to_char(d.encoding), d.datcollate,
       pg_database_collation_actual_version(d.oid), (SELECT timeline_id FROM pg_control_checkpoint()),
       pg_get_userbyid(10)
  FROM pg_database d WHERE d.datname = current_database()"""

_DATABASES = "SELECT datname::text FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY 1"

_POSITION = """
SELECT clock_timestamp(),
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text,
       CASE WHEN pg_is_in_recovery() THEN NULL ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END"""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Facts of the server and the connected database. timeline: of its last checkpoint.

    bootstrap_role: the superuser that initdb made, whatever its name is by now.
    """

    version: str
    version_num: int
    is_standby: bool
    database_size_bytes: int
    encoding: str
    collation: str
    collation_version: str | None
    timeline: int
    bootstrap_role: str

    @property
    def major(self) -> int:
        return self.version_num // 10000

    def require_supported(self) -> None:
        """Raise Refused for a server that is too old."""
        if self.major < OLDEST_MAJOR:
            raise Refused(f"server {self.version} is older than {OLDEST_MAJOR}, the oldest major that is backed up")


@dataclass(frozen=True, slots=True)
class ServerMoment:
    """The server's clock (aware) and WAL position; timeline: of that position, None on a standby."""

    database_time: datetime
    lsn: Lsn
    timeline: int | None


def read_facts(connection: psycopg.Connection[Any]) -> ServerFacts:
    """Return the facts of the connected server and database."""
    with postgres_errors("the facts of the server"):
        row = connection.execute(_FACTS).fetchone()
    if row is None:
        raise Refused("the connected database is not in pg_database: it was dropped just now")
    version, *rest = row
    return ServerFacts(version.split()[0], *rest)


def list_databases(connection: psycopg.Connection[Any]) -> tuple[str, ...]:
    """Return the names of the databases that take connections; one whose DROP was interrupted takes none any more."""
    with postgres_errors("the databases of the server"):
        return tuple(name for (name,) in connection.execute(_DATABASES))


def read_moment(connection: psycopg.Connection[Any]) -> ServerMoment:
    """Return the server's clock and WAL position now; of a standby, what it has replayed."""
    with postgres_errors("the WAL position of the server"):
        row = connection.execute(_POSITION).fetchone()
    if row is None:
        raise Refused("the server gave no WAL position")
    at, lsn, timeline = row
    return ServerMoment(at, Lsn.parse(lsn), int(timeline, 16) if timeline else None)


def commit_nothing(connection: psycopg.Connection[Any]) -> Lsn:
    """Commit a transaction that leaves only its trace in WAL, and return where WAL ends then, which is on disk.

    Recovery needs such a record behind the position where it is to stop. No table is touched. Needs autocommit.
    """
    with postgres_errors("an empty transaction"):
        connection.execute("SET synchronous_commit = local")  # no standby is waited for
        connection.execute("SELECT pg_logical_emit_message(true, 'synapse_ops', '')")
        [(lsn,)] = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchall()
    return Lsn.parse(lsn)


def read_identity(connection: psycopg.Connection[Any]) -> Identity | None:
    """Return the server's identity, or None when it has no generation token yet."""
    with postgres_errors("the identity of the server"):
        system = connection.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
        stored = [match[1] for (text,) in connection.execute(_STORED) if (match := _TOKEN.search(text))]
    return Identity(system[0], stored[0]) if system and stored else None


def ensure_identity(connection: psycopg.Connection[Any]) -> Identity:
    """Return the server's identity, giving it a generation token the first time. Needs an autocommit connection.

    Two first backups at once agree on one token: the catalog is locked while it is looked at and written.
    Raises Refused on a standby that has none yet: it cannot be written to.
    """
    if identity := read_identity(connection):
        return identity
    with postgres_errors("the generation token of the server"):
        row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
        if row and row[0]:
            raise Refused(
                "cannot give a generation token to a standby",
                hint="Take the first backup from the primary; the token replicates to the standby.",
            )
        with connection.transaction():
            _lock_settings(connection)
            if read_identity(connection) is None:
                write_generation(connection, os.urandom(4).hex())
    identity = read_identity(connection)
    if identity is None:
        raise Refused(f'setting "{SETTING}" was written and is not there')
    return identity


def _lock_settings(connection: psycopg.Connection[Any]) -> None:
    """Let one at a time look and write. Who may not lock the catalog, as at a managed server, is alone in its database
    only.
    """
    import psycopg

    try:
        with connection.transaction():
            connection.execute("LOCK TABLE pg_catalog.pg_db_role_setting IN SHARE ROW EXCLUSIVE MODE")
    except psycopg.errors.InsufficientPrivilege:
        connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [SETTING])


def write_generation(connection: psycopg.Connection[Any], generation: str) -> None:
    """Store a generation token (8 hex digits); a copy that goes live is given a new one by this.

    A role that may not make settings, as at a managed server, writes it behind the comment of the database.
    """
    import psycopg

    with postgres_errors("the generation token of the server"), connection.transaction():
        holder = connection.execute(_HOLDER).fetchone()
        if holder is None:
            raise Refused(f"none of the databases {_HOLDERS} exists to keep the generation token")
        name, comment = holder
        try:
            with connection.transaction():
                connection.execute(f"ALTER DATABASE {name} SET \"{SETTING}\" = '{generation}'")
        except psycopg.errors.InsufficientPrivilege:
            text = f"{_TOKEN.sub('', comment or '')} {SETTING}={generation}".strip()
            connection.execute(psycopg.sql.SQL(f"COMMENT ON DATABASE {name} IS {{}}").format(psycopg.sql.Literal(text)))
