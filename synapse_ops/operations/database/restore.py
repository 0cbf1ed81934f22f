"""Restores a backup to a new database on a server, or a new data directory. Never over anything that exists.

`plan_restore` only looks: what would be restored, where, with which programs, in how many seconds, which roles and
tablespaces the target lacks, and why it would be refused. `apply_restore` does that plan and checks again before it
begins. The target appears under its final name only when it is complete and compared: a database is restored as
`synapse_incomplete_...` and renamed, a directory is moved into place. Killed at any moment, it is absent or whole.
Works on a repository and keys alone.
"""

from __future__ import annotations

from pathlib import Path

from synapse_ops.domain.backup.dump_record import DumpRecord
from synapse_ops.domain.backup.layout import BackupPlace
from synapse_ops.domain.progress import ReportProgress, ignore_progress
from synapse_ops.operations.backup.deadline import Deadline
from synapse_ops.operations.backup.reading import ReadLog, read_backup_document
from synapse_ops.operations.backup.restoring import DEFAULT_TIMEOUT_S, RestoreReport, predict_from_repository
from synapse_ops.operations.database import restore_to_directory, restore_to_server
from synapse_ops.operations.database.restore_run import RestoreRun
from synapse_ops.operations.database.restore_target import DumpRestorePlan, ServerTarget, Target
from synapse_ops.operations.database.staged_dump import read_globals
from synapse_ops.operations.repository import Repository


def plan_restore(
    repository: Repository, place: BackupPlace, target: Target, *, identities: tuple[str, ...] = ()
) -> DumpRestorePlan:
    """Return what restoring a backup to `target` would do.

    Raises TargetNotEmpty or another Refused for a target that will not be touched, KeyMissing for a key that is not at
    hand, and IntegrityError for a damaged backup.json or globals.sql (the only objects read).
    """
    record = read_backup_document(repository, place, ReadLog(), DumpRecord)
    script = read_globals(repository, place, record, identities)
    predicted_s = predict_from_repository(repository, place, record.source_size_bytes)
    if isinstance(target, ServerTarget):
        return restore_to_server.plan(place, record, target, script, predicted_s)
    return restore_to_directory.plan(place, record, target, script, predicted_s)


def apply_restore(
    repository: Repository,
    plan: DumpRestorePlan,
    *,
    identities: tuple[str, ...] = (),
    work_dir: Path,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    progress: ReportProgress = ignore_progress,
) -> RestoreReport:
    """Carry out the plan. Raises what the plan would raise now, IntegrityError when the copy is not equal.

    work_dir: for the staged dump; what a killed run left there is swept first.
    """
    run = RestoreRun(repository, plan, identities, Deadline(timeout_s, "restore"), progress)
    if isinstance(plan.target, ServerTarget):
        return restore_to_server.apply(run, plan.target, work_dir)
    return restore_to_directory.apply(run, plan.target, work_dir)
