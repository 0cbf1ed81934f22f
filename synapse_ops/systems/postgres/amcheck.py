"""PostgreSQL's own consistency checks over a whole database: every heap page, every btree entry against its heap.

verify_heapam reads each table and its TOAST; bt_index_check with heapallindexed proves that each row has its entry.
Where the extension is missing it is created in its own schema for the time of the check: call it on copies, after
their structure has been read. Source: PostgreSQL docs, "amcheck"; the same choice of relations as pg_amcheck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from synapse_ops.errors import ProgramMissing
from synapse_ops.systems.postgres.connection import connect, postgres_errors

WORKERS = 2
SHOWN_FAULTS = 20
SCHEMA = "synapse_amcheck"
EXTENSION = "amcheck"

_RELATIONS = """
SELECT c.oid, c.oid::pg_catalog.regclass::text, c.relkind::text
FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_am a ON a.oid = c.relam
     LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid
WHERE c.relpersistence <> 't'
  AND (c.relkind IN ('r', 'm', 't') AND a.amname = 'heap'
       OR c.relkind = 'S' AND %(sequences)s
       OR c.relkind = 'i' AND a.amname = 'btree' AND i.indisvalid AND i.indisready)
ORDER BY c.relpages DESC, c.oid
"""


@dataclass(frozen=True, slots=True)
class AmcheckReport:
    """relations: how many tables, TOAST tables, sequences and btree indexes were read. faults: named, at most 20."""

    relations: int
    faults: tuple[str, ...]


def check_relations(
    conninfo: str, *, on_relation: Callable[[int, int], None] = lambda done, total: None
) -> AmcheckReport:
    """Check every heap and btree of a database, the largest first.

    on_relation: called with (checked, all) after each. Raises what `postgres_errors` makes of a server that is
    gone, and ProgramMissing.
    """
    with connect(conninfo) as connection, postgres_errors("the consistency check"):
        schema, is_ours = _find_or_create_extension(connection)
        major = connection.info.server_version // 10000
        relations = connection.execute(_RELATIONS, {"sequences": major >= 15}).fetchall()
    queue: Iterator[tuple[int, str, str]] = iter(relations)
    faults: list[str] = []
    done = 0

    def work() -> None:
        nonlocal done
        with connect(conninfo) as connection:
            for oid, name, kind in queue:
                faults.extend(_faults_of(connection, schema, oid, name, kind, major))
                done += 1
                on_relation(done, len(relations))

    with ThreadPoolExecutor(WORKERS) as pool:
        for future in [pool.submit(work) for _ in range(WORKERS)]:
            future.result()
    if is_ours:
        with connect(conninfo) as connection, postgres_errors("the consistency check"):
            connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
    return AmcheckReport(len(relations), tuple(sorted(faults)[:SHOWN_FAULTS]))


def _find_or_create_extension(connection: Any) -> tuple[str, bool]:
    """Return the quoted schema that amcheck's functions are in, and whether we made it. Raises ProgramMissing."""
    import psycopg

    found = connection.execute(
        "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
        " WHERE e.extname = 'amcheck'"
    ).fetchone()
    if found is not None:
        return str(found[0]), False
    connection.execute(f"CREATE SCHEMA {SCHEMA}")
    try:
        connection.execute(f"CREATE EXTENSION {EXTENSION} SCHEMA {SCHEMA}")
    except psycopg.errors.FeatureNotSupported as missing:
        version = connection.info.parameter_status("server_version")
        raise ProgramMissing(
            f"extension {EXTENSION} of PostgreSQL {version} is not on this host",
            detail=str(missing.diag.message_detail or ""),
            hint=f"Install the contrib package of PostgreSQL {str(version).partition('.')[0]}; Debian's server has it.",
        ) from missing
    return SCHEMA, True


def _faults_of(connection: Any, schema: str, oid: int, name: str, kind: str, major: int) -> Sequence[str]:
    import psycopg

    unique = ", checkunique => true" if major >= 17 else ""
    check = (
        f"bt_index_check(%s::regclass, heapallindexed => true{unique})"
        if kind == "i"
        else "verify_heapam(%s::regclass)"
    )
    with postgres_errors(f"the consistency check of {name}"):
        try:
            rows = connection.execute(f"SELECT * FROM {schema}.{check} LIMIT 5", [oid]).fetchall()
        except (psycopg.errors.DataCorrupted, psycopg.errors.IndexCorrupted) as corrupt:
            return [f"{name}: {corrupt.diag.message_primary}"]
    return [] if kind == "i" else [f"{name}: block {row[0]}: {row[3]}" for row in rows]
