"""Restores a backup as a whole new PostgreSQL data directory, which `pg_ctl -D DIR start` starts anywhere.

The cluster is made and filled in a throwaway beside the target, on the same file system, and moved into place when it
is complete, compared, stopped cleanly and flushed to disk. It has a new configuration: it listens on loopback only,
asks for passwords over TCP, and lets the owner of its files in by socket as the backup's superuser.
"""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from synapse_ops.domain.backup.dump_record import DumpRecord
from synapse_ops.domain.backup.layout import BackupPlace
from synapse_ops.domain.database.globals_script import GlobalsScript
from synapse_ops.errors import ConfigError
from synapse_ops.operations.backup.restoring import RestoreReport, move_into_place, require_new_directory
from synapse_ops.operations.backup.throwaway_directory import sweep_throwaways, throwaway_base, throwaway_directory
from synapse_ops.operations.database.restore_into_throwaway import restore_into_throwaway
from synapse_ops.operations.database.restore_run import RestoreRun
from synapse_ops.operations.database.restore_target import (
    DirectoryTarget,
    DumpRestorePlan,
)
from synapse_ops.operations.database.throwaway_server import throwaway_server
from synapse_ops.systems.host.processes import ServerIdentity, give_to, reachable_by, run_as, server_identity
from synapse_ops.systems.postgres.programs import PgTools, find_pg_tools

SOCKET_DIR = "/tmp"  # noqa: S108 - where clients of most builds look
CONFIGURATION = f"""\
# written by synapse-ops after a restore; everything else is PostgreSQL's default
listen_addresses = 'localhost'
unix_socket_directories = '{SOCKET_DIR}'
password_encryption = scram-sha-256
"""
AUTHENTICATION = """\
local all "{superuser}" peer map=restored
local all all scram-sha-256
host  all all 127.0.0.1/32 scram-sha-256
host  all all ::1/128 scram-sha-256
"""


@dataclass(frozen=True)
class DirectoryRestoreReport(RestoreReport):
    """superuser: the role of the backup that the owner of the files connects as, by socket and without a password."""

    superuser: str

    def next_steps(self) -> tuple[str, ...]:
        directory, role, database = map(shlex.quote, (self.plan.where, self.superuser, self.plan.place.subject))
        return (
            f"pg_ctl -D {directory} start",
            f"psql -h {SOCKET_DIR} -U {role} {database}  # as the owner of the directory",
        )


def plan(
    place: BackupPlace, record: DumpRecord, target: DirectoryTarget, script: GlobalsScript, predicted_s: float | None
) -> DumpRestorePlan:
    """Return what restoring to `target` would do; raises TargetNotEmpty unless it is absent or empty."""
    directory = target.directory.absolute()
    require_new_directory(directory)
    identity = server_identity()
    if not reachable_by(identity, directory.parent):
        raise ConfigError(
            f'user "{identity.name if identity else ""}" runs the server and cannot enter {directory.parent}',
            hint="Choose a place outside private home directories.",
        )
    tools = find_pg_tools(record.source.server_version_num // 10000)
    notes = []
    if script.roles and not record.role_passwords:
        notes.append("the backup holds no role passwords: password logins fail until one is set")
    if script.tablespaces:
        notes.append(f"tablespaces {', '.join(script.tablespaces)} will lie inside the directory (pg_tblspc)")
    if identity is not None:
        notes.append(f'the directory will belong to user "{identity.name}", since PostgreSQL does not run as root')
    return DumpRestorePlan(
        place=place,
        record=record,
        target=target,
        tools=tools,
        where=str(directory),
        server_version=tools.version,
        size_bytes=record.source.database_size_bytes,
        stored_bytes=record.stored_bytes,
        predicted_s=predicted_s,
        roles_missing=script.roles,
        roles_present=(),
        tablespaces_missing=(),
        notes=tuple(notes),
    )


def apply(run: RestoreRun, target: DirectoryTarget, work_dir: Path) -> RestoreReport:
    """Make, fill, compare and stop a cluster beside the target, then move it into place."""
    planned, deadline, directory = run.plan, run.deadline, target.directory.absolute()
    record = planned.record
    sweep_throwaways(directory.parent)
    with (
        throwaway_directory(
            directory.parent,
            database_size_bytes=planned.size_bytes,
            scratch_bytes=record.stored_bytes,
            programs_dir=throwaway_base(work_dir, server_identity()) / "programs",
        ) as throwaway_dir,
    ):
        staged = run.stage(throwaway_dir.scratch_dir)
        superuser = staged.superuser
        with throwaway_server(
            throwaway_dir,
            tools=planned.tools,
            superuser=superuser,
            database_size_bytes=planned.size_bytes,
            deadline=deadline,
        ) as throwaway:
            restore_into_throwaway(
                throwaway,
                staged,
                record,
                scratch_dir=throwaway_dir.scratch_dir,
                deadline=deadline,
                progress=run.progress,
            )
            run.compare(staged, throwaway.conninfo(record.source.database))
            throwaway.server.stop("fast")
        make_permanent(throwaway.server.data_dir, throwaway.server.tools, superuser, throwaway_dir.identity)
        move_into_place(throwaway.server.data_dir, directory)
    return DirectoryRestoreReport(**vars(run.report(planned)), superuser=superuser)


def make_permanent(
    data_dir: Path,
    tools: PgTools,
    superuser: str,
    identity: ServerIdentity | None,
    settings: Mapping[str, int] | None = None,
) -> None:
    """Give the cluster a configuration to live with, and flush it: it was made with fsync off.

    settings: what it cannot start without, beside PostgreSQL's defaults.
    """
    owner = pwd.getpwuid(data_dir.stat().st_uid).pw_name
    users = dict.fromkeys([owner, *(["root"] if identity is not None else [])])
    quoted = superuser.replace('"', '""')
    texts = {
        "postgresql.conf": CONFIGURATION + "".join(f"{name} = {value}\n" for name, value in (settings or {}).items()),
        "pg_hba.conf": AUTHENTICATION.format(superuser=quoted),
        "pg_ident.conf": "".join(f'restored {user} "{quoted}"\n' for user in users),
    }
    for name, text in texts.items():
        path = data_dir / name
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        give_to(identity, path)
    run_as(identity, [tools.path("initdb"), "--sync-only", "-D", data_dir], timeout_s=3600, env=tools.environment())
