"""The part of a snapshot in which the collection may move: read, cut every shard, read again.

Between the two readings lies the window. A shard is cut on the first of its nodes that can; every file that lies on a
node because of us is named in the heartbeat at once, and removed at the end, whatever the end is.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.progress import Progress, ReportProgress
from synapse_ops.domain.vectors.fingerprint import CanaryQuery, VectorFingerprint
from synapse_ops.errors import SynapseOpsError, Unreachable
from synapse_ops.operations.backup.heartbeat import Heartbeat
from synapse_ops.operations.backup.measured import Measured
from synapse_ops.operations.backup.writer import BackupWriter
from synapse_ops.operations.vectors.reading import Readout, Scope, answer_queries, canary_queries, read_points, scope_of
from synapse_ops.operations.vectors.shards import CutShard, create_on_node, is_out_of_space
from synapse_ops.operations.vectors.source import CollectionNodes
from synapse_ops.systems.qdrant.server import QdrantRefused

if TYPE_CHECKING:
    from synapse_ops.operations.stack import Stack
    from synapse_ops.systems.postgres.identity import ServerMoment


@dataclass
class SnapshotRun(Measured):
    """One snapshot being taken."""

    stack: Stack
    nodes: CollectionNodes
    writer: BackupWriter
    heartbeat: Heartbeat
    progress: ReportProgress
    warnings: list[str] = field(default_factory=list)
    on_nodes: list[CutShard] = field(default_factory=list)
    database_faults: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CutCollection:
    """Everything that was read and cut, before a byte of it was sent."""

    shards: tuple[CutShard, ...]
    fingerprint: VectorFingerprint
    canaries: tuple[CanaryQuery, ...]
    opened: tuple[datetime, ServerMoment | None]
    closed: tuple[datetime, ServerMoment | None]


def cut_collection(run: SnapshotRun, *, seed: str) -> CutCollection:
    """Read, cut every shard, and read again; between the two readings lies the window."""
    before = _read(run, seed, None)
    queries = canary_queries(run.nodes.info, before.examples)
    first = answer_queries(run.nodes.control, run.nodes.name, queries)
    opened = (datetime.now(UTC), _database_moment(run))
    with run.phase("create"):
        shards = tuple(_cut_shard(run, shard, peers) for shard, peers in run.nodes.placement.candidates.items())
    closed = (datetime.now(UTC), _database_moment(run))
    after = _read(run, seed, before)
    second = answer_queries(run.nodes.control, run.nodes.name, queries)
    if first is None or second is None:
        run.warnings.append("no canary queries: the collection's strict mode refuses exact searches")
        queries, first, second = (), (), ()
    canaries = tuple(
        CanaryQuery(query.using, query.vector, query.lower_is_better, top=then, is_steady=then == now)
        for query, then, now in zip(queries, first, second, strict=True)
    )
    scope: Scope = "sample" if before.reading.points_digest is None else "all"
    return CutCollection(
        shards, VectorFingerprint.of(scope, seed, before.reading, after.reading), canaries, opened, closed
    )


def _read(run: SnapshotRun, seed: str, earlier: Readout | None) -> Readout:
    """Read the live points; again the same ones, and in the same scope, when there was an earlier reading."""
    nodes = run.nodes
    if earlier is None:
        scope = scope_of(nodes.control.count(nodes.name, exact=True))
    else:
        scope = "sample" if earlier.reading.points_digest is None else "all"
    try:
        with run.phase("fingerprint"):
            return read_points(
                nodes.control,
                nodes.info,
                scope=scope,
                seed=seed,
                sample_points=run.stack.spec.proof.sample_points,
                ids=None if earlier is None or scope == "all" else tuple(earlier.reading.hashes),
                progress=run.progress,
            )
    except QdrantRefused as refused:
        if refused.status < 500:
            raise
        raise Unreachable(
            f'could not read collection "{nodes.name}": a shard has no replica that answers',
            detail=refused.stderr_tail,
        ) from refused


def _cut_shard(run: SnapshotRun, shard: int, peers: tuple[int, ...]) -> CutShard:
    """Have a shard's snapshot made on the first of its nodes that can; a node that is lost leaves it to the next."""
    lost: list[str] = []
    for peer in peers:
        server = run.nodes.by_peer[peer]
        run.progress(Progress(f"snapshotting shard {shard} of {run.nodes.name}", 0))
        begun, at = time.monotonic(), datetime.now(UTC)
        method = run.stack.spec.backup.vectors.method
        run.heartbeat.tell(cutting={"node": server.url, "shard_id": shard, "since": at.isoformat()})
        made = None
        try:
            if method != "streamed":
                made = create_on_node(server, run.nodes.name, shard)
        except Unreachable as error:
            lost.append(f"shard {shard} on {server.url}: {error.message}")
            run.warnings.append(f"{lost[-1]}; asked the next replica")
            continue
        except QdrantRefused as refused:
            if method != "auto" or not is_out_of_space(refused):
                raise
            run.warnings.append(
                f"{server.url} has not enough space for the snapshot of shard {shard}: streamed instead"
            )
        spent_s = time.monotonic() - begun
        points = run.nodes.points_of(peer, shard)
        cut = CutShard(shard, peer, server, run.nodes.name, made, at, spent_s, points)
        if made is not None:
            run.on_nodes.append(cut)
            run.heartbeat.tell(cutting=None, on_nodes=[_where(one) for one in run.on_nodes])
        return cut
    raise Unreachable(
        f'could not snapshot collection "{run.nodes.name}": shard {shard} was lost on every node that has it',
        detail="\n".join(lost),
    )


def _where(cut: CutShard) -> dict[str, Any]:
    return {"node": cut.server.url, "shard_id": cut.shard_id, "name": cut.made.name if cut.made is not None else ""}


def remove_from_nodes(run: SnapshotRun, *, only: CutShard | None = None) -> None:
    """Remove our files from the nodes; one that cannot be removed stays named in the heartbeat, and is a warning."""
    for cut in [only] if only is not None else list(run.on_nodes):
        if cut not in run.on_nodes or cut.made is None:
            continue
        try:
            cut.server.delete_shard_snapshot(cut.collection, cut.shard_id, cut.made.name)
        except SynapseOpsError as error:
            if only is None:
                run.warnings.append(f"{cut.made.name} stays on {cut.server.url}: {error.message}")
            continue
        run.on_nodes.remove(cut)
    with suppress(SynapseOpsError):
        run.heartbeat.tell(cutting=None, on_nodes=[_where(one) for one in run.on_nodes])


def _database_moment(run: SnapshotRun) -> ServerMoment | None:
    """Return the database's clock and WAL position; None when it does not answer, which is then named."""
    from synapse_ops.systems.postgres.connection import connect
    from synapse_ops.systems.postgres.identity import read_moment

    try:
        with connect(run.stack.admin_conninfo(run.stack.spec.database.name)) as connection:
            return read_moment(connection)
    except SynapseOpsError as error:
        fault = " ".join([error.message, *error.detail.splitlines()[:1]])
        if fault not in run.database_faults:
            run.database_faults.append(fault)
        return None
