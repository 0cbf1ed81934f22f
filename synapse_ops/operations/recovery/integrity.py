"""Looks at a restored stack before anybody uses it: pages, indexes, counts across the stores, orphans.

That every file and every byte of WAL is what the source wrote was checked by the restore itself, and each point of a
collection was compared then. What is left to show is that PostgreSQL can read all of it, and that the stores belong
together.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.progress import Progress, ReportProgress
from synapse_ops.domain.recovery.reconciliation import Reconciliation, reconcile
from synapse_ops.domain.recovery.recovery_record import INTEGRITY, RESTORED, RecoveryRecord
from synapse_ops.operations.backup_kinds import SNAPSHOTS
from synapse_ops.operations.recovery.journal import Journal
from synapse_ops.operations.recovery.place import Conninfo, RecoveryPlace
from synapse_ops.operations.recovery.restored_stack import CLUSTER
from synapse_ops.operations.stack import Stack
from synapse_ops.systems.postgres.amcheck import check_relations
from synapse_ops.systems.postgres.connection import connect, postgres_errors
from synapse_ops.systems.postgres.identity import list_databases, read_identity
from synapse_ops.systems.postgres.structure import read_structure

if TYPE_CHECKING:
    import psycopg

    from synapse_ops.spec.blocks.stores import Qdrant, VectorSource

_COUNTS = """
SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
 ORDER BY 1"""


def check_integrity(
    stack: Stack, place: RecoveryPlace, record: RecoveryRecord, progress: ReportProgress
) -> RecoveryRecord:
    """Return the recovery with what was found; `faults` names what is wrong. Raises where a server does not start."""
    begun, folder = time.monotonic(), place.folder(record.id)
    found: dict[str, Any] = {"databases": {}, "stores": [], "faults": []}
    with place.cluster(folder / CLUSTER) as conninfo:
        with connect(conninfo("template1")) as connection:
            names, identity = list_databases(connection), read_identity(connection)
        for number, name in enumerate(names):
            progress(Progress(f"checking {name}", number, len(names), "databases"))
            found["databases"][name] = look_at(conninfo(name), name, found["faults"])
        with place.vectors(folder) as block:
            found["stores"] = [
                one.as_json() | {"sentence": one.sentence} for one in _stores(stack, conninfo, block, record)
            ]
    found["identity"] = str(identity)
    found["collections"] = {
        what.partition("/")[2]: part["points"]
        for what, part in record.steps[RESTORED]["parts"].items()
        if what.startswith(f"{SNAPSHOTS.word}/")
    }
    found["seconds"] = round(time.monotonic() - begun, 3)
    return Journal.of(stack.state_dir).add(record, INTEGRITY, found)


def look_at(conninfo: str, name: str, faults: list[str]) -> dict[str, Any]:
    """Count, check and describe one database; what is wrong goes into `faults`."""
    structure = read_structure(conninfo)
    with connect(conninfo) as connection, postgres_errors(f"the tables of {name}"):
        tables = [table for (table,) in connection.execute(_COUNTS)]
        rows = sum(_count(connection, table) for table in tables)
    checked = check_relations(conninfo)
    faults += [f"{name}: amcheck: {fault}" for fault in checked.faults]
    return {
        "tables": len(tables),
        "rows": rows,
        "structure_digest": structure.digest(),
        "relations_checked": checked.relations,
    }


def _count(connection: psycopg.Connection[Any], table: str) -> int:
    """table: as regclass prints it, which is SQL."""
    [(count,)] = connection.execute(f"SELECT count(*) FROM {table}").fetchall()  # noqa: S608
    return int(count)


def _stores(stack: Stack, conninfo: Conninfo, block: Qdrant, record: RecoveryRecord) -> Iterator[Reconciliation]:
    """Hold each pair of `vectors.sources` against each other. Orphans are no fault: the stores share no moment."""
    from synapse_ops.systems.qdrant.server import open_qdrant

    parts = record.steps[RESTORED]["parts"]
    with open_qdrant(block) as server:
        for source in stack.spec.vectors.sources:
            part = parts.get(f"{SNAPSHOTS.word}/{source.collection}")
            points = server.scroll_all(part["collection"], with_payload=False, with_vectors=False) if part else ()
            ids = {str(one["id"]) for one in points}
            yield reconcile(source.table, source.collection, _keys(stack, conninfo, source), ids)


def _keys(stack: Stack, conninfo: Conninfo, source: VectorSource) -> set[str]:
    from psycopg import sql

    schema, _, name = source.table.rpartition(".")
    table = sql.Identifier(schema or "public", name)
    query = sql.SQL("SELECT {}::text FROM {}").format(sql.Identifier(source.key), table)
    with (
        connect(conninfo(stack.spec.database.name)) as connection,
        postgres_errors(f"the keys of {source.table}"),
    ):
        return {key for (key,) in connection.execute(query)}
