"""A logical dump of one database into the repository: streamed, fingerprinted in its own snapshot, listed when whole.

Order, each step before the next: `started.json`, the heartbeat, the snapshot, the objects, the end of the snapshot, the
objects read back, and `backup.json` last. Killed anywhere, it leaves either no backup or a whole one, and left-overs
under a heartbeat whose age names them. pg_dump runs beside the fingerprint and the structure, all three on one exported
snapshot; sequences are read before and after, roles before and after pg_dumpall until both readings are equal.
Objects that other sessions drop meanwhile can end it; another snapshot is tried then.
Nothing is staged on disk. The password never leaves memory (systems/postgres/dump_tools.py).
Works on a standby too: snapshots can be exported there; unlogged tables are left out, by pg_dump as by the fingerprint.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.backup.document import ObjectRecord
from synapse_ops.domain.backup.dump_record import DumpRecord, DumpSource, limited
from synapse_ops.domain.backup.layout import KIND_DUMP, Identity
from synapse_ops.domain.backup.record import Fact
from synapse_ops.domain.database.fingerprint import Fingerprint
from synapse_ops.domain.database.structure import Structure
from synapse_ops.domain.progress import ReportProgress, ignore_progress
from synapse_ops.errors import ConfigError, Refused, SynapseOpsError, Unproven
from synapse_ops.operations.backup.heartbeat import Heartbeat
from synapse_ops.operations.backup.measured import Measured
from synapse_ops.operations.backup.taking import NOT_ENCRYPTED, BackupReport, taking_backup
from synapse_ops.operations.backup.writer import BackupWriter
from synapse_ops.operations.database.staged_dump import DUMP, FINGERPRINT, GLOBALS, STRUCTURE, SUPPLEMENT
from synapse_ops.operations.database.wal_source import primary_conninfo
from synapse_ops.systems.postgres.connection import at_its_server, connect, describe, postgres_errors
from synapse_ops.systems.postgres.dump_progress import reported_dump
from synapse_ops.systems.postgres.dump_tools import ToolStream, application_name, open_tool
from synapse_ops.systems.postgres.fingerprint import READING_SETTINGS, read_fingerprint, read_sequences
from synapse_ops.systems.postgres.held_snapshot import ReadingSessions, is_concurrent_ddl, reading_sessions
from synapse_ops.systems.postgres.identity import ServerFacts, ServerMoment, ensure_identity, read_facts, read_moment
from synapse_ops.systems.postgres.programs import PgTools, find_pg_tools
from synapse_ops.systems.postgres.structure import read_shared, structure_seen_by
from synapse_ops.systems.postgres.supplement import read_supplement, settings_of_all_roles

if TYPE_CHECKING:
    import psycopg

    from synapse_ops.operations.stack import Stack

ATTEMPTS = 40  # where objects come and go all the time, most attempts fail, after some tenths of a second
HURRIED_OF = 4  # attempts all are hurried but one, lest the hurry be what fails
LOCK_WAIT_MS = 60_000  # pg_dump waits this long for a table; beyond, an ALTER holds it and both would wait for ever
PASSWORDS = "passwords of roles: backup.database.role_passwords"
ROLE_READINGS = 5  # roles that change during each of so many readings are changed by a loop, not by a person


@dataclass(frozen=True, slots=True)
class DumpReport(BackupReport):
    """A dump that exists. warnings: what pg_dump said, too."""

    record: DumpRecord
    fingerprint: Fingerprint

    def tables(self) -> dict[str, list[dict[str, Fact]]]:
        """Return rows and row hash of each table, the largest first."""
        tables = sorted(self.fingerprint.tables.items(), key=lambda item: (-item[1].rows, item[0]))
        return {
            "fingerprint": [
                {"table": name, "rows": content.rows, "row_hash": content.row_hash} for name, content in tables
            ]
        }


@dataclass(frozen=True)
class _Source:
    """What is dumped: the connection string (a secret), the server's facts, its identity, and the programs."""

    conninfo: str
    database: str
    facts: ServerFacts
    identity: Identity
    tools: PgTools
    is_superuser: bool


