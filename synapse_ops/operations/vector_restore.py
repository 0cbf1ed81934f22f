"""Restores a collection's backup into a server: into a new name, every node its own shards, compared before it counts.

`plan_vector_restore` only looks. `apply_vector_restore` stages and opens the copy first, makes a new empty collection
of the recorded configuration, compares the versions of the segments with those that this very server writes, uploads
each shard to the node that holds it (checksum, `priority=snapshot`), waits for the replicas, compares the exact count
on every node and a sample of points, puts the payload indexes back and removes the uploads. What fails on the way takes
its own new collection with it. No alias is touched: `switch_alias` is a step of its own, one atomic request.
Never: an existing name, `priority=replica`, an upload without a checksum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.domain.repository_layout import BackupPlace
from synapse_ops.domain.snapshot_record import SnapshotRecord
from synapse_ops.domain.vector_config import compare_config, creation_body, index_schema, parse_version, update_body
from synapse_ops.domain.vector_fingerprint import CopyFacts, compare_points
from synapse_ops.domain.vector_placement import ACTIVE
from synapse_ops.domain.vector_points import canonical_point, parse_id, point_hash
from synapse_ops.errors import ConfigError, IntegrityError, Refused, SynapseOpsError, TargetNotEmpty, Unproven
from synapse_ops.operations.deadline import Deadline
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.staged_backup import ReadLog, hold_for_reading, read_backup_document
from synapse_ops.operations.staged_snapshot import StagedSnapshot, stage_snapshot
from synapse_ops.operations.throwaway_directory import sweep_throwaways, throwaway_directory
from synapse_ops.operations.vector_cluster import Cluster, look_at_cluster
from synapse_ops.systems.qdrant import QdrantServer
from synapse_ops.systems.qdrant_edge import inspect_copy, segment_versions

DEFAULT_TIMEOUT_S = 24 * 3600.0
POLL_S = 0.5
SAMPLE = 500  # points compared through the server, besides the counts; the copy itself was compared whole before


@dataclass(frozen=True)
class VectorRestorePlan:
    """What a restore would do. Nothing was changed to find it out. notes: what an operator ought to know."""

    place: BackupPlace
    record: SnapshotRecord
    collection: str
    server_url: str
    server_version: str
    nodes: tuple[str, ...]
    shard_number: int
    size_bytes: int
    stored_bytes: int
    aliases: dict[str, str | None]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class VectorRestoreReport:
    """A collection that is complete and compared. counts: exact, by node. restore_s: until it could be used."""

    plan: VectorRestorePlan
    restore_s: float
    phase_s: dict[str, float]
    counts: dict[str, int]
    compared_points: int
    notes: tuple[str, ...]


def plan_vector_restore(
    repository: Repository, place: BackupPlace, servers: Sequence[QdrantServer], collection: str
) -> VectorRestorePlan:
    """Return what restoring a backup into the new collection would do. servers: one client for each node.

    Raises TargetNotEmpty for a name in use, Refused for an older server, custom sharding, or a cluster that is not
    whole or whose consensus has stopped; what `read_backup_document` raises for the backup.
    """
    record = read_backup_document(repository, place, ReadLog(), SnapshotRecord)
    cluster = look_at_cluster(servers)
    control = cluster.control
    aliases = control.aliases()
    if collection in control.collections() or collection in aliases:
        what = "an alias" if collection in aliases else "a collection"
        raise TargetNotEmpty(
            f'"{collection}" is {what} on {control.url} already',
            hint="Name one that does not exist: nothing is replaced.",
        )
    version = control.version()
    if parse_version(version) < parse_version(record.source.server_version):
        raise Refused(
            f"the server is Qdrant {version}, older than {record.source.server_version} of the backup",
            hint="A segment of a newer version cannot be read; restore into a server of at least that version.",
        )
    notes = [
        f"the server does not tell its free space: it needs about {2 * record.dumped_bytes // 2**20 + 1} MiB",
        (
            f"writes after {record.window.closed_at.isoformat(timespec='seconds')} are not in it,"
            f" of those since {record.window.opened_at.isoformat(timespec='seconds')} some"
        ),
    ]
    total = cluster.disk_bytes
    if total is not None and total < 2 * record.dumped_bytes:
        raise Refused(
            f"the disk of {control.url} has {total // 2**20} MiB in all, {2 * record.dumped_bytes // 2**20} are needed"
        )
    return VectorRestorePlan(
        place=place,
        record=record,
        collection=collection,
        server_url=control.url,
        server_version=version,
        nodes=tuple(server.url for server in cluster.by_peer.values()),
        shard_number=len(record.shards),
        size_bytes=record.dumped_bytes,
        stored_bytes=record.stored_bytes,
        aliases={alias: aliases.get(alias) for alias in record.aliases},
        notes=tuple(notes),
    )


@dataclass
class _Restore:
    """A restore under way."""

    plan: VectorRestorePlan
    cluster: Cluster
    deadline: Deadline
    progress: ReportProgress
    phase_s: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.plan.collection

    def timed(self, phase: str, work: Callable[[], None]) -> None:
        begun = time.monotonic()
        try:
            work()
        finally:
            self.phase_s[phase] = round(time.monotonic() - begun, 3)


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
    """Do what the plan says. Raises what the plan would raise now, IntegrityError when the copy is not equal.

    work_dir: for the staged shards; what a killed run left there is swept first.
    """
    begun = time.monotonic()
    deadline = Deadline(timeout_s, "restore")
    sweep_throwaways(work_dir)
    plan = plan_vector_restore(repository, plan.place, servers, plan.collection)
    restore = _Restore(plan, look_at_cluster(servers), deadline, progress)
    size_bytes = plan.record.dumped_bytes
    with (
        hold_for_reading(repository, plan.place, "restore"),
        throwaway_directory(work_dir, database_size_bytes=size_bytes, scratch_bytes=size_bytes) as directory,
    ):
        staged = stage_snapshot(
            repository,
            plan.place,
            plan.record,
            identities=identities,
            scratch_dir=directory.scratch_dir,
            deadline=deadline,
            log=ReadLog(),
            progress=progress,
        )
        _refuse_custom_sharding(staged)
        copy = _open_copy(staged, directory.scratch_dir, deadline, progress)
        restore.phase_s["read"] = round(time.monotonic() - begun, 3)
        try:
            counts, compared = _fill_new(restore, staged, copy, directory.scratch_dir)
        except BaseException:
            _drop(restore)
            raise
    return VectorRestoreReport(
        plan=plan,
        restore_s=round(time.monotonic() - begun, 3),
        phase_s=restore.phase_s,
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
    """Open the copy in an engine of its own and compare it, before any server is touched."""
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
            f"the backup differs from what it was taken of in {len(differences)} places",
            detail="\n".join(differences[:20]),
            hint="Restore another backup; `synapse-ops vectors verify` says which are proven.",
        )
    return copy


def _fill_new(
    restore: _Restore, staged: StagedSnapshot, copy: CopyFacts, scratch_dir: Path
) -> tuple[dict[str, int], int]:
    """Make the collection, fill it and compare it; return exact counts by node, and how many points were compared."""
    control, name = restore.cluster.control, restore.name
    control.create_collection(name, creation_body(staged.collection.config))
    late = update_body(staged.collection.config)
    if late:
        control.update_collection(name, late)
    homes = restore.cluster.homes(name)
    wanted = [shard.shard_id for shard in staged.shards]
    if sorted(homes) != sorted(wanted):
        raise Refused(f"the new collection has shards {sorted(homes)}, the backup {sorted(wanted)}")
    _refuse_newer_segments(restore, homes, copy, scratch_dir)
    restore.timed("upload", lambda: _upload(restore, staged, homes))
    restore.timed("replicas", lambda: _await_replicas(restore))
    restore.timed("indexes", lambda: _put_indexes_back(restore, staged))
    counts = {server.url: server.count(name, exact=True) for server in restore.cluster.by_peer.values()}
    wrong = [f"{url}: {count} points, expected {copy.count}" for url, count in counts.items() if count != copy.count]
    if wrong:
        raise IntegrityError(f'collection "{name}" was not restored whole', detail="\n".join(wrong))
    return counts, _compare_sample(restore, staged)


def _refuse_newer_segments(
    restore: _Restore, homes: dict[int, tuple[int, ...]], copy: CopyFacts, scratch_dir: Path
) -> None:
    """Compare with a segment that this server itself has just written: one of a newer version destroys a shard."""
    shard = min(homes)
    server = restore.cluster.by_peer[homes[shard][0]]
    made = server.create_shard_snapshot(restore.name, shard)
    if made is None:
        raise Unproven("the server made no snapshot of the new collection")
    path = scratch_dir / "empty.snapshot"
    try:
        with server.download_shard_snapshot(restore.name, shard, made.name) as download, path.open("wb") as file:
            for piece in download.pieces:
                file.write(piece)
    finally:
        server.delete_shard_snapshot(restore.name, shard, made.name)
    writes = max(map(parse_version, segment_versions(path)), default=())
    newer = [version for version in copy.segment_versions if parse_version(version) > writes]
    if newer:
        raise Refused(
            f"the backup has segments of version {newer[0]}, the server writes {'.'.join(map(str, writes))}",
            hint="Restore into a server of at least the version that the backup was taken from.",
        )


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


def _await_replicas(restore: _Restore) -> None:
    """Return when every replica of every shard is active, as its own node says."""
    while True:
        waiting = [
            f"shard {place.shard} on {server.url}: {place.state}"
            for server in restore.cluster.by_peer.values()
            for place in server.shards(restore.name)
            if place.is_local and place.state != ACTIVE
        ]
        if not waiting:
            return
        restore.deadline.remaining_s()
        restore.progress(Progress(f"waiting for {len(waiting)} replicas of {restore.name}", 0))
        time.sleep(POLL_S)


def _put_indexes_back(restore: _Restore, staged: StagedSnapshot) -> None:
    for number, (payload_field, entry) in enumerate(staged.collection.payload_schema.items()):
        total = len(staged.collection.payload_schema)
        restore.progress(Progress(f"indexing payloads of {restore.name}", number, total, unit="indexes"))
        restore.cluster.control.create_payload_index(restore.name, payload_field, index_schema(entry))


def _compare_sample(restore: _Restore, staged: StagedSnapshot) -> int:
    """Compare points that stood still, as the server itself returns them; raises IntegrityError naming what differs."""
    still = staged.fingerprint.still
    ids = list(still)[:: max(1, len(still) // SAMPLE)][:SAMPLE]
    points = restore.cluster.control.retrieve(restore.name, [parse_id(one) for one in ids]) if ids else []
    found = {
        str(point["id"]): point_hash(canonical_point(point["id"], point.get("vector"), point.get("payload")))
        for point in points
    }
    wrong = [one for one in ids if found.get(one) != still[one]]
    if wrong:
        raise IntegrityError(
            f'{len(wrong)} of {len(ids)} points of "{restore.name}" are not what was backed up',
            detail=", ".join(wrong[:20]),
        )
    return len(ids)


def _drop(restore: _Restore) -> None:
    """Remove the new collection that this very restore made; it holds nothing that anybody wrote."""
    with suppress(SynapseOpsError):
        if restore.name in restore.cluster.control.collections():
            restore.cluster.control.delete_collection(restore.name)


def switch_alias(servers: Sequence[QdrantServer], alias: str, collection: str) -> str | None:
    """Make an alias stand for a restored collection, in one step; return what it stood for before.

    Raises ConfigError when the collection is not there or the alias is the name of one, Refused when it is not whole on
    every node: a shard not active, or counts that differ between the nodes.
    """
    cluster = look_at_cluster(servers)
    names = cluster.control.collections()
    if collection not in names:
        raise ConfigError(
            f'there is no collection "{collection}" on {cluster.control.url}', detail=", ".join(names[:20])
        )
    if alias in names:
        raise ConfigError(
            f'"{alias}" is a collection, not an alias', hint="Clients that search by alias can be switched; others not."
        )
    counts = {server.url: server.count(collection, exact=True) for server in cluster.by_peer.values()}
    inactive = [
        f"shard {place.shard} on {server.url}: {place.state}"
        for server in cluster.by_peer.values()
        for place in server.shards(collection)
        if place.is_local and place.state != ACTIVE
    ]
    if inactive or len(set(counts.values())) > 1:
        raise Refused(
            f'collection "{collection}" is not whole on every node',
            detail="\n".join([*inactive, *(f"{url}: {count} points" for url, count in counts.items())]),
        )
    before = cluster.control.aliases().get(alias)
    cluster.control.switch_alias(alias, collection)
    return before
