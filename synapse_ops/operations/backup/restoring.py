"""What restores of every kind share: a plan that only looks, a report, and where the target text comes from.

A plan changes nothing; carrying it out checks again. Nothing is ever restored over anything that exists.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.backup.layout import BackupPlace
from synapse_ops.domain.backup.record import BackupRecord
from synapse_ops.domain.backup.restore_estimate import predict_from
from synapse_ops.domain.progress import ReportProgress, ignore_progress
from synapse_ops.errors import ConfigError, TargetNotEmpty, counted
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.repository import Repository

if TYPE_CHECKING:
    from synapse_ops.operations.stack import Stack

DEFAULT_TIMEOUT_S = 24 * 3600.0


@dataclass(frozen=True)
class RestoreRequest:
    """What is to be restored, and where to.

    target: what a person wrote after --to. server: reference to the server of a new database, None for the spec's.
    open_stack: opens the spec; None where there is a repository alone. identities: age secret keys.
    work_dir: for what is staged; left-overs of killed runs are removed from it first.
    until, timeline, goes_live: of a cluster alone: the moment as `--until` has it, the timeline to follow (None: the
    newest), and whether the copy is given a generation of its own.
    """

    repository: Repository
    place: BackupPlace
    target: str
    open_stack: Callable[[], Stack] | None
    work_dir: Path
    server: str | None = None
    until: str | None = None
    timeline: int | None = None
    goes_live: bool = False
    identities: tuple[str, ...] = ()
    timeout_s: float = DEFAULT_TIMEOUT_S
    progress: ReportProgress = ignore_progress


@dataclass(frozen=True)
class RestorePlan:
    """What a restore would do. Nothing was changed to find it out.

    where: the new database, directory or collection, for people. server_version: of the target.
    size_bytes: of what will lie there; stored_bytes: to be read. predicted_s: None without a former restore in this
    repository. notes: what an operator ought to know.
    """

    place: BackupPlace
    record: BackupRecord
    where: str
    server_version: str
    size_bytes: int
    stored_bytes: int
    predicted_s: float | None
    notes: tuple[str, ...]

    def facts(self) -> Mapping[str, str]:
        """Return what only this kind of target has to say, label -> text."""
        return {}

    def as_json(self) -> dict[str, Any]:
        """Return the plan's stable JSON form."""
        return {
            "backup_id": self.place.backup_id,
            "kind": self.place.kind,
            "subject": self.place.subject,
            "data_time": self.record.data_time.isoformat(),
            "item_count": self.record.item_count,
            "target": self.where,
            "target_server_version": self.server_version,
            "size_bytes": self.size_bytes,
            "stored_bytes": self.stored_bytes,
            "predicted_restore_s": self.predicted_s,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class RestoreReport:
    """A restore that is complete and compared. restore_s: until it could be used; phase_s: its named parts."""

    plan: RestorePlan
    restore_s: float
    phase_s: dict[str, float]
    item_count: int
    notes: tuple[str, ...]

    @property
    def outcome(self) -> str:
        """What was done to the copy before it got its name."""
        return "restored and compared equal"

    def next_steps(self) -> tuple[str, ...]:
        """Return what a person does to make the copy live, one command a line."""
        return ()

    def as_json(self) -> dict[str, Any]:
        """Return the report's stable JSON form: the plan's fields, and what was measured."""
        return {
            **self.plan.as_json(),
            "restore_s": self.restore_s,
            "phase_s": self.phase_s,
            "item_count": self.item_count,
            "notes": list(self.notes),
        }


def predict_from_repository(repository: Repository, place: BackupPlace, size_bytes: int) -> float | None:
    """Return how long a restore of `size_bytes` takes by the proofs of the same subject; None without any."""
    return predict_from(read_catalog(repository, subject=place.subject).only(place.kind).backups, size_bytes)


def require_new_directory(directory: Path) -> None:
    """Raise TargetNotEmpty unless the directory is absent or empty, ConfigError when it has no parent to lie in."""
    refuse_if_not_empty(directory)
    if not directory.parent.is_dir():
        raise ConfigError(f"{directory.parent} does not exist", hint=f"Make it first: mkdir -p {directory.parent}")


def move_into_place(made: Path, directory: Path) -> None:
    """Rename what was made beside `directory`, on the same file system, to it. Replaces an empty directory at most."""
    refuse_if_not_empty(directory)
    made.rename(directory)
    flush_directory(directory.parent)  # else a power failure may undo the rename


def refuse_if_not_empty(directory: Path) -> None:
    """Raise TargetNotEmpty unless the directory is absent or an empty directory, and no symbolic link."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise TargetNotEmpty(f"{directory} is not a directory", hint="Name a directory that does not exist yet.")
    if directory.is_dir() and any(directory.iterdir()):
        count = len(list(directory.iterdir()))
        raise TargetNotEmpty(
            f"{directory} is not empty: it holds {counted(count, 'entry', 'entries')}",
            hint="Name a directory that does not exist yet; a restore never replaces anything.",
        )


def flush_directory(directory: Path) -> None:
    """Make the entries of a directory durable: a file that was written or renamed into it survives a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
