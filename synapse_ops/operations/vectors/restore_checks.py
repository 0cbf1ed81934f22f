"""What must hold before a shard is put into a new collection, and after: versions, replicas, counts, points.

A server answers that a shard was recovered before its other replicas know that they have to follow: for a moment all of
them say "Active", one of them empty. So a state alone proves nothing; each replica's own count has to agree, too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from synapse_ops.domain.progress import Progress, ReportProgress
from synapse_ops.domain.vectors.config import parse_version
from synapse_ops.domain.vectors.fingerprint import CopyFacts, VectorFingerprint
from synapse_ops.domain.vectors.points import canonical_point, parse_id, point_hash
from synapse_ops.errors import IntegrityError, Refused, Unproven
from synapse_ops.operations.backup.deadline import Deadline
from synapse_ops.operations.vectors.cluster import Cluster
from synapse_ops.systems.qdrant.edge import segment_versions
from synapse_ops.systems.qdrant.server import QdrantServer

POLL_S = 0.5
SETTLE_S = 60.0  # every replica is active and nothing moves: by then its count is what it will stay
SAMPLE = 500  # points compared through the server, besides the counts; the copy itself was compared whole before


def refuse_newer_segments(server: QdrantServer, name: str, shard: int, copy: CopyFacts, scratch_dir: Path) -> None:
    """Compare with a segment that this server itself has just written: one of a newer version destroys a shard."""
    made = server.create_shard_snapshot(name, shard)
    if made is None:
        raise Unproven("the server made no snapshot of the new collection")
    path = scratch_dir / "empty.snapshot"
    try:
        with server.download_shard_snapshot(name, shard, made.name) as download, path.open("wb") as file:
            for piece in download.pieces:
                file.write(piece)
    finally:
        server.delete_shard_snapshot(name, shard, made.name)
    writes = max(map(parse_version, segment_versions(path)), default=())
    newer = [version for version in copy.segment_versions if parse_version(version) > writes]
    if newer:
        raise Refused(
            f"the backup has segments of version {newer[0]}, the server writes {'.'.join(map(str, writes))}",
            hint="Restore into a server of at least the version that the backup was taken from.",
        )


def await_whole(
    cluster: Cluster, name: str, expected: Mapping[int, int], deadline: Deadline, progress: ReportProgress
) -> dict[str, int]:
    """Return the exact count by node, once every replica is active and holds its shard's points.

    expected: points by shard. Raises IntegrityError when replicas that are active and not being sent anything keep
    another count for SETTLE_S, DeadlineExceeded.
    """
    total = sum(expected.values())
    settled_at: float | None = None
    while True:
        waiting = cluster.not_ready(name)
        wrong = [] if waiting else _other_counts(cluster, name, expected)
        if not waiting and not wrong:
            counts = {server.url: server.count(name, exact=True) for server in cluster.by_peer.values()}
            wrong = [f"{url}: {count} points, expected {total}" for url, count in counts.items() if count != total]
            if not wrong:
                return counts
        settled_at = None if waiting else settled_at or time.monotonic()
        if settled_at is not None and time.monotonic() - settled_at > SETTLE_S:
            raise IntegrityError(f'collection "{name}" was not restored whole', detail="\n".join(wrong))
        deadline.remaining_s()
        progress(Progress(f"waiting for {len(waiting) or len(wrong)} replicas of {name}", 0))
        time.sleep(POLL_S)


def _other_counts(cluster: Cluster, name: str, expected: Mapping[int, int]) -> list[str]:
    return [
        f"shard {place.shard} on {server.url}: {place.points} points, expected {expected[place.shard]}"
        for server in cluster.by_peer.values()
        for place in server.shards(name)
        if place.is_local and place.points != expected[place.shard]
    ]


def compare_sample(server: QdrantServer, name: str, fingerprint: VectorFingerprint) -> int:
    """Compare points that stood still, as the server itself returns them; raises IntegrityError naming what differs."""
    still = fingerprint.still
    ids = list(still)[:: max(1, len(still) // SAMPLE)][:SAMPLE]
    points = server.retrieve(name, [parse_id(one) for one in ids]) if ids else []
    found = {
        str(point["id"]): point_hash(canonical_point(point["id"], point.get("vector"), point.get("payload")))
        for point in points
    }
    wrong = [one for one in ids if found.get(one) != still[one]]
    if wrong:
        raise IntegrityError(
            f'{len(wrong)} of {len(ids)} points of "{name}" are not what was backed up',
            detail=", ".join(wrong[:20]),
        )
    return len(ids)
