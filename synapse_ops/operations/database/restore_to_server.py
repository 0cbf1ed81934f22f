"""Restores a backup as a new database beside the others of a running server.

Roles that the server has stay exactly as they are; missing ones are created, and stay when the restore fails: the error
names them and marks superusers, because a role that is in use by now must not be dropped. The data goes into a database
named `synapse_incomplete_<backup id>_<random>`, which gets its final name, by a rename that fails when the name is
taken meanwhile, once it is complete, compared and analysed. On an error it is dropped, because this run created it;
a copy that is not equal is kept as `synapse_differs_...`; after a kill it stays, recognisable by its name and comment.
Later plans name both for what they are.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from psycopg import sql
from psycopg.conninfo import make_conninfo

from synapse_ops.domain.backup.dump_record import DumpRecord
from synapse_ops.domain.backup.layout import BackupPlace
from synapse_ops.domain.database.globals_script import GlobalsScript, statements_for_missing_roles, without_tablespace
from synapse_ops.domain.database.structure import SHARED_KINDS
from synapse_ops.errors import ConfigError, IntegrityError, Refused, SynapseOpsError, TargetNotEmpty, Unreachable
from synapse_ops.operations.backup.restoring import RestoreReport
from synapse_ops.operations.backup.throwaway_directory import sweep_throwaways, throwaway_directory
from synapse_ops.operations.database.archive_restore import (
    DatabaseStatements,
    apply_properties,
    create_database,
    drop_what_the_source_lacks,
    execute_statements,
    read_database_statements,
    run_pg_restore,
    size_reporter,
)
from synapse_ops.operations.database.restore_run import RestoreRun
from synapse_ops.operations.database.restore_target import DumpRestorePlan, ServerTarget
from synapse_ops.operations.database.staged_dump import StagedBackup
from synapse_ops.systems.postgres.connection import connect, describe, postgres_errors
from synapse_ops.systems.postgres.programs import PgTools, find_pg_tools

INCOMPLETE = "synapse_incomplete_"
DIFFERS = "synapse_differs_"
NAME_LIMIT_BYTES = 63  # PostgreSQL cuts longer names silently

_FACTS = """
SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(),
       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
       array(SELECT datname::text FROM pg_database ORDER BY 1), array(SELECT rolname::text FROM pg_roles ORDER BY 1),
       array(SELECT spcname::text FROM pg_tablespace ORDER BY 1),
       array(SELECT DISTINCT datname::text FROM pg_stat_activity WHERE datname IS NOT NULL)
"""


def plan(
    place: BackupPlace, record: DumpRecord, target: ServerTarget, script: GlobalsScript, predicted_s: float | None
) -> DumpRestorePlan:
    """Return what restoring to `target` would do; raises Refused for what it will not touch."""
    if not target.database or len(target.database.encode()) > NAME_LIMIT_BYTES:
        raise ConfigError(
            f'database name "{target.database}" is not valid: it must be 1 to {NAME_LIMIT_BYTES} bytes long'
        )
    target = _with_a_database_that_exists(target, "template1", place.subject)
    with connect(target.conninfo) as connection, postgres_errors(f"the catalogs of {describe(target.conninfo)}"):
        row = connection.execute(_FACTS).fetchone()
    if row is None:
        raise Refused(f"could not read server facts from {describe(target.conninfo)}: no row returned")
    number, version, in_recovery, is_superuser, databases, roles, tablespaces, in_use = row
    where = describe(make_conninfo(target.conninfo, dbname=target.database))
    _refuse(target, where, record, number, in_recovery, is_superuser, databases)
    missing = tuple(name for name in script.roles if name not in roles)
    lacking = tuple(name for name in script.tablespaces if name not in tablespaces)
    return DumpRestorePlan(
        place=place,
        record=record,
        target=target,
        tools=_tools_for(number // 10000),
        where=where,
        server_version=str(version),
        size_bytes=record.source.database_size_bytes,
        stored_bytes=record.stored_bytes,
        predicted_s=predicted_s,
        roles_missing=missing,
        roles_present=tuple(name for name in script.roles if name in roles),
        tablespaces_missing=lacking,
        notes=(*_notes(record, script, missing, lacking), *_notes_on_copies(databases, in_use)),
    )


def _with_a_database_that_exists(target: ServerTarget, *others: str) -> ServerTarget:
    """Return the target connected through its own maintenance database, or through another where that was dropped."""
    try:
        connect(target.conninfo).close()
    except (ConfigError, Unreachable) as refused:
        for name in others:
            candidate = make_conninfo(target.conninfo, dbname=name)
            with contextlib.suppress(ConfigError, Unreachable):
                connect(candidate).close()
                return replace(target, conninfo=candidate)
        raise refused from None
    return target


def _refuse(
    target: ServerTarget,
    where: str,
    record: DumpRecord,
    number: int,
    in_recovery: bool,
    is_superuser: bool,
    databases: list[str],
) -> None:
    if target.database in databases:
        raise TargetNotEmpty(
            f'database "{target.database}" already exists on {describe(target.conninfo).partition("/")[0]}',
            hint="Restore under a new name, compare, and rename both at a time of your choice.",
        )
    if in_recovery:
        raise Refused(f"{where} is on a standby, which takes no writes", hint="Name the primary.")
    if not is_superuser:
        raise ConfigError(
            f"the role that connects to {where} is not a superuser",
            hint="A restore sets owners, roles and extensions: name a superuser in --server.",
        )
    if number // 10000 < record.source.server_version_num // 10000:
        raise Refused(
            f"{where} is PostgreSQL {number // 10000}, the backup is of {record.source.server_version}",
            hint="A dump restores into its own major version or a newer one.",
        )


def _tools_for(major: int) -> PgTools:
    """Return the target's own programs, or the newest: pg_restore reads older archives and speaks to older servers."""
    try:
        return find_pg_tools(major)
    except ConfigError:
        return find_pg_tools()


