"""Files that earlier runs of ours left on nodes of Qdrant: found by their heartbeats, and named.

Qdrant names its snapshots itself, so a name does not show the run that made it. The heartbeat of a run names the files
that it caused on each node; a killed run leaves that heartbeat under a prefix without `backup.json`. One that
was killed while the node worked never learnt the name: then the files of that time *may* be its own, or another tool's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.backup.layout import BACKUP, HEARTBEAT, KIND_SNAPSHOT, BackupPlace, Identity, quote_segment
from synapse_ops.domain.backup.retention import CLOCK_TOLERANCE
from synapse_ops.errors import ObjectMissing, SynapseOpsError
from synapse_ops.operations.repository import Repository

if TYPE_CHECKING:
    from synapse_ops.operations.vectors.source import CollectionNodes
    from synapse_ops.systems.qdrant.server import QdrantServer, ServerSnapshot

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
    body = _heartbeat(repository, place)
    found: dict[str, NodeFile] = {}
    for file in (*_named(place, body, by_url), *_perhaps(place, body, by_url)):
        found.setdefault(file.url, file)
    return tuple(found.values())


def nodes_of_run(repository: Repository, place: BackupPlace) -> frozenset[str]:
    """Return the URLs of the nodes on which a run left something, by its heartbeat."""
    body = _heartbeat(repository, place)
    rows: Iterable[dict[str, Any]] = [*(body.get("on_nodes") or ()), *filter(None, [body.get("cutting")])]
    return frozenset(str(row["node"]) for row in rows)


def _named(place: BackupPlace, body: Mapping[str, Any], by_url: Mapping[str, QdrantServer]) -> Iterator[NodeFile]:
    for row in body.get("on_nodes") or ():
        server = by_url.get(row["node"])
        for one in server.list_shard_snapshots(place.subject, row["shard_id"]) if server is not None else ():
            if one.name == row["name"]:
                yield NodeFile(server, place, row["shard_id"], one, is_named=True)  # type: ignore[arg-type]


def _perhaps(place: BackupPlace, body: Mapping[str, Any], by_url: Mapping[str, QdrantServer]) -> Iterator[NodeFile]:
    row = body.get("cutting")
    server = by_url.get(row["node"]) if row else None
    if row is None or server is None:
        return
    # the node's time has whole seconds, ours has not, and their clocks differ; such a file is only listed, so be wide
    since = datetime.fromisoformat(row["since"]) - CLOCK_TOLERANCE
    for one in server.list_shard_snapshots(place.subject, row["shard_id"]):
        if one.created_at is not None and since <= one.created_at <= since + _CUT_WITHIN:
            yield NodeFile(server, place, row["shard_id"], one, is_named=False)


def _heartbeat(repository: Repository, place: BackupPlace) -> dict[str, Any]:
    with suppress(ObjectMissing, ValueError):
        body = json.loads(repository.store.read_bytes(place.key(HEARTBEAT)))
        return body if isinstance(body, dict) else {}
    return {}
