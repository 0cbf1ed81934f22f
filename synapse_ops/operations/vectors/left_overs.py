"""Files that earlier runs of ours left on nodes of Qdrant: found by their heartbeats, and named.

Qdrant names its snapshots itself, so a name does not show the run that made it. The heartbeat of a run names the files
that it caused on each node; a killed run leaves that heartbeat under a prefix without `backup.json`. One that
was killed while the node worked never learnt the name: then the files of that time *may* be its own, or another tool's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from synapse_ops.domain.backup.layout import BACKUP, HEARTBEAT, KIND_SNAPSHOT, BackupPlace, Identity, quote_segment
from synapse_ops.domain.backup.retention import CLOCK_TOLERANCE
from synapse_ops.domain.bounded_json import read_json
from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.repository import Repository

if TYPE_CHECKING:
    from synapse_ops.operations.vectors.source import CollectionNodes
    from synapse_ops.systems.qdrant.server import QdrantServer, ServerSnapshot

_MAX_HEARTBEAT_BYTES = 4 * 1024 * 1024  # it names a file for each shard
_CUT_WITHIN = timedelta(minutes=30)  # a file whose name we never learnt: made by the node so soon after we asked


@dataclass(frozen=True)
class NodeFile:
    """A snapshot of a shard that still lies on a node. is_named: the killed run of `place` had learnt its name."""

    server: QdrantServer
    place: BackupPlace
    shard_id: int
    snapshot: ServerSnapshot
    is_named: bool

    @property
    def collection(self) -> str:
        return self.place.subject

    @property
    def url(self) -> str:
        """What a DELETE request would name."""
        shard = f"{self.server.url}/collections/{quote_segment(self.collection)}/shards/{self.shard_id}"
        return f"{shard}/snapshots/{self.snapshot.name}"


def find_left_overs(repository: Repository, identity: Identity, nodes: CollectionNodes) -> tuple[str, ...]:
    """Return the files of killed runs that are still there, as URLs to delete; call it with the lease held.

    The lease excludes other runs on this collection, so every prefix without `backup.json` is one that has ended.
    """
    folder = f"{identity}/{KIND_SNAPSHOT}/{quote_segment(nodes.name)}/"
    places = [BackupPlace(identity, KIND_SNAPSHOT, nodes.name, one) for one in repository.store.list_prefixes(folder)]
    by_url = {server.url: server for server in nodes.by_peer.values()}
    found: set[str] = set()
    for place in places:
        with suppress(SynapseOpsError):
            found |= {file.url for file in files_of_run(repository, place, by_url)}
    return tuple(sorted(found))


def files_of_run(
    repository: Repository, place: BackupPlace, by_url: Mapping[str, QdrantServer]
) -> tuple[NodeFile, ...]:
    """Return what a run that made no backup left on nodes, named files first; empty for one that made it.

    by_url: a client for each node. Raises what a node raises that does not answer.
    """
    if repository.store.head(place.key(BACKUP)) is not None:
        return ()
    told = _read_told(repository, place)
    found: dict[str, NodeFile] = {}
    for file in (*_named(place, told, by_url), *_perhaps(place, told, by_url)):
        found.setdefault(file.url, file)
    return tuple(found.values())


def nodes_of_run(repository: Repository, place: BackupPlace) -> frozenset[str]:
    """Return the URLs of the nodes on which a run left something, by its heartbeat."""
    told = _read_told(repository, place)
    return frozenset(node for node, *_ in (*told.named, *told.cutting))


def _named(place: BackupPlace, told: _Told, by_url: Mapping[str, QdrantServer]) -> Iterator[NodeFile]:
    for node, shard_id, name in told.named:
        server = by_url.get(node)
        for one in server.list_shard_snapshots(place.subject, shard_id) if server is not None else ():
            if server is not None and one.name == name:
                yield NodeFile(server, place, shard_id, one, is_named=True)


def _perhaps(place: BackupPlace, told: _Told, by_url: Mapping[str, QdrantServer]) -> Iterator[NodeFile]:
    for node, shard_id, began in told.cutting:
        server = by_url.get(node)
        if server is None:
            continue
        # the node's time has whole seconds, ours has not, and clocks differ; such a file is only listed, so be wide
        since = began - CLOCK_TOLERANCE
        for one in server.list_shard_snapshots(place.subject, shard_id):
            if one.created_at is not None and since <= one.created_at <= since + _CUT_WITHIN:
                yield NodeFile(server, place, shard_id, one, is_named=False)


@dataclass(frozen=True)
class _Told:
    """What a heartbeat tells: named: (node, shard, file); cutting: (node, shard, since when), one at most."""

    named: list[tuple[str, int, str]] = field(default_factory=list)
    cutting: list[tuple[str, int, datetime]] = field(default_factory=list)


def _read_told(repository: Repository, place: BackupPlace) -> _Told:
    """Return what a run told; nothing for a heartbeat that is not there, or that is not one of ours."""
    found = repository.store.read_with_etag(place.key(HEARTBEAT), max_bytes=_MAX_HEARTBEAT_BYTES)
    try:
        body = read_json(found[0]) if found is not None else {}
        named = [(str(row["node"]), int(row["shard_id"]), str(row["name"])) for row in body.get("on_nodes") or ()]
        cutting = [
            (str(row["node"]), int(row["shard_id"]), datetime.fromisoformat(row["since"]).astimezone(UTC))
            for row in filter(None, [body.get("cutting")])
        ]
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return _Told()
    return _Told(named, cutting)