def _notes(
    record: DumpRecord,
    script: GlobalsScript,
    missing: tuple[str, ...],
    lacking: tuple[str, ...],
) -> Iterator[str]:
    powerful = sorted(set(missing) & set(script.superusers))
    if powerful:
        yield f"would create superusers: {', '.join(powerful)}"
    if missing and not record.role_passwords:
        yield "the backup holds no role passwords: created roles cannot log in by password until one is set"
    if any(statement.starts("alter", "role", "all") for statement in script.statements):
        yield "settings of all roles (ALTER ROLE ALL) are in the backup, and are not applied to a server that exists"
    if lacking:
        yield f"everything goes into the default tablespace: the server lacks {', '.join(lacking)}"


def _notes_on_copies(databases: list[str], in_use: list[str]) -> Iterator[str]:
    """Yield what earlier restores, or others at work now, have on the server. in_use: databases with a session."""
    for name in databases:
        if name.startswith(DIFFERS):
            backup_id = name.removeprefix(DIFFERS).rpartition("_")[0]
            drop = f'when it is no longer needed: DROP DATABASE "{name}"'
            yield f'database "{name}" was kept for inspection: it differs from backup {backup_id}; {drop}'
        elif name.startswith(INCOMPLETE) and name in in_use:
            yield f'database "{name}" is in use: another restore fills it now'
        elif name.startswith(INCOMPLETE):
            yield f'database "{name}" was left by an interrupted restore; nothing uses it: DROP DATABASE "{name}"'


def apply(run: RestoreRun, target: ServerTarget, work_dir: Path) -> RestoreReport:
    """Restore, compare, analyse, rename. Raises IntegrityError (the incomplete database stays) when it is not equal."""
    planned, deadline = run.plan, run.deadline
    place, record = planned.place, planned.record
    sweep_throwaways(work_dir)
    with throwaway_directory(work_dir, database_size_bytes=0, scratch_bytes=record.stored_bytes) as scratch:
        staged = run.stage(scratch.scratch_dir)
        current = plan(place, record, target, staged.globals_script, planned.predicted_s)  # it may have changed
        statements = read_database_statements(
            current.tools, staged.archive, place.subject, scratch_dir=scratch.scratch_dir, deadline=deadline
        )
        present = frozenset(current.roles_present)
        with _created_roles_named(target, current.roles_missing), _incomplete_database(target, place) as name:
            execute_statements(
                target.conninfo, statements_for_missing_roles(staged.globals_script, present), what="the missing roles"
            )
            conninfo = make_conninfo(target.conninfo, dbname=name)
            renamed = statements.renamed(place.subject, name)
            lacking = bool(current.tablespaces_missing)
            if lacking:
                renamed = renamed.changed(without_tablespace)
            create = partial(_create, target, place, name, conninfo, renamed, staged)
            report = size_reporter(target.conninfo, name, planned.size_bytes, run.progress)
            run_pg_restore(
                current.tools,
                staged.archive,
                conninfo,
                create=create,
                options=["--no-tablespaces"] if lacking else [],
                scratch_dir=scratch.scratch_dir,
                deadline=deadline,
                report=report,
            )
            execute_statements(conninfo, staged.supplement, what="the supplement of the backup")
            _say(target, "COMMENT ON DATABASE {} IS NULL", name)
            apply_properties(target.conninfo, renamed, name)
            run.compare(staged, conninfo, without_kinds=tuple(SHARED_KINDS), without_tablespaces=lacking)
            _rename(target, name, target.database)
    return run.report(current)


