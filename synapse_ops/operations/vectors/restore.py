"""Restores a collection's backup into a server: into a new name, every node its own shards, compared before it counts.

`plan_vector_restore` only looks. `apply_vector_restore` stages and opens the copy first, makes a new empty collection
of the recorded configuration, compares the versions of the segments with those that this very server writes, uploads
each shard to the node that holds it (checksum, `priority=snapshot`), waits for the replicas, compares the exact count
on every node and a sample of points, puts the payload indexes back and removes the uploads. No alias is touched:
`switch_alias` is a separate step, one atomic request.

The new collection carries a random token in its metadata until it is complete. A restore that fails deletes the
collection only while it still carries this restore's token: the name may have been taken by the application, or by
another restore, after the plan was made. Qdrant before 1.16 keeps no metadata; there the answer of the request that
made the collection decides.
Never: an existing name, `priority=replica`, an upload without a checksum.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.domain.vectors.config import (
    RESTORE_MARK,
    compare_config,
    creation_body,
    index_schema,
    parse_version,
    update_body,
)
from synapse_ops.domain.vectors.fingerprint import CopyFacts, compare_points
from synapse_ops.errors import IntegrityError, Refused, SynapseOpsError, counted
from synapse_ops.operations.backup.deadline import Deadline
from synapse_ops.operations.backup.measured import Measured
from synapse_ops.operations.backup.restoring import DEFAULT_TIMEOUT_S, RestoreReport
from synapse_ops.operations.backup.throwaway_directory import sweep_throwaways, throwaway_directory
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.vectors.cluster import Cluster, look_at_cluster
from synapse_ops.operations.vectors.restore_checks import await_whole, compare_sample, refuse_newer_segments
from synapse_ops.operations.vectors.restore_plan import VectorRestorePlan, plan_vector_restore
from synapse_ops.operations.vectors.source import METADATA_SINCE
from synapse_ops.operations.vectors.staged_snapshot import StagedSnapshot, snapshot_reader, stage_snapshot
from synapse_ops.systems.qdrant.edge import inspect_copy
from synapse_ops.systems.qdrant.server import QdrantServer


@dataclass(frozen=True)
class VectorRestoreReport(RestoreReport):
    """A collection that is complete and compared. counts: exact, by node; compared_points: through the server."""

    plan: VectorRestorePlan
    counts: dict[str, int]
    compared_points: int

    def next_steps(self) -> tuple[str, ...]:
        return tuple(f"synapse-ops vectors switch-alias {alias} {self.plan.collection}" for alias in self.plan.aliases)

    def as_json(self) -> dict[str, Any]:
        return {**super().as_json(), "counts": self.counts, "compared_points": self.compared_points}


@dataclass
class _Restore(Measured):
    """A restore under way. token: in the new collection's metadata. is_made: the server said that it made it."""

    plan: VectorRestorePlan
    cluster: Cluster
    deadline: Deadline
    progress: ReportProgress
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    is_made: bool = False

    @property
    def name(self) -> str:
        return self.plan.collection

    @property
    def keeps_metadata(self) -> bool:
        return parse_version(self.plan.server_version) >= METADATA_SINCE


def apply_vector_restore(
    repository: Repository,
    plan: VectorRestorePlan,
    servers: Sequence[QdrantServer],
    *,
    identities: tuple[str, ...] = (),
    work_dir: Path,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    progress: ReportProgress = ignore_progress,
) -> VectorRestoreReport:
    """Carry out the plan. Raises what the plan would raise now, IntegrityError when the copy is not equal.

    work_dir: for the staged shards; what a killed run left there is swept first.
    """
    begun = time.monotonic()
    deadline = Deadline(timeout_s, "restore")
    sweep_throwaways(work_dir)
    plan = plan_vector_restore(repository, plan.place, servers, plan.collection)
    restore = _Restore(plan, look_at_cluster(servers), deadline, progress)
    size_bytes = plan.record.dumped_bytes
    with (
        throwaway_directory(work_dir, database_size_bytes=size_bytes, scratch_bytes=size_bytes) as directory,
    ):
        reader = snapshot_reader(
            repository, plan.place, plan.record, identities=identities, deadline=deadline, progress=progress
        )
        staged = stage_snapshot(reader, plan.place, plan.record, directory.scratch_dir)
        _refuse_custom_sharding(staged)
        copy = _open_copy(staged, directory.scratch_dir, deadline, progress)
        restore.phase_s["read"] = round(time.monotonic() - begun, 3)
        try:
            counts, compared = _fill_new(restore, staged, copy, directory.scratch_dir)
        except BaseException:
            _drop_own(restore)
            raise
    return VectorRestoreReport(
        plan=plan,
        restore_s=round(time.monotonic() - begun, 3),
        phase_s=restore.phase_s,
        item_count=max(counts.values(), default=0),
        counts=counts,
        compared_points=compared,
        notes=plan.notes[1:],
    )


