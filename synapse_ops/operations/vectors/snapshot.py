"""The snapshots of one collection into the repository: every shard from an active replica, or nothing is listed.

Order, each step before the next: the lease of the collection, `started.json`, the heartbeat; a reading of the live
points and searches; the window opens; every shard is cut on its node; the window closes; a second reading; the shards
are sent one by one, each removed from its node when it is in the store; the documents; `backup.json` last.
The heartbeat names every file that lies on a node because of us, so that what a killed run left there is found by the
next one, and named.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.backup.document import ObjectRecord
from synapse_ops.domain.backup.layout import KIND_SNAPSHOT, quote_segment
from synapse_ops.domain.backup.snapshot_record import CollectionSource, ShardRecord, SnapshotRecord, SnapshotWindow
from synapse_ops.domain.progress import ReportProgress, ignore_progress
from synapse_ops.domain.vectors.fingerprint import canaries_to_json
from synapse_ops.errors import SynapseOpsError, Unproven, Unreachable
from synapse_ops.operations.backup.lease import Lease, hold_lease
from synapse_ops.operations.backup.taking import NOT_ENCRYPTED, BackupReport, Taking, identity_fields, taking_backup
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.vectors.cut import CutCollection, SnapshotRun, cut_collection, remove_from_nodes
from synapse_ops.operations.vectors.left_overs import find_left_overs
from synapse_ops.operations.vectors.shards import CutShard, send_shard
from synapse_ops.operations.vectors.source import CollectionNodes, ensure_identity, look_at, open_collection
from synapse_ops.operations.vectors.staged_snapshot import CANARIES, COLLECTION, FINGERPRINT

if TYPE_CHECKING:
    from synapse_ops.operations.stack import Stack


@dataclass(frozen=True, slots=True)
class SnapshotReport(BackupReport):
    """A backup that exists. left_overs: files of earlier runs of ours on nodes, as `<node>/collections/...`."""

    record: SnapshotRecord
    left_overs: tuple[str, ...]


def snapshot_collection(
    stack: Stack, collection: str, *, set_id: str | None = None, progress: ReportProgress = ignore_progress
) -> SnapshotReport:
    """Take the snapshots of one collection and return the backup once it exists. Each call is a new backup.

    set_id: the tick whose collections belong together. Raises Unreachable when a shard has no active replica on a node
    that answers (the set is void), Refused, ConfigError, LeaseHeld (another process snapshots it), QdrantRefused,
    Unproven (its configuration changed meanwhile); after any of them the backup is not listed.
    """
    repository = stack.vector_repository()
    owner = f"snapshot on {socket.gethostname()}, pid {os.getpid()}"
    with hold_lease(repository, f"snapshot-{quote_segment(collection)}", owner=owner) as lease:
        try:
            return _attempt(stack, repository, lease, collection, set_id, progress)
        except Unreachable as lost:
            if not _others_can(stack, collection):
                raise
            # what was cut on the lost node is gone, and a shard cut anew would be later than what was read
            again = _attempt(stack, repository, lease, collection, set_id, progress)
            return replace(again, warnings=(f"taken again, a node was lost: {lost.message}", *again.warnings))


def _others_can(stack: Stack, collection: str) -> bool:
    """Return whether every shard has an active replica on a node that still answers, when one node does not."""
    with suppress(SynapseOpsError), open_collection(stack, collection) as nodes:
        return bool(nodes.silent) and not nodes.placement.faults
    return False


def _attempt(
    stack: Stack,
    repository: Repository,
    lease: Lease,
    collection: str,
    set_id: str | None,
    progress: ReportProgress,
) -> SnapshotReport:
    with open_collection(stack, collection) as nodes:
        _refuse_void(nodes)
        identity = ensure_identity(nodes)
        left_overs = find_left_overs(repository, identity, nodes)
        with taking_backup(stack, repository, KIND_SNAPSHOT, identity, collection, set_id=set_id) as taking:
            run = SnapshotRun(stack, nodes, taking.writer, taking.heartbeat, progress, warnings=[*lease.warnings])
            try:
                record = _take(run, taking)
                lease.check()
                taking.seal(record)
            finally:
                remove_from_nodes(run)
    warnings = (*run.warnings, *_warnings(run, record, left_overs))
    return SnapshotReport(record, taking.place, taking.url, warnings, left_overs)


def _refuse_void(nodes: CollectionNodes) -> None:
    faults = nodes.placement.faults
    if faults:
        raise Unreachable(
            f'could not snapshot collection "{nodes.name}": the set would be void',
            detail="\n".join([*faults, *(f"{url}: {reason}" for url, reason in nodes.silent)]),
            hint="Name every node of the cluster in qdrant.nodes, and see that each shard has an active replica: "
            f"GET /collections/{nodes.name}/cluster.",
        )


def _take(run: SnapshotRun, taking: Taking) -> SnapshotRecord:
    cut = cut_collection(run, seed=taking.place.backup_id)
    document = _collection_document(run)
    rows: list[tuple[ObjectRecord, ShardRecord]] = []
    for shard in cut.shards:
        with run.phase("send"):
            stored, row = send_shard(
                run.writer, shard, may_compress=run.stack.spec.backup.vectors.compression, progress=run.progress
            )
        rows.append((stored, row.model_copy(update={"points_after": _points_now(run, shard)})))
        remove_from_nodes(run, only=shard)
        run.heartbeat.raise_if_lost()
    documents = {FINGERPRINT: cut.fingerprint.to_json(), COLLECTION: document, CANARIES: canaries_to_json(cut.canaries)}
    objects = [stored for stored, _ in rows]
    objects += [run.writer.write_bytes(name, data) for name, data in documents.items()]
    run.writer.read_back()
    shards = tuple(row for _, row in rows)
    dumped = sum(row.snapshot_bytes for row in shards)
    return SnapshotRecord(
        **taking.shared_fields(objects, phase_s=run.phase_s, tool_versions={"qdrant": run.nodes.version}),
        source=CollectionSource(
            **identity_fields(taking.place),
            collection=run.nodes.name,
            server_version=run.nodes.version,
            nodes={str(peer): server.url for peer, server in run.nodes.by_peer.items()},
            vector_bytes=dumped,
        ),
        window=_window(cut, run.database_faults),
        shards=shards,
        points_digest=None if cut.fingerprint.has_window else cut.fingerprint.points_digest,
        aliases=run.nodes.aliases,
        dumped_bytes=dumped,
        canary_count=len(cut.canaries),
        fingerprint_digest=cut.fingerprint.digest(),
        collection_digest=hashlib.sha256(document).hexdigest(),
        canaries_digest=hashlib.sha256(documents[CANARIES]).hexdigest(),
    )


def _window(cut: CutCollection, faults: list[str]) -> SnapshotWindow:
    (our_start, start), (our_end, end) = cut.opened, cut.closed
    if start is not None and end is not None and start.timeline != end.timeline:
        faults = [*faults, f"the database went from timeline {start.timeline} to {end.timeline} meanwhile"]
    both = start is not None and end is not None
    return SnapshotWindow(
        opened_at=start.database_time if both and start is not None else our_start,
        closed_at=end.database_time if both and end is not None else our_end,
        start_lsn=str(start.lsn) if start is not None else None,
        stop_lsn=str(end.lsn) if end is not None else None,
        timeline=start.timeline if start is not None else None,
        database_fault="; ".join(faults) or None,
        scope=cut.fingerprint.scope,
        read_points=len(cut.fingerprint.ids),
        moved_points=len(cut.fingerprint.moved),
        points_before=cut.fingerprint.count_before,
        points_after=cut.fingerprint.count_after,
        changed=cut.fingerprint.has_window,
    )


def _points_now(run: SnapshotRun, cut: CutShard) -> int | None:
    with suppress(SynapseOpsError):
        return next((one.points for one in cut.server.shards(cut.collection) if one.shard == cut.shard_id), None)
    return None


def _collection_document(run: SnapshotRun) -> bytes:
    """Return what a shard's snapshot does not hold: configuration, payload schema and aliases, unchanged meanwhile."""
    now = look_at([run.nodes.control], run.nodes.name)
    then = run.nodes
    if (_fixed(now), now.aliases) != (_fixed(then), then.aliases):
        raise Unproven(
            f'configuration, payload schema or aliases of collection "{then.name}" changed while it was snapshotted',
            hint="Take it again when they are not being changed.",
        )
    body = {
        "format_version": 1,
        "collection": then.name,
        "server_version": then.version,
        "config": then.info.config,
        "payload_schema": _fixed(then)[1],
        "aliases": list(then.aliases),
    }
    return (json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def _fixed(nodes: CollectionNodes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return configuration and payload schema without what counts points; our own metadata may have come meanwhile."""
    config = {key: value for key, value in nodes.info.config.items() if key != "metadata"}
    schema = {
        field: {key: value for key, value in entry.items() if key != "points"}
        for field, entry in nodes.info.payload_schema.items()
    }
    return config, schema


def _warnings(run: SnapshotRun, record: SnapshotRecord, left_overs: tuple[str, ...]) -> Iterator[str]:
    if record.window.database_fault is not None:
        yield f"could not tie the snapshot to a WAL position: {record.window.database_fault}"
    if not record.encryption_recipients:
        yield NOT_ENCRYPTED
    for url, reason in run.nodes.silent:
        yield f"node {url} does not answer ({reason}); its shards were taken from other replicas"
    if record.window.scope == "sample":
        yield f"compared by a sample: {record.window.read_points} of {record.window.points_before} points, and every id"
    for name in left_overs:
        yield f"left on a node by an earlier run: {name}"
