"""A verified archive put into a server: CREATE DATABASE with its settings, pg_restore, and the database's privileges.

The statements of the database itself are taken from the archive's table of contents and executed here, because a copy
may need another name. Its settings come before the data, as `pg_restore --create` has it: a CHECK may depend on them.
Those that would get in our way do not reach our sessions (systems/postgres/session.py).
Any line of error or warning from pg_restore makes the restore fail, whatever its exit status; the two warnings of
`EXPECTED_WARNINGS` alone say what is known and wanted in a server without replication.
Messages quote pg_restore's own lines about errors, of the statement that met them only the words before its first
literal, and never a row: those hold data, and the passwords of user mappings.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from synapse_ops.domain.database.globals_script import Statement, quote_name, split_statements, with_database_name
from synapse_ops.domain.database.structure import Structure
from synapse_ops.domain.progress import Progress, ReportProgress
from synapse_ops.errors import SynapseOpsError, ToolFailed, Unproven, WrongIdentity
from synapse_ops.operations.backup.deadline import Deadline
from synapse_ops.systems.host.processes import run_as, spawn
from synapse_ops.systems.postgres.connection import connect, postgres_errors, program_parts
from synapse_ops.systems.postgres.errors import PostgresRefused, program_error
from synapse_ops.systems.postgres.programs import PgTools

POLL_S = 0.02
REPORT_S = 0.5
JOBS_LIMIT = 4  # more seldom helps one database: its largest table or index is one job
SHOWN_LINES = 12

# Two passes, because one pass with parallel jobs may add the foreign key of a partitioned table, which itself holds no
# data, before the data of its partitions: each row is then checked as the owner of the other table, who need not be
# allowed to, and a sound backup would not restore.
_PASSES = (("pre-data", "data"), ("post-data",))

# Both come of creating logical replication where there is none: the definition is restored, nothing is connected.
EXPECTED_WARNINGS = (
    re.compile(r'"?wal_level"? is insufficient to publish logical changes'),
    re.compile(r"subscription was created, but is not connected"),
)
_COMPLAINT = re.compile(r"\b(error|warning|fatal|panic)\b", re.IGNORECASE)
_QUOTABLE = re.compile(r"^(pg_restore: (error|warning|from TOC entry)|WARNING: |ERROR: |FATAL: ).*")
_COMMAND = re.compile(r"^Command was: [^'($]*")  # up to its first literal: the kind and name of an object
_DATABASE_ENTRY = re.compile(r"^\d+; \d+ \d+ (DATABASE( PROPERTIES)?|(ACL|COMMENT|SECURITY LABEL) - DATABASE) ")


@dataclass(frozen=True)
class DatabaseStatements:
    """SQL of the database itself. creating: with its settings, before the data; properties: after it (privileges)."""

    creating: tuple[Statement, ...]
    properties: tuple[Statement, ...]

    def renamed(self, old: str, new: str) -> DatabaseStatements:
        """Return the same for a database of another name."""
        return self.changed(lambda statement: with_database_name(statement, old, new))

    def changed(self, change: Callable[[Statement], Statement]) -> DatabaseStatements:
        """Return the same with every statement changed."""
        return DatabaseStatements(tuple(map(change, self.creating)), tuple(map(change, self.properties)))


def read_database_statements(
    tools: PgTools, archive: Path, database: str, *, scratch_dir: Path, deadline: Deadline
) -> DatabaseStatements:
    """Return the statements that create and set up the archive's database.

    Raises ToolFailed for a file that is not an archive, WrongIdentity when it is of another database than `database`.
    """
    program, environment = tools.path("pg_restore"), tools.environment()
    asked: list[str | Path] = [program, "--create", "--list", archive]  # without --create these entries are not listed
    listing = run_as(None, asked, timeout_s=deadline.remaining_s(), env=environment).stdout
    chosen = scratch_dir / "database.list"
    chosen.write_text("".join(f"{line}\n" for line in listing.splitlines() if _DATABASE_ENTRY.match(line)))
    command: list[str | Path] = [program, "--create", "--use-list", chosen, "--file", "-", archive]
    script = run_as(None, command, timeout_s=deadline.remaining_s(), env=environment).stdout
    statements = [s for s in split_statements(script) if not s.starts("set") and not s.starts("select")]
    creating = [s for s in statements if s.starts("create", "database") or _sets_up(s)]
    names = [s.name(2) for s in creating if s.starts("create", "database")]
    if names != [database]:
        raise WrongIdentity(f'the archive holds the database {names}, not "{database}"')
    return DatabaseStatements(tuple(creating), tuple(s for s in statements if s not in creating))


def _sets_up(statement: Statement) -> bool:
    """Say whether this sets the owner of the database, or a setting of it or of a role in it."""
    return statement.starts("alter", "role") or (
        statement.starts("alter", "database") and statement.name(3) in {"owner", "set"}
    )


def execute_statements(conninfo: str, statements: Sequence[str], *, what: str) -> None:
    """Execute statements one by one, each committed; raises what `postgres_errors` makes of the first that fails."""
    with connect(conninfo) as connection, postgres_errors(what):
        for text in statements:
            connection.execute(text.encode())


def create_database(conninfo: str, statements: DatabaseStatements, name: str) -> None:
    """Create the empty database `name` with the source's encoding, locale, owner and settings.

    conninfo: of another database. One that a first try left under that name, or initdb, is dropped.
    """
    untied = ["ALTER DATABASE template1 IS_TEMPLATE false"] if name == "template1" else []
    drop = f"DROP DATABASE IF EXISTS {quote_name(name)} WITH (FORCE)"
    statement_texts = [*untied, drop, *(s.text for s in statements.creating)]
    execute_statements(conninfo, statement_texts, what=f"CREATE DATABASE {quote_name(name)}")


def drop_what_the_source_lacks(conninfo: str, structure: Structure) -> None:
    """Drop what every new database has, when its source had dropped it. conninfo: of the new database."""
    usual = {"schema: public": "DROP SCHEMA public", "extension: plpgsql": "DROP EXTENSION plpgsql"}
    lacking = [statement for name, statement in usual.items() if name not in structure.entries]
    if lacking:
        execute_statements(conninfo, lacking, what="the removal of what the source lacks")


def apply_properties(conninfo: str, statements: DatabaseStatements, name: str) -> None:
    """Apply the database's own privileges, limits and comment; conninfo: of another database."""
    execute_statements(
        conninfo, [s.text for s in statements.properties], what=f"privileges of database {quote_name(name)}"
    )


