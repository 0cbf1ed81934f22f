"""Computes the fingerprint of a database inside one exported snapshot, on several connections at once.

Reads are sequential scans, which PostgreSQL keeps in a ring of a few hundred kilobytes, so that the application's cache
survives; parallel workers of the server help with large tables, several connections with many tables.
Every table is locked in ACCESS SHARE mode before it is read, as pg_dump does it: TRUNCATE ignores snapshots.
Left out, as a dump leaves it out: temporary and foreign tables (named in `skipped`), members of extensions except their
configuration tables, rows of materialized views (`domain.fingerprint` says why). On a standby, unlogged ones (named).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.database.fingerprint import (
    METHOD,
    Fingerprint,
    LargeObjects,
    SequenceBracket,
    SequencePosition,
    TableContent,
)
from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.errors import DeadlineExceeded
from synapse_ops.systems.postgres.connection import describe, postgres_errors, reading
from synapse_ops.systems.postgres.row_hash import ColumnFacts, TypeFacts, given_row_expression, row_expression

if TYPE_CHECKING:
    import psycopg

WORKERS = 2  # connections; more than the server's cores gains nothing
SMALL_TABLE_BYTES = 1024 * 1024  # tables below are counted many to a statement, to save round trips
TABLES_PER_STATEMENT = 40
# of the sessions: their scans may use parallel workers of the server
READING_SETTINGS = {
    "max_parallel_workers_per_gather": str(WORKERS),
    "parallel_setup_cost": "100",
    "lock_timeout": "60s",
}
STOP_POLL_S = 0.2
SEQUENCE_READINGS = 20
SEQUENCE_VALUES_LOGGED = 32
LARGE_OBJECT_ENTRIES = 10_000  # above, neighbouring oids share an entry, so that memory stays flat

_RELATIONS = """
SELECT c.oid::int8, format('%I.%I', n.nspname, c.relname), c.relkind::text, c.relpersistence = 'u', c.relispopulated,
       c.relpages::int8 * current_setting('block_size')::int8,
       EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid) AND NOT c.relispartition,
       (SELECT x.extcondition[array_position(x.extconfig, c.oid)] FROM pg_extension x WHERE c.oid = ANY (x.extconfig))
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'm', 'S', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
   AND (NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                                              AND d.deptype = 'e')
        OR EXISTS (SELECT FROM pg_extension x WHERE c.oid = ANY (x.extconfig)))
 ORDER BY 2"""

# Tables of extensions with the rows that pg_dump leaves out: all, or those beside the condition that was given.
_ROWS_LEFT_OUT = """
SELECT format('%I.%I', n.nspname, c.relname), x.extname,
       coalesce(x.extcondition[array_position(x.extconfig, c.oid)], 'WHERE false')
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
  JOIN pg_extension x ON x.oid = d.refobjid
 WHERE c.relkind = 'r' AND coalesce(x.extcondition[array_position(x.extconfig, c.oid)], 'x') <> ''
 ORDER BY 1"""

_SEQUENCE_STEPS = """
SELECT format('%I.%I', n.nspname, c.relname), s.seqincrement
  FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace"""

_COLUMNS = """
SELECT a.attrelid::int8, quote_ident(a.attname), a.atttypid::int8, a.atttypmod, coalesce(l.collisdeterministic, true),
       a.attgenerated <> ''
  FROM pg_attribute a LEFT JOIN pg_collation l ON l.oid = a.attcollation
 WHERE a.attrelid = ANY (%s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attrelid, a.attnum"""

_TYPES = """
SELECT t.oid::int8, n.nspname, t.typname, t.typtype::text, t.typbasetype::int8,
       CASE WHEN t.typsubscript = 'array_subscript_handler'::regproc THEN t.typelem::int8 ELSE 0 END,
       t.typtypmod, CASE WHEN (SELECT f.proargtypes[0] FROM pg_proc f WHERE f.oid = t.typoutput) IN (t.oid,
         'anyenum'::regtype, 'anyrange'::regtype, 'anymultirange'::regtype) THEN t.typoutput::regproc::text ELSE '' END,
       t.typsend::regproc::text
  FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
 WHERE t.typtype <> 'c'"""

_LARGE_OBJECTS = """
SELECT m.oid::int8 / %(span)s * %(span)s, count(*), sum(coalesce(p.size, 0))::int8, sum(coalesce(p.content, 0))::text,
       sum(hashint8extended(hash_record_extended(ROW(m.oid, pg_get_userbyid(m.lomowner), array_send(ARRAY(
         SELECT item::text COLLATE "C" FROM unnest(coalesce(m.lomacl, acldefault('L', m.lomowner))) item ORDER BY 1
       ))), 0), 0))::text
  FROM pg_largeobject_metadata m LEFT JOIN (
       SELECT loid, max(pageno::int8 * (SELECT large_object_chunk_size FROM pg_control_init()) + length(data)) AS size,
              sum(CASE WHEN rtrim(data, '\\x00') <> ''
                       THEN hashint8extended(hash_record_extended(ROW(loid, pageno, rtrim(data, '\\x00')), 0), 0) END
              ) AS content
         FROM pg_largeobject GROUP BY loid) p ON p.loid = m.oid
 GROUP BY 1"""

_COLLATIONS = """
SELECT 'database', pg_database_collation_actual_version(oid) FROM pg_database WHERE datname = current_database()
UNION ALL
SELECT format('%I.%I', n.nspname, l.collname), pg_collation_actual_version(l.oid)
  FROM pg_collation l JOIN pg_namespace n ON n.oid = l.collnamespace
 WHERE l.collprovider <> 'd' AND l.oid IN (
       SELECT attcollation FROM pg_attribute WHERE attrelid >= 16384
        UNION SELECT unnest(indcollation) FROM pg_index WHERE indexrelid >= 16384)"""


@dataclass(frozen=True, slots=True)
class _Relation:
    oid: int
    name: str
    kind: str
    is_unlogged: bool
    is_populated: bool
    size_bytes: int
    is_inheriting: bool
    condition: str | None  # of an extension's configuration table, "WHERE ..." or ""


_Hashed = tuple[_Relation, str, str | None]  # a table, the expressions of its row hash, and of that of what was given


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is there to read: tables largest first."""

    tables: tuple[_Hashed, ...]
    sequences: tuple[str, ...]
    materialized_views: Mapping[str, bool]
    skipped: Mapping[str, str]


def read_fingerprint(
    conninfo: str,
    *,
    sessions: Sequence[psycopg.Connection[Any]] = (),
    workers: int = WORKERS,
    progress: ReportProgress = ignore_progress,
    stop: threading.Event | None = None,
    method: int = METHOD,
) -> Fingerprint:
    """Return the fingerprint of the database that `conninfo` (of a superuser) points at.

    sessions: in transactions on one snapshot, with READING_SETTINGS and the tables locked; none opens `workers` here.
    workers: connections, each of which may have as many parallel workers of the server.
    stop: when it is set, statements under way are cancelled and DeadlineExceeded is raised.
    method: how rows are hashed; that of the fingerprint which this one will be compared with.
    The sequences' brackets are closed by a read at the end; a caller whose dump lasts longer closes them again.
    """
    with postgres_errors(f"the fingerprint of {describe(conninfo)}"):
        with ExitStack() as stack:
            if not sessions:
                first = stack.enter_context(_reading(conninfo))
                name = str(_one(first, "SELECT pg_export_snapshot()"))
                others = [stack.enter_context(_reading(conninfo, name)) for _ in range(workers - 1)]
                sessions = [first, *others]
            first = sessions[0]
            plan = _make_plan(first, method)
            _lock(first, [relation.name for relation, *_ in plan.tables])
            before = _read_sequences(first, plan.sequences)
            tables = _count_all(sessions, plan, progress, stop or threading.Event())
            rest = _read_rest(first)
        after = read_sequences(conninfo)
    brackets = {
        sequence: SequenceBracket(position, after.get(sequence, position)) for sequence, position in before.items()
    }
    return Fingerprint(
        tables=tables,
        materialized_views=plan.materialized_views,
        sequences=brackets,
        skipped=plan.skipped,
        method=method,
        **rest,
    )


def read_sequences(conninfo: str) -> dict[str, SequencePosition]:
    """Return every sequence's position as it is now; a sequence never waits for a snapshot."""
    from psycopg import errors

    with postgres_errors(f"the sequences of {describe(conninfo)}"):
        readings = 0
        while True:
            readings += 1
            try:
                with _reading(conninfo) as connection:
                    kept, _ = _list_relations(connection)
                    return _read_sequences(connection, [relation.name for relation in kept if relation.kind == "S"])
            except (errors.UndefinedTable, errors.InvalidSchemaName, errors.InternalError_):
                if readings == SEQUENCE_READINGS:  # one of them is dropped each time
                    raise


def read_logged_sequences(connection: psycopg.Connection[Any]) -> dict[str, SequenceBracket]:
    """Return between which positions each sequence may be in any physical copy of this moment.

    WAL has a sequence up to 32 values ahead, and a page of it may have been copied before or behind that record.
    Source: SEQ_LOG_VALS in src/backend/commands/sequence.c.
    """
    kept, _ = _list_relations(connection)
    positions = _read_sequences(connection, [relation.name for relation in kept if relation.kind == "S"])
    steps = dict(connection.execute(_SEQUENCE_STEPS).fetchall())
    return {name: _logged(position, abs(steps[name])) for name, position in positions.items()}


def _logged(position: SequencePosition, step: int) -> SequenceBracket:
    ahead = SEQUENCE_VALUES_LOGGED * step if position.is_called else 0
    return SequenceBracket(
        replace(position, last_value=position.last_value - ahead),
        replace(position, last_value=position.last_value + ahead),
    )


def lock_tables(connection: psycopg.Connection[Any]) -> None:
    """Lock every table that a fingerprint reads, against what ignores snapshots, until the transaction ends."""
    kept, _ = _list_relations(connection)
    _lock(connection, [relation.name for relation in kept if relation.kind == "r"])


def _reading(conninfo: str, snapshot: str | None = None) -> AbstractContextManager[psycopg.Connection[Any]]:
    return reading(conninfo, snapshot=snapshot, settings=READING_SETTINGS, application_name="synapse-ops fingerprint")


def _one(connection: psycopg.Connection[Any], query: str) -> Any:
    row = connection.execute(query).fetchone()
    return row[0] if row else None


def _make_plan(connection: psycopg.Connection[Any], method: int = METHOD) -> _Plan:
    kept, skipped = _list_relations(connection)
    tables = [relation for relation in kept if relation.kind == "r"]
    return _Plan(
        tables=tuple(_with_expressions(connection, sorted(tables, key=lambda table: -table.size_bytes), method)),
        sequences=tuple(relation.name for relation in kept if relation.kind == "S"),
        materialized_views={relation.name: relation.is_populated for relation in kept if relation.kind == "m"},
        skipped={**skipped, **dict(_rows_left_out(connection))},
    )


def _rows_left_out(connection: psycopg.Connection[Any]) -> Iterator[tuple[str, str]]:
    """Yield which rows of which extension's table no dump holds, and why; tables without such rows are left out."""
    for name, extension, condition in connection.execute(_ROWS_LEFT_OUT).fetchall():
        kept = re.sub(r"^\s*where\b", "", condition, flags=re.IGNORECASE)
        if _one(connection, f"SELECT EXISTS (SELECT FROM ONLY {name} WHERE ({kept}) IS NOT TRUE)"):
            yield f"rows of {name}", f"those that its extension {extension} leaves out of dumps"


def _list_relations(connection: psycopg.Connection[Any]) -> tuple[list[_Relation], dict[str, str]]:
    """Return the relations to read, and those to leave out with the reason."""
    is_standby = bool(_one(connection, "SELECT pg_is_in_recovery()"))
    relations = [_Relation(*row) for row in connection.execute(_RELATIONS)]
    skipped = {relation.name: "foreign table" for relation in relations if relation.kind == "f"}
    if is_standby:
        reason = "unlogged, which a standby does not hold"
        skipped |= {relation.name: reason for relation in relations if relation.is_unlogged}
    return [relation for relation in relations if relation.name not in skipped], skipped


def _with_expressions(
    connection: psycopg.Connection[Any], tables: Sequence[_Relation], method: int
) -> Iterator[_Hashed]:
    types = {row[0]: TypeFacts(*row[1:]) for row in connection.execute(_TYPES)}
    columns: dict[int, list[ColumnFacts]] = {}
    for row in connection.execute(_COLUMNS, [[table.oid for table in tables]]):
        columns.setdefault(row[0], []).append(ColumnFacts(*row[1:]))
    for table in tables:
        keeps_order = not table.is_inheriting
        own = columns.get(table.oid, [])
        whole = row_expression(own, types, keeps_order=keeps_order, method=method)
        yield table, whole, given_row_expression(own, types, keeps_order=keeps_order, method=method)


def _lock(connection: psycopg.Connection[Any], names: Sequence[str]) -> None:
    for start in range(0, len(names), 100):
        batch = ", ".join(f"ONLY {name}" for name in names[start : start + 100])
        connection.execute(f"LOCK TABLE {batch} IN ACCESS SHARE MODE")


def _read_sequences(connection: psycopg.Connection[Any], names: Sequence[str]) -> dict[str, SequencePosition]:
    found: dict[str, SequencePosition] = {}
    for start in range(0, len(names), 200):
        batch = names[start : start + 200]
        query = " UNION ALL ".join(
            f"SELECT {number}, last_value, is_called FROM {name}" for number, name in enumerate(batch)
        )
        for number, last_value, is_called in connection.execute(query):
            found[batch[number]] = SequencePosition(last_value, is_called)
    return found


def _count_all(
    sessions: Sequence[psycopg.Connection[Any]], plan: _Plan, progress: ReportProgress, stop: threading.Event
) -> dict[str, TableContent]:
    """Count every table of the plan, on all sessions at once."""
    batches = list(_batches(plan.tables))
    total = sum(table.size_bytes for table, *_ in plan.tables)
    found: dict[str, TableContent] = {}
    lock, done = threading.Lock(), 0

    def work(session: psycopg.Connection[Any]) -> None:
        nonlocal done
        while True:
            with lock:
                if not batches:
                    return
                batch = batches.pop(0)
            counted = _count(session, batch)
            with lock:
                found.update(counted)
                done += sum(table.size_bytes for table, *_ in batch)
                progress(Progress("fingerprinting", done, total))

    with ThreadPoolExecutor(len(sessions), thread_name_prefix="fingerprint") as pool:
        jobs = [pool.submit(work, session) for session in sessions]
        try:
            _wait_for(jobs, stop)
        except BaseException:
            with lock:
                batches.clear()
            for session in sessions:
                with suppress(Exception):  # the first failure is the one to report
                    session.cancel_safe(timeout=5)
            raise
    return found


def _wait_for(jobs: Sequence[Future[None]], stop: threading.Event) -> None:
    """Return when all jobs have; raises what the first failing one raised, or DeadlineExceeded once `stop` is set."""
    while True:
        done, waiting = wait(jobs, timeout=STOP_POLL_S, return_when=FIRST_EXCEPTION)
        for job in done:
            job.result()
        if not waiting:
            return
        if stop.is_set():
            raise DeadlineExceeded("the fingerprint was stopped before its end")


def _batches(tables: Sequence[_Hashed]) -> Iterator[list[_Hashed]]:
    small: list[_Hashed] = []
    for one in tables:
        table, *_ = one
        if table.size_bytes > SMALL_TABLE_BYTES:
            yield [one]
            continue
        small.append(one)
        if len(small) == TABLES_PER_STATEMENT:
            yield small
            small = []
    if small:
        yield small


def _count(connection: psycopg.Connection[Any], batch: Sequence[_Hashed]) -> dict[str, TableContent]:
    names = [table.name for table, *_ in batch]
    query = " UNION ALL ".join(
        f"SELECT {number}, count(*), coalesce(sum({whole}), 0)::text,"
        f" {f'coalesce(sum({given}), 0)::text' if given else 'NULL'}"
        f" FROM ONLY {table.name} t {table.condition or ''}"
        for number, (table, whole, given) in enumerate(batch)
    )
    with postgres_errors(f"the fingerprint of {names[0] if len(names) == 1 else f'{names[0]} to {names[-1]}'}"):
        rows = connection.execute(query).fetchall()
    return {names[number]: TableContent(*content) for number, *content in rows}


def _read_rest(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """Return the other fields of a Fingerprint: version, large objects, extensions, collations."""
    objects = int(_one(connection, "SELECT count(*) FROM pg_largeobject_metadata"))
    span = 1
    while objects / span > LARGE_OBJECT_ENTRIES:
        span *= 16
    return {
        "server_major": int(_one(connection, "SHOW server_version_num")) // 10000,
        "hash_probe": str(_one(connection, "SELECT hashtextextended('synapse-ops', 0)")),
        "large_object_span": span,
        "large_objects": {row[0]: LargeObjects(*row[1:]) for row in connection.execute(_LARGE_OBJECTS, {"span": span})},
        "extensions": dict(connection.execute("SELECT extname, extversion FROM pg_extension").fetchall()),
        "collation_versions": dict(connection.execute(_COLLATIONS).fetchall()),
    }
