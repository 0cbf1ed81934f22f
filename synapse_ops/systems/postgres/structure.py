"""Reads the structure of a database from its catalogs: every object that a dump carries, by name.

Left out, because pg_dump does not carry it by design, so that every difference found after a restore is a loss:
oids and physical order; positions of columns in tables that inherit (inherited columns come first after a restore) and
of dropped columns; planner statistics (before PostgreSQL 18); the content of extensions (a digest of each member names
what was changed by hand; versions are in the fingerprint) and the owner of an extension; foreign keys that partitions
have from their parent, and whether a column or constraint of a partition is local; whether a subscription is enabled,
and its connection string; passwords; the place of a tablespace on disk; our own setting synapse_ops.generation. What is
in `structure_left_out.NAMES_LEFT_OUT` is named.
Options of foreign servers, wrappers and user mappings that look like secrets are masked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.database.structure import FORMAT_VERSION, Structure
from synapse_ops.systems.postgres.connection import describe, postgres_errors, reading
from synapse_ops.systems.postgres.structure_code import CODE_QUERIES
from synapse_ops.systems.postgres.structure_left_out import (
    LEFT_OUT_QUERIES,
    NAMES_LEFT_OUT,
    is_about_members,
    of_members,
)
from synapse_ops.systems.postgres.structure_relations import RELATION_QUERIES
from synapse_ops.systems.postgres.structure_shared import (
    CHANGED_PRIVILEGES_OF_INITDB,
    DATABASE_QUERIES,
    SHARED_QUERIES,
)

if TYPE_CHECKING:
    import psycopg

APPLICATION = "synapse-ops structure"


def read_structure(conninfo: str, *, version: int = FORMAT_VERSION) -> Structure:
    """Return the structure of the database that `conninfo` (of a superuser) points at, server-wide entries included.

    version: of the structure that it will be compared with. PostgreSQL deparses definitions from the catalogs as they
    are now, so DDL that commits meanwhile can show: pg_dump's locks keep it away from tables.
    """
    with (
        postgres_errors(f"the structure of {describe(conninfo)}"),
        reading(conninfo, application_name=APPLICATION) as connection,
    ):
        return structure_seen_by(connection, version)


def structure_seen_by(connection: psycopg.Connection[Any], version: int = FORMAT_VERSION) -> Structure:
    """Return the structure as an open transaction sees it; on a session of `connect`. version: as `read_structure`."""
    queries = {**RELATION_QUERIES, **CODE_QUERIES, **DATABASE_QUERIES, **SHARED_QUERIES}
    row = connection.execute("SHOW server_version_num").fetchone()
    major = int(row[0]) // 10000 if row else 0
    if version == 1:
        return Structure(major, _entries(connection, queries), version=1)
    queries |= {"changed privileges": CHANGED_PRIVILEGES_OF_INITDB, **LEFT_OUT_QUERIES}
    of_extensions = {kind: of_members(query) for kind, query in queries.items() if is_about_members(query)}
    members = {name: _digest(entry) for name, entry in _entries(connection, of_extensions).items()}
    left_out = tuple(name for (name,) in connection.execute(NAMES_LEFT_OUT.encode()))
    return Structure(major, _entries(connection, queries), members, left_out)


def _digest(entry: Mapping[str, Any]) -> str:
    """Return a digest of what an extension's script decides: not who owns a member, and who may do what with it."""
    fixed = {name: value for name, value in entry.items() if name not in {"owner", "privileges"}}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:32]


def read_shared(conninfo: str) -> dict[str, dict[str, Any]]:
    """Return what belongs to the whole server, as it is now: roles, tablespaces, privileges on parameters."""
    with (
        postgres_errors(f"the roles of {describe(conninfo)}"),
        reading(conninfo, application_name=APPLICATION) as connection,
    ):
        return _entries(connection, SHARED_QUERIES)


def _entries(connection: psycopg.Connection[Any], queries: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Run each query, which returns (name, attributes), and return `<kind>: <name>` -> attributes."""
    entries: dict[str, dict[str, Any]] = {}
    for kind, query in queries.items():
        rows: Iterable[tuple[str, dict[str, Any]]] = connection.execute(query)
        for name, attributes in rows:
            entries[f"{kind}: {name}" if not name.startswith("=") else name[1:]] = attributes
    return entries