def _create(
    target: ServerTarget,
    place: BackupPlace,
    name: str,
    conninfo: str,
    statements: DatabaseStatements,
    staged: StagedBackup,
) -> None:
    create_database(target.conninfo, statements, name)
    _say_incomplete(target, name, place)
    drop_what_the_source_lacks(conninfo, staged.structure)


@contextlib.contextmanager
def _incomplete_database(target: ServerTarget, place: BackupPlace) -> Iterator[str]:
    """Yield the name to restore under; on any error but a difference the database is dropped again, it is ours."""
    name = f"{INCOMPLETE}{place.backup_id}_{secrets.token_hex(3)}"
    try:
        yield name
    except IntegrityError as differs:
        kept = _set_aside(target, name)
        differs.hint = f'It is kept as "{kept}" for inspection; remove it with: DROP DATABASE "{kept}"'
        raise
    except BaseException:
        with contextlib.suppress(Exception):  # what failed first is what the operator must read
            _say(target, "DROP DATABASE IF EXISTS {} WITH (FORCE)", name)
        raise


@contextlib.contextmanager
def _created_roles_named(target: ServerTarget, missing: tuple[str, ...]) -> Iterator[None]:
    """Add to an error which of the roles that were missing exist now. missing: before the block."""
    try:
        yield
    except SynapseOpsError as error:
        with contextlib.suppress(SynapseOpsError):
            created = _existing_roles(target, missing)
            if created:
                names = ", ".join(f'"{name}" (superuser)' if is_super else f'"{name}"' for name, is_super in created)
                error.hint += f"{' ' if error.hint else ''}Roles that this restore created stay on the server: {names}."
        raise


def _existing_roles(target: ServerTarget, names: tuple[str, ...]) -> list[tuple[str, bool]]:
    """Return which of these roles exist, and whether each is a superuser."""
    with connect(target.conninfo) as connection, postgres_errors(f"the roles of {describe(target.conninfo)}"):
        statement = "SELECT rolname::text, rolsuper FROM pg_roles WHERE rolname = ANY(%s) ORDER BY 1"
        return connection.execute(statement, [list(names)]).fetchall()


def _set_aside(target: ServerTarget, name: str) -> str:
    """Give a copy that is not equal a name that says so, as far as that works; return its name now."""
    kept = DIFFERS + name.removeprefix(INCOMPLETE)
    try:
        _rename(target, name, kept)
    except SynapseOpsError:
        return name
    return kept


def _say(target: ServerTarget, template: str, name: str) -> None:
    with connect(target.conninfo) as connection, postgres_errors(f"database {name}"):
        connection.execute(sql.SQL(template).format(sql.Identifier(name)))


def _say_incomplete(target: ServerTarget, name: str, place: BackupPlace) -> None:
    words = sql.Literal(f"incomplete: synapse-ops is restoring backup {place.backup_id} of {place.subject} here")
    with connect(target.conninfo) as connection, postgres_errors(f"the comment of {name}"):
        connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), words))


def _rename(target: ServerTarget, name: str, new_name: str) -> None:
    import psycopg

    with connect(target.conninfo) as connection, postgres_errors(f"the rename of {name}"):
        statement = sql.SQL("ALTER DATABASE {} RENAME TO {}")
        try:
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(new_name)))
        except psycopg.errors.DuplicateDatabase:
            raise TargetNotEmpty(
                f'database "{new_name}" was created while the restore ran',
                hint="Choose another name and restore again; the copy was removed.",
            ) from None