def jobs_for_this_host() -> int:
    return max(1, min(JOBS_LIMIT, os.cpu_count() or 1))


def run_pg_restore(
    tools: PgTools,
    archive: Path,
    conninfo: str,
    *,
    create: Callable[[], None],
    options: Sequence[str] = (),
    scratch_dir: Path,
    deadline: Deadline,
    report: Callable[[], None] = lambda: None,
) -> None:
    """Restore everything but the database itself; `report` is called about twice a second meanwhile.

    create: makes the empty database, again when the first try has filled it. conninfo: of that database; its password
    travels in the environment, never in argv. Where parallel jobs fail, a single one tries once more: its rows come in
    the order of the archive, on which a CHECK that looks into another table may depend.
    Raises ToolFailed with pg_restore's own messages, or what `program_error` makes of them, Unproven for a warning,
    DeadlineExceeded (it is killed then).
    """
    jobs = jobs_for_this_host()
    run = partial(_run_passes, tools, archive, conninfo, scratch_dir=scratch_dir, deadline=deadline, report=report)
    create()
    try:
        run([*options, f"--jobs={jobs}"])
    except (ToolFailed, Unproven) as fault:
        if jobs == 1 or isinstance(fault, PostgresRefused):
            raise
        try:
            create()
        except SynapseOpsError:
            raise fault from None
        run([*options, "--jobs=1"])


def _run_passes(
    tools: PgTools,
    archive: Path,
    conninfo: str,
    options: Sequence[str],
    *,
    scratch_dir: Path,
    deadline: Deadline,
    report: Callable[[], None],
) -> None:
    log_path = scratch_dir / "pg_restore.log"
    program: list[str | Path] = [tools.path("pg_restore"), "--exit-on-error", *options]
    for sections in _PASSES:
        command = [*program, *(f"--section={section}" for section in sections)]
        _run_pass(tools, command, archive, conninfo, log_path, deadline, report)


def _run_pass(
    tools: PgTools,
    command: list[str | Path],
    archive: Path,
    conninfo: str,
    log_path: Path,
    deadline: Deadline,
    report: Callable[[], None],
) -> None:
    log_path.unlink(missing_ok=True)
    parts = program_parts(conninfo)
    command = [*command, f"--dbname=dbname={_conninfo_quoted(parts.pop('dbname'))}", archive]
    process = spawn(
        None,
        command,
        log_path=log_path,
        env=tools.environment() | _as_environment(parts),
        cwd=log_path.parent,
        die_with_parent=signal.SIGKILL,
    )
    try:
        _wait(process, deadline, report)
    finally:
        _kill_group(process)
    _judge(command, process.returncode, log_path.read_text(errors="replace"))


def _conninfo_quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _as_environment(parts: dict[str, str]) -> dict[str, str]:
    """Return libpq's environment variables for the keywords of a connection string."""
    from psycopg.pq import Conninfo

    names = {option.keyword.decode(): option.envvar for option in Conninfo.get_defaults()}
    found = {}
    for keyword, value in parts.items():
        variable = names.get(keyword)
        if variable:
            found[variable.decode()] = value
    return found


def _wait(process: subprocess.Popen[bytes], deadline: Deadline, report: Callable[[], None]) -> None:
    next_report = time.monotonic() + REPORT_S
    while process.poll() is None:
        deadline.remaining_s()
        if time.monotonic() >= next_report:
            report()
            next_report = time.monotonic() + REPORT_S
        time.sleep(POLL_S)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End pg_restore and its parallel workers, a stopped one included."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _judge(command: Sequence[str | Path], status: int, stderr: str) -> None:
    lines = [line for line in stderr.splitlines() if not any(known.search(line) for known in EXPECTED_WARNINGS)]
    complaints = [line for line in lines if _COMPLAINT.search(line)]
    quoted = [found[0].strip() for line in lines if (found := _QUOTABLE.match(line) or _COMMAND.match(line))]
    shown = "\n".join(quoted[:SHOWN_LINES])
    if status != 0:
        failed = ToolFailed([str(command[0])], status=status, stderr_tail=shown or "it printed no cause")
        raise program_error(shown, "pg_restore") or failed
    if complaints:
        raise Unproven(f"pg_restore exited 0 but printed {len(complaints)} warnings", detail=shown)


class size_reporter:  # noqa: N801 - called like a function
    """Reports how large a database has grown, against what its source had; it may end a little below or above that."""

    def __init__(self, conninfo: str, name: str, total: int, progress: ReportProgress) -> None:
        self._conninfo, self._name, self._total, self._progress = conninfo, name, total, progress

    def __call__(self) -> None:
        with connect(self._conninfo) as connection, postgres_errors("the size of a database being restored"):
            row = connection.execute("SELECT pg_database_size(%s::name)", [self._name]).fetchone()
        self._progress(Progress(f"restoring {self._name}", int(row[0]) if row else 0, self._total))
