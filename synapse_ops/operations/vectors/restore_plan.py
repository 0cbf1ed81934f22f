"""What restoring a collection's backup into a server would do: looked at and refused where it cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synapse_ops.domain.backup.layout import BackupPlace
from synapse_ops.domain.backup.snapshot_record import SnapshotRecord
from synapse_ops.domain.vectors.config import parse_version
from synapse_ops.errors import Refused, TargetNotEmpty
from synapse_ops.operations.backup.reading import ReadLog, read_backup_document
from synapse_ops.operations.backup.restoring import RestorePlan, predict_from_repository
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.vectors.cluster import look_at_cluster
from synapse_ops.systems.qdrant.server import QdrantServer


@dataclass(frozen=True)
class VectorRestorePlan(RestorePlan):
    """What a restore of a collection would do. aliases: of the backup, with what each stands for now."""

    record: SnapshotRecord
    collection: str
    server_url: str
    nodes: tuple[str, ...]
    shard_number: int
    aliases: dict[str, str | None]

    def facts(self) -> Mapping[str, str]:
        aliases = [f"{alias} (now: {target or 'nothing'})" for alias, target in self.aliases.items()]
        return {
            "shards": f"{self.shard_number}, nodes {', '.join(self.nodes)}",
            "its aliases": f"{', '.join(aliases) or 'none'}; left alone",
        }

    def as_json(self) -> dict[str, Any]:
        return {
            **super().as_json(),
            "source_server_version": self.record.source.server_version,
            "window_opened_at": self.record.window.opened_at.isoformat(),
            "window_closed_at": self.record.window.closed_at.isoformat(),
            "nodes": list(self.nodes),
            "shards": self.shard_number,
            "aliases": self.aliases,
        }


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
        f"the server does not report its free space: it needs about {2 * record.dumped_bytes // 2**20 + 1} MiB",
        (
            f"writes after {record.window.closed_at.isoformat(timespec='seconds')} are not included;"
            f" those since {record.window.opened_at.isoformat(timespec='seconds')} may be"
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
        where=f"{control.url}/collections/{collection}",
        predicted_s=predict_from_repository(repository, place, record.source_size_bytes),
        server_version=version,
        nodes=tuple(server.url for server in cluster.by_peer.values()),
        shard_number=len(record.shards),
        size_bytes=record.dumped_bytes,
        stored_bytes=record.stored_bytes,
        aliases={alias: aliases.get(alias) for alias in record.aliases},
        notes=tuple(notes),
    )
