"""Proves a backup: restores it into a throwaway server, compares it exactly, and writes down what came of it.

Only a restore that was carried out and compared counts. Any doubt is written as UNPROVEN with its reason: a damaged or
missing object, an error or warning of pg_restore, a time-out, a fault of our own. A restored copy that is not equal is
DIFFERS. What this host lacks (the key, programs of the backup's major version, room) and an interruption say nothing of
the backup: NOT_ATTEMPTED, written as `attempt-<time>.json`, which proves nothing and undoes no earlier proof.
One of the two is written whatever happens, as long as the backup's own `backup.json` could be read as bytes: a backup
whose proof crashed is not a backup that nobody has looked at.
"""

from __future__ import annotations

import time
from pathlib import Path

from synapse_ops.domain import fingerprint as fingerprints
from synapse_ops.domain import structure as structures
from synapse_ops.domain.backup_record import BackupRecord
from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.domain.repository_layout import KIND_DUMP, BackupPlace
from synapse_ops.operations.deadline import Deadline
from synapse_ops.operations.proof import DEFAULT_TIMEOUT_S, Outcome, ProofReport, carry_out_proof
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.restore_into_throwaway import restore_into_throwaway
from synapse_ops.operations.staged_backup import (
    StagedBackup,
    hold_for_reading,
    read_backup_document,
    stage_backup,
)
from synapse_ops.operations.throwaway_directory import sweep_throwaways, throwaway_directory
from synapse_ops.operations.throwaway_server import Throwaway, throwaway_server
from synapse_ops.systems.amcheck import check_relations
from synapse_ops.systems.pg_tools import find_pg_tools
from synapse_ops.systems.postgres import connect, postgres_errors
from synapse_ops.systems.postgres_fingerprint import read_fingerprint
from synapse_ops.systems.postgres_structure import read_structure

FINGERPRINT_WORKERS = 2


def prove_backup(
    repository: Repository,
    *,
    place: BackupPlace | None = None,
    database: str | None = None,
    identities: tuple[str, ...] = (),
    work_dir: Path,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    progress: ReportProgress = ignore_progress,
) -> ProofReport | None:
    """Prove one backup and return what was written; None when `place` is None and every backup is proven.

    place: None chooses the newest backup that no proof has judged yet, else the newest that is not proven, of
    `database` or of any. identities: age secret keys. work_dir: where throwaway servers live; left-overs of killed ones
    are swept first. timeout_s: bounds everything but writing the proof.
    Raises ObjectMissing when there is no such backup, and what the store raises when the proof cannot be written.
    """
    deadline = Deadline(timeout_s, "proof of restore")
    sweep_throwaways(work_dir)

    def prove(chosen: BackupPlace, outcome: Outcome) -> None:
        _prove(repository, chosen, identities, work_dir, deadline, progress, outcome)

    return carry_out_proof(repository, kind=KIND_DUMP, place=place, subject=database, deadline=deadline, prove=prove)


def _prove(
    repository: Repository,
    place: BackupPlace,
    identities: tuple[str, ...],
    work_dir: Path,
    deadline: Deadline,
    progress: ReportProgress,
    outcome: Outcome,
) -> None:
    begun = time.monotonic()
    record = read_backup_document(repository, place, outcome.log, BackupRecord)
    tools = find_pg_tools(record.source.server_version_num // 10000)
    size_bytes = record.source.database_size_bytes
    with (
        hold_for_reading(repository, place, "proof"),
        throwaway_directory(work_dir, database_size_bytes=size_bytes, scratch_bytes=record.stored_bytes) as directory,
    ):
        outcome.has_begun = True
        with outcome.phase("read"):
            staged = deadline.run(
                lambda: stage_backup(
                    repository,
                    place,
                    record,
                    identities=identities,
                    scratch_dir=directory.scratch_dir,
                    deadline=deadline,
                    log=outcome.log,
                    progress=progress,
                )
            )
        superuser = staged.globals_script.bootstrap_role
        with throwaway_server(
            directory, tools=tools, superuser=superuser, database_size_bytes=size_bytes, deadline=deadline
        ) as throwaway:
            with outcome.phase("restore"):
                restore_into_throwaway(
                    throwaway,
                    staged,
                    record,
                    scratch_dir=directory.scratch_dir,
                    deadline=deadline,
                    progress=progress,
                )
            outcome.restore_s = round(time.monotonic() - begun, 3)
            _judge(throwaway, staged, record, progress, outcome)
            deadline.remaining_s()


def _judge(
    throwaway: Throwaway, staged: StagedBackup, record: BackupRecord, progress: ReportProgress, outcome: Outcome
) -> None:
    """Compare content and structure, then check every page and index; what differs is named."""
    name = record.source.database
    conninfo = throwaway.conninfo(name)
    with outcome.phase("compare"):
        actual = read_fingerprint(conninfo, workers=FINGERPRINT_WORKERS, progress=progress)
        differences = list(fingerprints.compare(staged.fingerprint, actual))
        differences += structures.compare(staged.structure, read_structure(conninfo))
    with outcome.phase("amcheck"):
        stage = f"checking pages and indexes of {name}"
        found = check_relations(
            conninfo, on_relation=lambda done, total: progress(Progress(stage, done, total, unit="relations"))
        )
        differences += [f"amcheck: {fault}" for fault in found.faults]
        differences += _server_faults(conninfo)
    outcome.server_version = throwaway.server.tools.version
    outcome.amcheck_relations = found.relations
    outcome.conclude(differences)


def _server_faults(conninfo: str) -> list[str]:
    """Return what the throwaway itself has to report: checksums off, or pages that failed theirs."""
    with connect(conninfo) as connection, postgres_errors("the throwaway's checksums"):
        row = connection.execute(
            "SELECT current_setting('data_checksums'), coalesce(sum(checksum_failures), 0) FROM pg_stat_database"
        ).fetchone()
    if row is None or row[0] != "on":
        return ["throwaway server: data checksums are off"]
    return [f"throwaway server: {row[1]} pages failed their checksum"] if row[1] else []