def dump_database(
    stack: Stack, database: str, *, set_id: str | None = None, progress: ReportProgress = ignore_progress
) -> DumpReport:
    """Take a backup of one database and return it once it exists. Each call is a new backup.

    set_id: the tick whose databases belong together. Raises Refused (pg_dump older than the server), ToolFailed
    (pg_dump), Unreachable, ConfigError; after any of them the backup is not listed.
    """
    recipients = stack.spec.encryption.recipients
    repository = stack.database_repository()
    source = _open_source(primary_conninfo(stack, database), database)
    with_passwords = source.is_superuser and _with_passwords(stack.spec.backup.database.role_passwords, recipients)
    with taking_backup(stack, repository, KIND_DUMP, source.identity, database, set_id=set_id) as taking:
        contents = _write_contents(
            source, taking.writer, taking.heartbeat, with_passwords=with_passwords, progress=progress
        )
        shared = taking.shared_fields(
            contents.objects, phase_s=contents.phase_s, tool_versions={"pg_dump": source.tools.version}
        )
        record = DumpRecord(
            **shared,
            source=_source_record(source),
            start_lsn=str(contents.start.lsn),
            stop_lsn=str(contents.stop.lsn),
            timeline=contents.start.timeline or source.facts.timeline,
            database_time=contents.start.database_time,
            fingerprint_s=contents.phase_s["fingerprint"],
            compression=_compression(source.tools),
            role_passwords=with_passwords,
            dumped_bytes=contents.objects[0].plain_size_bytes or 0,
            table_count=len(contents.fingerprint.tables),
            row_count=contents.fingerprint.row_count,
            fingerprint_digest=contents.fingerprint.digest(),
            structure_digest=contents.structure.digest(),
            not_in_backup=limited((*([] if with_passwords else [PASSWORDS]), *contents.not_in_backup)),
        )
        taking.seal(record)
    warnings = (*contents.warnings, *_warnings(source, recipients, with_passwords=with_passwords))
    return DumpReport(record, taking.place, taking.url, warnings, contents.fingerprint)


def _open_source(conninfo: str, database: str) -> _Source:
    """Look at the server, refuse what cannot be dumped, and give it an identity the first time."""
    with connect(conninfo) as connection:
        conninfo = at_its_server(connection, conninfo)
        facts = read_facts(connection)
        facts.require_supported()
        is_superuser = _reads_everything(connection)
        tools = _fitting_tools(facts)
        return _Source(conninfo, database, facts, ensure_identity(connection), tools, is_superuser=is_superuser)


_RIGHTS = """
SELECT rolname, rolsuper,
       EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'pg_read_all_data' AND pg_has_role(r.oid, 'USAGE'))
  FROM pg_roles WHERE rolname = current_user"""


def _reads_everything(connection: psycopg.Connection[Any]) -> bool:
    """Return whether the role is a superuser. Raises ConfigError for one that may miss rows.

    Where there is no superuser, pg_read_all_data reads every table and sequence; what it may not read (a row policy,
    another's large object) ends pg_dump with an error, and roles' passwords are left out.
    """
    with postgres_errors("the rights of the role"):
        [(role, is_superuser, reads_all)] = connection.execute(_RIGHTS).fetchall()
    if not (is_superuser or reads_all):
        raise ConfigError(
            f'role "{role}" is neither a superuser nor in pg_read_all_data, which a whole dump needs',
            hint="database.admin in the spec must name a superuser; at a managed server, a role in pg_read_all_data "
            "and pg_monitor that owns the database postgres.",
        )
    return bool(is_superuser)


def _compression(tools: PgTools) -> str:
    """Return zstd:1, measured the fastest of all on text at a fifth of gzip's time; pg_dump 15 knows gzip only."""
    return "zstd:1" if tools.major >= 16 else "gzip:1"


def _fitting_tools(facts: ServerFacts) -> PgTools:
    """Return the programs of the server's own major version, else newer ones; raises Refused for older ones."""
    try:
        return find_pg_tools(facts.major)
    except ConfigError:
        newest = find_pg_tools()
    if newest.major < facts.major:
        raise Refused(
            f"pg_dump {newest.version} is older than the server {facts.version}",
            detail=f"the newest found is in {newest.bin_dir}",
            hint=f"Install the client programs of PostgreSQL {facts.major}.",
        )
    return newest


