"""Where a backup can be restored to, what a plan and a report of that say, and what both kinds of target share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synapse_ops.domain import fingerprint as fingerprints
from synapse_ops.domain import structure as structures
from synapse_ops.domain.backup_record import BackupRecord
from synapse_ops.domain.repository_layout import BackupPlace
from synapse_ops.errors import IntegrityError, TargetNotEmpty
from synapse_ops.operations.staged_backup import StagedBackup
from synapse_ops.systems.pg_tools import PgTools
from synapse_ops.systems.postgres import UNLIMITED, connect, postgres_errors, set_session
from synapse_ops.systems.postgres_fingerprint import read_fingerprint
from synapse_ops.systems.postgres_structure import read_structure

SHOWN_DIFFERENCES = 20


@dataclass(frozen=True)
class ServerTarget:
    """A database that does not exist yet, on a server that does. conninfo: of a superuser; it may hold a password."""

    conninfo: str = field(repr=False)
    database: str


@dataclass(frozen=True)
class DirectoryTarget:
    """A data directory that does not exist yet or is empty."""

    directory: Path


Target = ServerTarget | DirectoryTarget


@dataclass(frozen=True)
class RestorePlan:
    """What a restore would do. Nothing was changed to find it out.

    where: host:port/database, or the directory; for people. server_version: of the target. size_bytes: of the source
    database; stored_bytes: to be read. predicted_s: None without a former restore in this repository.
    roles_missing: would be created; roles_present: stay exactly as they are. notes: what an operator ought to know.
    """

    place: BackupPlace
    record: BackupRecord
    target: Target
    tools: PgTools
    where: str
    server_version: str
    size_bytes: int
    stored_bytes: int
    predicted_s: float | None
    roles_missing: tuple[str, ...]
    roles_present: tuple[str, ...]
    tablespaces_missing: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class RestoreReport:
    """A restore that is complete and compared. restore_s: until it could be used; phase_s: its named parts."""

    plan: RestorePlan
    restore_s: float
    phase_s: dict[str, float]
    row_count: int
    notes: tuple[str, ...]


def compare_restored(
    staged: StagedBackup, conninfo: str, *, without_kinds: Sequence[str] = (), without_tablespaces: bool = False
) -> tuple[str, ...]:
    """Compare a restored database with its backup and return notes; raises IntegrityError naming what differs.

    A server of a newer major version hashes and describes differently: then the tables and their rows are counted, and
    a note says that no more could be compared.
    """
    actual = read_fingerprint(conninfo)
    if actual.server_major != staged.fingerprint.server_major:
        differences = _count_differences(staged.fingerprint, actual)
        majors = f"PostgreSQL {staged.fingerprint.server_major} and {actual.server_major}"
        notes: tuple[str, ...] = (f"only tables and rows were compared: {majors}",)
    else:
        differences = fingerprints.compare(staged.fingerprint, actual) + structures.compare(
            staged.structure,
            read_structure(conninfo),
            without_kinds=without_kinds,
            without_tablespaces=without_tablespaces,
        )
        notes = fingerprints.environment_notes(staged.fingerprint, actual)
    if differences:
        raise IntegrityError(
            f"the restored copy differs from its backup in {len(differences)} places",
            detail="\n".join(differences[:SHOWN_DIFFERENCES]),
        )
    return notes


def _count_differences(expected: fingerprints.Fingerprint, actual: fingerprints.Fingerprint) -> tuple[str, ...]:
    found = []
    for name in sorted(expected.tables.keys() | actual.tables.keys()):
        ours, theirs = expected.tables.get(name), actual.tables.get(name)
        if ours is None or theirs is None or ours.rows != theirs.rows:
            rows = [str(side.rows) if side else "missing" for side in (theirs, ours)]
            found.append(f"table {name}: rows {rows[0]}, expected {rows[1]}")
    return tuple(found)


def refuse_if_not_empty(directory: Path) -> None:
    """Raise TargetNotEmpty unless the directory is absent or an empty directory, and no symbolic link."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise TargetNotEmpty(f"{directory} is not a directory", hint="Name a directory that does not exist yet.")
    if directory.is_dir() and any(directory.iterdir()):
        count = len(list(directory.iterdir()))
        raise TargetNotEmpty(
            f"{directory} is not empty: it holds {count} files or directories",
            hint="Name a directory that does not exist yet; a restore never replaces anything.",
        )


def analyze(conninfo: str) -> None:
    """Gather planner statistics, so that the first queries are as quick as they were; its own settings do not apply."""
    with connect(conninfo) as connection, postgres_errors("ANALYZE of the restored database"):
        set_session(connection, {**UNLIMITED, "default_transaction_read_only": "off"})
        connection.execute("ANALYZE")