def _refuse_custom_sharding(staged: StagedSnapshot) -> None:
    if staged.collection.config["params"].get("sharding_method") == "custom":
        raise Refused(
            "cannot restore a collection with custom sharding: its shard keys are not put back yet",
            hint="Make collection and shard keys by hand, and upload each shard to its own number.",
        )


def _open_copy(staged: StagedSnapshot, scratch_dir: Path, deadline: Deadline, progress: ReportProgress) -> CopyFacts:
    """Open the copy in its own engine and compare it, before any server is touched."""
    copy = inspect_copy(
        staged.shards,
        scratch_dir=scratch_dir,
        wanted=staged.fingerprint.ids,
        queries=staged.canaries,
        timeout_s=deadline.remaining_s(),
        progress=progress,
    )
    differences = [
        *compare_config(staged.collection.config, staged.collection.payload_schema, copy.schemas),
        *compare_points(staged.fingerprint, copy, staged.canaries).differences,
    ]
    if differences:
        raise IntegrityError(
            f"the backup differs from what it was taken of in {counted(len(differences), 'place')}",
            detail="\n".join(differences[:20]),
            hint="Restore another backup; `synapse-ops backup list vectors` shows which are proven.",
        )
    return copy


def _fill_new(
    restore: _Restore, staged: StagedSnapshot, copy: CopyFacts, scratch_dir: Path
) -> tuple[dict[str, int], int]:
    """Make the collection, fill it and compare it; return exact counts by node, and how many points were compared."""
    control, name = restore.cluster.control, restore.name
    body = creation_body(staged.collection.config)
    if restore.keeps_metadata:
        body["metadata"] = {**body.get("metadata", {}), RESTORE_MARK: restore.token}
    control.create_collection(name, body)
    restore.is_made = True
    homes = restore.cluster.homes(name)
    wanted = [shard.shard_id for shard in staged.shards]
    if sorted(homes) != sorted(wanted):
        raise Refused(f"the new collection has shards {sorted(homes)}, the backup {sorted(wanted)}")
    first = min(homes)
    refuse_newer_segments(restore.cluster.by_peer[homes[first][0]], name, first, copy, scratch_dir)
    with restore.phase("upload"):
        _upload(restore, staged, homes)
    with restore.phase("replicas"):
        await_whole(restore.cluster, name, copy.counts, restore.deadline, restore.progress)
    with restore.phase("indexes"):
        _put_indexes_back(restore, staged)
    counts = await_whole(restore.cluster, name, copy.counts, restore.deadline, restore.progress)
    compared = compare_sample(control, name, staged.fingerprint)
    late = update_body(staged.collection.config)
    if restore.keeps_metadata:
        late["metadata"] = {RESTORE_MARK: None}  # null removes the key
    if late:
        control.update_collection(name, late)
    return counts, compared


def _upload(restore: _Restore, staged: StagedSnapshot, homes: dict[int, tuple[int, ...]]) -> None:
    """Send each shard to one node that holds it; Qdrant brings the other replicas to the same state."""
    sha256 = {shard.shard_id: shard.snapshot_sha256 for shard in restore.plan.record.shards}
    for number, shard in enumerate(staged.shards):
        restore.deadline.remaining_s()
        restore.progress(Progress(f"uploading shards of {restore.name}", number, len(staged.shards), unit="shards"))
        server = restore.cluster.by_peer[homes[shard.shard_id][0]]
        upload = f"{restore.plan.place.backup_id}-shard-{shard.shard_id}.snapshot"
        try:
            server.recover_shard(restore.name, shard.shard_id, shard.path, checksum=sha256[shard.shard_id], name=upload)
        finally:
            with suppress(SynapseOpsError):
                server.delete_shard_snapshot(restore.name, shard.shard_id, upload)
        shard.path.unlink()


def _put_indexes_back(restore: _Restore, staged: StagedSnapshot) -> None:
    for number, (payload_field, entry) in enumerate(staged.collection.payload_schema.items()):
        total = len(staged.collection.payload_schema)
        restore.progress(Progress(f"indexing payloads of {restore.name}", number, total, unit="indexes"))
        restore.cluster.control.create_payload_index(restore.name, payload_field, index_schema(entry))


def _drop_own(restore: _Restore) -> None:
    """Delete the collection of this name if this very restore made it and has not completed it."""
    control = restore.cluster.control
    with suppress(SynapseOpsError):
        is_own = restore.is_made
        if restore.keeps_metadata:  # then also one whose creation was never answered
            is_own = control.collection(restore.name).metadata.get(RESTORE_MARK) == restore.token
        if is_own:
            control.delete_collection(restore.name)