def _with_passwords(policy: str, recipients: tuple[str, ...]) -> bool:
    return policy == "always" or (policy == "encrypted" and bool(recipients))


@dataclass(frozen=True, slots=True)
class _Contents:
    """Everything that was written, the dump first, and read back."""

    objects: tuple[ObjectRecord, ...]
    fingerprint: Fingerprint
    structure: Structure
    start: ServerMoment
    stop: ServerMoment
    phase_s: Mapping[str, float]
    warnings: tuple[str, ...]

    @property
    def not_in_backup(self) -> tuple[str, ...]:
        """Return the names of what was left out."""
        skipped = (f"{name}: {why}" for name, why in sorted(self.fingerprint.skipped.items()))
        return (*self.structure.left_out, *skipped)


def _write_contents(
    source: _Source, writer: BackupWriter, heartbeat: Heartbeat, *, with_passwords: bool, progress: ReportProgress
) -> _Contents:
    """Write all contents, on another snapshot when other sessions drop what one of them shows."""
    attempts = 0
    while True:
        attempts += 1
        try:
            is_hurried = attempts % HURRIED_OF != 1
            return _write_once(source, writer, heartbeat, is_hurried, with_passwords=with_passwords, progress=progress)
        except SynapseOpsError as error:
            if not is_concurrent_ddl(error):
                raise
            if attempts == ATTEMPTS:
                error.hint = (
                    f"Other sessions dropped or changed objects during each of {ATTEMPTS} attempts."
                    " Which program keeps doing so? Temporary tables are not affected, and not backed up."
                )
                raise


def _write_once(
    source: _Source,
    writer: BackupWriter,
    heartbeat: Heartbeat,
    is_hurried: bool,
    *,
    with_passwords: bool,
    progress: ReportProgress,
) -> _Contents:
    """Dump, fingerprint and describe the database on one snapshot; return when all of it is in the store.

    is_hurried: the snapshot is taken when pg_dump has connected already, so that it locks the tables soonest.
    """
    measured, stop = Measured(), threading.Event()
    session_name = application_name("pg_dump")
    before = read_sequences(source.conninfo)
    with reading_sessions(source.conninfo, READING_SETTINGS) as sessions:
        snapshot = sessions.predict_name() if is_hurried else sessions.export()
        with (
            _pg_dump(source, snapshot) as tool,
            reported_dump(source.conninfo, session_name, f"dumping {source.database}", progress),
        ):
            if is_hurried:
                sessions.await_session(session_name, tool.has_ended)
                sessions.export()
            start = read_moment(sessions.control)
            sessions.lock_tables(snapshot, session_name, tool.has_ended)
            with ThreadPoolExecutor(3, thread_name_prefix="dump") as pool:
                dump = pool.submit(_dump, tool, writer, measured, stop)
                fingerprint = pool.submit(_fingerprint, source, sessions, measured, stop, progress)
                described = pool.submit(_describe, source, sessions, measured, with_passwords=with_passwords)
                try:
                    _await_all([dump, fingerprint, described])
                except BaseException:
                    stop.set()
                    raise
        after = read_sequences(source.conninfo)
        end = read_moment(sessions.control)
    heartbeat.raise_if_lost()
    dump_record, warnings = dump.result()
    globals_text, supplement, structure = described.result()
    content = fingerprint.result().with_brackets(before, after)
    objects = (
        dump_record,
        writer.write_bytes(GLOBALS, globals_text),
        writer.write_bytes(FINGERPRINT, content.to_json()),
        writer.write_bytes(STRUCTURE, structure.to_json()),
        writer.write_bytes(SUPPLEMENT, supplement),
    )
    writer.read_back()
    return _Contents(objects, content, structure, start, end, measured.phase_s, warnings)


def _await_all(jobs: list[Future[Any]]) -> None:
    """Return when all have ended well; raise as soon as one has failed."""
    done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
    for job in done:
        job.result()


