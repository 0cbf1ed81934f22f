"""Proves a collection's backup: opens it in a throwaway engine, never a live one, and compares it.

Every point is read: those that stood still while the snapshot was taken must be equal, without a writer all of them
must, by id and by digest; configuration, payload indexes and the stored searches must agree. A crash of the engine, a
time-out, a version that it cannot open: unproven, never a pass.
"""

from __future__ import annotations

import time

from synapse_ops.domain.backup.proof_record import SnapshotFindings
from synapse_ops.domain.backup.snapshot_record import SnapshotRecord
from synapse_ops.domain.vectors.config import compare_config
from synapse_ops.domain.vectors.fingerprint import compare_points
from synapse_ops.errors import Unproven
from synapse_ops.operations.backup.proving import Proof
from synapse_ops.operations.vectors.staged_snapshot import snapshot_reader, stage_snapshot
from synapse_ops.systems.qdrant.edge import find_engine, inspect_copy


def prove_snapshot(proof: Proof) -> None:
    """Open the copy in its own engine, and compare every point, the configuration and the searches."""
    record = proof.read_record(SnapshotRecord)
    find_engine()
    size_bytes = record.dumped_bytes
    with proof.throwaway(database_size_bytes=size_bytes, scratch_bytes=size_bytes) as directory:
        begun = time.monotonic()
        reader = snapshot_reader(proof.repository, proof.place, record, **proof.limits())
        with proof.phase("read"):
            staged = proof.deadline.run(lambda: stage_snapshot(reader, proof.place, record, directory.scratch_dir))
        read_s = time.monotonic() - begun
        with proof.phase("compare"):
            copy = inspect_copy(
                staged.shards,
                scratch_dir=directory.scratch_dir,
                wanted=staged.fingerprint.ids,
                queries=staged.canaries,
                timeout_s=proof.deadline.remaining_s(),
                progress=proof.progress,
            )
        proof.restore_s = round(read_s + copy.open_s, 3)
        proof.server_version = f"qdrant-edge {copy.engine_version}"
        if copy.points_digest is None:
            raise Unproven("Qdrant's engine read no points of the copy")
        found = compare_points(staged.fingerprint, copy, staged.canaries)
        proof.findings["snapshot"] = SnapshotFindings(
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
        proof.differences += compare_config(staged.collection.config, staged.collection.payload_schema, copy.schemas)
        proof.differences += found.differences
