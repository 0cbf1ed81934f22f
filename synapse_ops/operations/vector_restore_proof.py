"""Proves a collection's backup: opens it in a throwaway engine of its own, never a live one, and compares it.

Every point is read: those that stood still while the snapshot was taken must be equal, without a writer all of them
must, by id and by digest; configuration, payload indexes and the stored searches must agree. A crash of the engine, a
time-out, a version that it cannot open: unproven, never a pass.
"""

from __future__ import annotations

import time
from pathlib import Path

from synapse_ops.domain.backup_record import SnapshotFindings
from synapse_ops.domain.progress import ReportProgress, ignore_progress
from synapse_ops.domain.repository_layout import KIND_SNAPSHOT, BackupPlace
from synapse_ops.domain.snapshot_record import SnapshotRecord
from synapse_ops.domain.vector_config import compare_config
from synapse_ops.domain.vector_fingerprint import compare_points
from synapse_ops.errors import Unproven
from synapse_ops.operations.deadline import Deadline
from synapse_ops.operations.proof import DEFAULT_TIMEOUT_S, Outcome, ProofReport, carry_out_proof
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.staged_backup import hold_for_reading, read_backup_document
from synapse_ops.operations.staged_snapshot import stage_snapshot
from synapse_ops.operations.throwaway_directory import sweep_throwaways, throwaway_directory
from synapse_ops.systems.qdrant_edge import find_engine, inspect_copy


def prove_snapshot(
    repository: Repository,
    *,
    place: BackupPlace | None = None,
    collection: str | None = None,
    identities: tuple[str, ...] = (),
    work_dir: Path,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    progress: ReportProgress = ignore_progress,
) -> ProofReport | None:
    """Prove one backup and return what was written; None when `place` is None and every backup is proven.

    place: None chooses the newest backup that no proof has judged yet, else the newest that is not proven, of
    `collection` or of any. identities: age secret keys. work_dir: where the copy lies for a while; left-overs of killed
    ones are swept first. timeout_s: bounds everything but writing the proof.
    Raises ObjectMissing when there is no such backup, and what the store raises when the proof cannot be written.
    """
    deadline = Deadline(timeout_s, "proof of restore")
    sweep_throwaways(work_dir)

    def prove(chosen: BackupPlace, outcome: Outcome) -> None:
        _prove(repository, chosen, identities, work_dir, deadline, progress, outcome)

    return carry_out_proof(
        repository, kind=KIND_SNAPSHOT, place=place, subject=collection, deadline=deadline, prove=prove
    )


def _prove(
    repository: Repository,
    place: BackupPlace,
    identities: tuple[str, ...],
    work_dir: Path,
    deadline: Deadline,
    progress: ReportProgress,
    outcome: Outcome,
) -> None:
    record = read_backup_document(repository, place, outcome.log, SnapshotRecord)
    find_engine()
    size_bytes = record.dumped_bytes
    with (
        hold_for_reading(repository, place, "proof"),
        throwaway_directory(work_dir, database_size_bytes=size_bytes, scratch_bytes=size_bytes) as directory,
    ):
        outcome.has_begun = True
        begun = time.monotonic()
        with outcome.phase("read"):
            staged = deadline.run(
                lambda: stage_snapshot(
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
        read_s = time.monotonic() - begun
        with outcome.phase("compare"):
            copy = inspect_copy(
                staged.shards,
                scratch_dir=directory.scratch_dir,
                wanted=staged.fingerprint.ids,
                queries=staged.canaries,
                timeout_s=deadline.remaining_s(),
                progress=progress,
            )
        outcome.restore_s = round(read_s + copy.open_s, 3)
        outcome.server_version = f"qdrant-edge {copy.engine_version}"
        if copy.points_digest is None:
            raise Unproven("Qdrant's engine read no points of the copy")
        found = compare_points(staged.fingerprint, copy, staged.canaries)
        outcome.snapshot = SnapshotFindings(
            engine_version=copy.engine_version,
            segment_versions=copy.segment_versions,
            shard_points=dict(copy.counts),
            points_digest=copy.points_digest,
            scope=staged.fingerprint.scope,
            still_points=found.still_points,
            window_points=found.window_points,
            passing_points=found.passing_points,
            recall_at_10=found.recall,
        )
        config = compare_config(staged.collection.config, staged.collection.payload_schema, copy.schemas)
        outcome.conclude([*config, *found.differences])
        deadline.remaining_s()