def _pg_dump(source: _Source, snapshot: str) -> AbstractContextManager[ToolStream]:
    arguments = [
        "--format=custom",
        f"--compress={_compression(source.tools).removeprefix('gzip:')}",
        f"--snapshot={snapshot}",
        f"--lock-wait-timeout={LOCK_WAIT_MS}",
        f"--encoding={source.facts.encoding}",
    ]
    return open_tool(source.tools, "pg_dump", arguments, source.conninfo)


def _dump(
    tool: ToolStream, writer: BackupWriter, measured: Measured, stop: threading.Event
) -> tuple[ObjectRecord, tuple[str, ...]]:
    """Stream pg_dump into the store; the object comes into being only when pg_dump has ended well."""
    warnings: list[str] = []
    stoppable = _Stoppable(tool, stop)
    with measured.phase("dump"):
        record = writer.write_stream(DUMP, stoppable, before_complete=lambda: warnings.extend(tool.finish()))
    return record, tuple(warnings)


class _Stoppable:
    """A program's output that ends with an error when another part of the backup has failed."""

    def __init__(self, tool: ToolStream, stop: threading.Event) -> None:
        self._tool = tool
        self._stop = stop

    def read(self, size: int = -1) -> bytes:
        if self._stop.is_set():
            raise Unproven("the dump was stopped, because another part of the backup failed")
        return self._tool.read(size)


def _fingerprint(
    source: _Source, sessions: ReadingSessions, measured: Measured, stop: threading.Event, progress: ReportProgress
) -> Fingerprint:
    with measured.phase("fingerprint"):
        return read_fingerprint(source.conninfo, sessions=sessions.of_rows, progress=progress, stop=stop)


def _describe(
    source: _Source, sessions: ReadingSessions, measured: Measured, *, with_passwords: bool
) -> tuple[bytes, bytes, Structure]:
    """Return the globals, taken between two equal readings of the roles, the supplement, and the structure."""
    with measured.phase("structure"), postgres_errors(f"the structure of {describe(source.conninfo)}"):
        structure = structure_seen_by(sessions.of_catalogs)
        supplement = read_supplement(sessions.of_catalogs)
    # from the database itself: others may be missing, or let nobody in
    arguments = [
        "--globals-only",
        f"--database={source.database}",
        "--encoding=UTF8",
        *(() if with_passwords else ("--no-role-passwords",)),
    ]
    with measured.phase("globals"):
        for _ in range(ROLE_READINGS):
            before = read_shared(source.conninfo)
            with open_tool(source.tools, "pg_dumpall", arguments, source.conninfo) as tool:
                text = tool.read()
                tool.finish()
            if read_shared(source.conninfo) == before:
                return text + settings_of_all_roles(before), supplement, structure.with_shared(before)
    raise Unproven(
        f"roles changed during each of {ROLE_READINGS} readings", hint="Which program keeps creating or altering roles?"
    )


def _source_record(source: _Source) -> DumpSource:
    facts = source.facts
    return DumpSource(
        system_identifier=source.identity.system_identifier,
        generation=source.identity.generation,
        database=source.database,
        server_version=facts.version,
        server_version_num=facts.version_num,
        node=describe(source.conninfo).rpartition("/")[0],
        is_standby=facts.is_standby,
        database_size_bytes=facts.database_size_bytes,
        encoding=facts.encoding,
        collation=facts.collation,
        collation_version=facts.collation_version,
        bootstrap_role=facts.bootstrap_role,
    )


def _warnings(source: _Source, recipients: tuple[str, ...], *, with_passwords: bool) -> Iterator[str]:
    if not source.is_superuser:
        yield "taken by no superuser: passwords of roles and subscriptions are not in it"
    if not recipients:
        yield NOT_ENCRYPTED
    if with_passwords and not recipients:
        yield "holds the SCRAM verifiers of roles unencrypted: backup.database.role_passwords is always"
    if source.tools.major != source.facts.major:
        yield f"dumped with pg_dump {source.tools.version} from a server {source.facts.version}"
