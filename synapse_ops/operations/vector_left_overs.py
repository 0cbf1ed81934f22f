"""Files that earlier runs of ours left on nodes of Qdrant: found by their heartbeats, named, and not touched.

Qdrant names its snapshots itself, so nothing in a name tells whose it is. A run says in its heartbeat which files lie
on which node because of it; a run that was killed leaves that heartbeat under a prefix without `backup.json`.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.repository_layout import BACKUP, HEARTBEAT, KIND_SNAPSHOT, BackupPlace, Identity, quote_segment
from synapse_ops.errors import ObjectMissing, SynapseOpsError
from synapse_ops.operations.repository import Repository

if TYPE_CHECKING:
    from synapse_ops.operations.vector_source import CollectionNodes
    from synapse_ops.systems.qdrant import QdrantServer

_CUT_WITHIN = timedelta(minutes=30)  # a file whose name we never learnt: made by the node so soon after we asked


def find_left_overs(repository: Repository, identity: Identity, nodes: CollectionNodes) -> tuple[str, ...]:
    """Return the files of killed runs that are still there, as URLs to delete; call it with the lease held.

    The lease excludes other runs on this collection, so every prefix without `backup.json` is one that has ended.
    """
    folder = f"{identity}/{KIND_SNAPSHOT}/{quote_segment(nodes.name)}/"
    by_url = {server.url: server for server in nodes.by_peer.values()}
    found: set[str] = set()
    for backup_id in repository.store.list_prefixes(folder):
        place = BackupPlace(identity, KIND_SNAPSHOT, nodes.name, backup_id)
        if repository.store.head(place.key(BACKUP)) is not None:
            continue
        body = _heartbeat(repository, place)
        for one in body.get("on_nodes") or ():
            found.update(_still_there(by_url.get(one["node"]), nodes.name, one["shard_id"], name=one["name"]))
        cutting = body.get("cutting")
        if cutting:
            since = datetime.fromisoformat(cutting["since"])
            found.update(_still_there(by_url.get(cutting["node"]), nodes.name, cutting["shard_id"], since=since))
    return tuple(sorted(found))


def _heartbeat(repository: Repository, place: BackupPlace) -> dict[str, Any]:
    with suppress(ObjectMissing, ValueError):
        body = json.loads(repository.store.read_bytes(place.key(HEARTBEAT)))
        return body if isinstance(body, dict) else {}
    return {}


def _still_there(
    server: QdrantServer | None, collection: str, shard: int, *, name: str = "", since: datetime | None = None
) -> set[str]:
    """Return the URL of a file by its name, or of those that the node made soon after `since`."""
    if server is None:
        return set()
    try:
        listed = server.list_shard_snapshots(collection, shard)
    except SynapseOpsError:
        return set()
    made_by_us = [
        one.name
        for one in listed
        if one.name == name
        or (since is not None and one.created_at is not None and timedelta(0) <= one.created_at - since <= _CUT_WITHIN)
    ]
    return {
        f"{server.url}/collections/{quote_segment(collection)}/shards/{shard}/snapshots/{one}" for one in made_by_us
    }
