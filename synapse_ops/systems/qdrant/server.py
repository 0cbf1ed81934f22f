"""A Qdrant server by URL: collections, aliases, points and (qdrant/snapshots.py) snapshots.

Ours behind Qdrant Edge or a real one: this client knows no difference. In a cluster every node answers for all of the
collections, but snapshots are each node's own: qdrant_nodes() returns one client per node.
Source: Qdrant's REST API, 1.18; what it does not say was measured on a real server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from synapse_ops.errors import ConfigError
from synapse_ops.systems.qdrant.http import TIMEOUT_S, QdrantRefused, segment
from synapse_ops.systems.qdrant.snapshots import Download, QdrantSnapshots, ServerSnapshot

if TYPE_CHECKING:
    from synapse_ops.spec.blocks.stores import Qdrant as QdrantBlock

__all__ = [
    "CollectionInfo",
    "Download",
    "QdrantRefused",
    "QdrantServer",
    "ServerSnapshot",
    "open_qdrant",
    "qdrant_nodes",
]

PointId = int | str
Point = dict[str, Any]  # id, vector, payload; as Qdrant writes it
SCROLL_PAGE = 1000
ID_PAGE = 10_000  # without payload and vectors


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection as one node sees it. points: approximate; use count(). config, payload_schema: Qdrant's own JSON.

    metadata: what clients keep with a collection (Qdrant 1.16 and later), empty before.
    """

    name: str
    status: str
    points: int
    config: dict[str, Any]
    payload_schema: dict[str, Any]

    @classmethod
    def of(cls, name: str, found: Mapping[str, Any]) -> CollectionInfo:
        points = found.get("points_count") or 0
        return cls(name, found["status"], points, found["config"], found["payload_schema"])

    @property
    def page_limit(self) -> int | None:
        """The largest page that the collection's strict mode lets through; None without a limit."""
        strict = self.config.get("strict_mode_config") or {}
        limit = strict.get("max_query_limit") if strict.get("enabled") else None
        return int(limit) if limit else None

    @property
    def metadata(self) -> dict[str, Any]:
        return dict(self.config.get("metadata") or {})


@dataclass(frozen=True, slots=True)
class ShardPlace:
    """A replica of a shard. peer_id: of its node; state: Active, Dead, Partial, ... as Qdrant says."""

    shard: int
    peer_id: int
    state: str
    is_local: bool
    points: int | None  # known for local ones only


class QdrantServer(QdrantSnapshots):
    """One node of Qdrant. Every method raises what QdrantHttp.call does."""

    def version(self) -> str:
        """Return such as 1.18.3; needs no key."""
        answer = self.call("GET", "/")
        if not isinstance(answer, Mapping) or "version" not in answer:
            raise ConfigError(f"{self.url} is not a Qdrant server: it reports no version")
        return str(answer["version"])

    def is_ready(self) -> bool:
        """Return what /readyz reports. It stays true when the consensus has stopped: read cluster(), too."""
        try:
            self.call("GET", "/readyz")
        except QdrantRefused:
            return False
        return True

    def metrics(self) -> str:
        return str(self.call("GET", "/metrics"))

    def cluster(self) -> dict[str, Any]:
        """Return peers and consensus; {"status": "disabled"} on a single node."""
        found: dict[str, Any] = self.call("GET", "/cluster", read=dict)
        return found

    def collections(self) -> tuple[str, ...]:
        """Return the names, sorted."""
        names = self.call("GET", "/collections", read=lambda found: [entry["name"] for entry in found["collections"]])
        return tuple(sorted(names))

    def exists(self, name: str) -> bool:
        return bool(self.call("GET", f"{_path(name)}/exists", read=itemgetter("exists")))

    def collection(self, name: str) -> CollectionInfo:
        info: CollectionInfo = self.call("GET", _path(name), read=lambda found: CollectionInfo.of(name, found))
        return info

    def shards(self, name: str) -> tuple[ShardPlace, ...]:
        """Return every replica of every shard that this node knows of, by shard and peer."""
        places = self.call("GET", f"{_path(name)}/cluster", read=_shard_places)
        return tuple(sorted(places, key=lambda place: (place.shard, place.peer_id)))

    def shard_transfers(self, name: str) -> tuple[str, ...]:
        """Return in words which shards are on their way from one node to another."""
        words: tuple[str, ...] = self.call("GET", f"{_path(name)}/cluster", read=_transfers)
        return words

    def peer_id(self, name: str) -> int:
        """Return the peer id of this node, which a single one has as well; Qdrant reports it with a collection."""
        return int(self.call("GET", f"{_path(name)}/cluster", read=itemgetter("peer_id")))

    def create_collection(self, name: str, config: Mapping[str, Any]) -> None:
        """Make a collection. config: the body of Qdrant's own call: vectors, sparse_vectors, hnsw_config, ..."""
        self.call("PUT", _path(name), dict(config), has_limit=False)

    def update_collection(self, name: str, changes: Mapping[str, Any]) -> None:
        self.call("PATCH", _path(name), dict(changes), has_limit=False)

    def delete_collection(self, name: str) -> bool:
        """Delete a collection; False when it is not there. Its snapshots' files stay on the server's disk."""
        return bool(self.call("DELETE", _path(name), has_limit=False))

    def create_payload_index(self, name: str, field: str, schema: str | Mapping[str, Any]) -> None:
        body = {"field_name": field, "field_schema": schema if isinstance(schema, str) else dict(schema)}
        self.call("PUT", f"{_path(name)}/index", body, params=_WAIT, has_limit=False)

    def aliases(self) -> dict[str, str]:
        """Return alias -> collection, sorted."""
        found = self.call("GET", "/aliases", read=lambda found: [_alias(entry) for entry in found["aliases"]])
        return dict(sorted(found))

    def switch_alias(self, alias: str, collection: str) -> None:
        """Make the alias point at the collection, in one step: no reader sees it missing."""
        actions = [{"create_alias": {"collection_name": collection, "alias_name": alias}}]
        if alias in self.aliases():
            actions.insert(0, {"delete_alias": {"alias_name": alias}})
        self.call("POST", "/collections/aliases", {"actions": actions})

    def delete_alias(self, alias: str) -> None:
        self.call("POST", "/collections/aliases", {"actions": [{"delete_alias": {"alias_name": alias}}]})

    def count(self, name: str, *, exact: bool = True, filter: Mapping[str, Any] | None = None) -> int:  # noqa: A002
        """Return the number of points; exact=False is an estimate. Where strict mode forbids it, ids are counted."""
        body = {"exact": exact} | ({"filter": dict(filter)} if filter else {})
        try:
            counted = self.call("POST", f"{_path(name)}/points/count", body, has_limit=False, read=itemgetter("count"))
            return int(counted)
        except QdrantRefused as refused:
            if not exact or refused.status != 400:
                raise
        page = self.collection(name).page_limit or ID_PAGE
        found = self.scroll_all(name, limit=page, with_payload=False, with_vectors=False, filter=filter)
        return sum(1 for _ in found)

    def scroll(
        self,
        name: str,
        *,
        limit: int = SCROLL_PAGE,
        offset: PointId | None = None,
        with_payload: bool = True,
        with_vectors: bool = True,
        filter: Mapping[str, Any] | None = None,  # noqa: A002
    ) -> tuple[list[Point], PointId | None]:
        """Return a page of points in ascending order of ids, numbers before UUIDs, and where the next one begins."""
        body: dict[str, Any] = {"limit": limit, "with_payload": with_payload, "with_vector": with_vectors}
        if offset is not None:
            body["offset"] = offset
        if filter:
            body["filter"] = dict(filter)
        read = itemgetter("points", "next_page_offset")
        page: tuple[list[Point], PointId | None] = self.call("POST", f"{_path(name)}/points/scroll", body, read=read)
        return page

    def scroll_all(self, name: str, **options: Any) -> Iterator[Point]:
        """Yield every point, page by page; one written or deleted meanwhile may or may not be among them."""
        offset: PointId | None = None
        while True:
            points, offset = self.scroll(name, offset=offset, **options)
            yield from points
            if offset is None:
                return

    def retrieve(
        self, name: str, ids: Sequence[PointId], *, with_payload: bool = True, with_vectors: bool = True
    ) -> list[Point]:
        """Return the points with these ids that exist, in no promised order."""
        body = {"ids": list(ids), "with_payload": with_payload, "with_vector": with_vectors}
        return list(self.call("POST", f"{_path(name)}/points", body, read=list))

    def query(self, name: str, query: Any, *, limit: int = 10, **options: Any) -> list[Point]:
        """Return the nearest points with id and score. query: a vector, a point's id, or Qdrant's own JSON.

        options: of Qdrant's call: using, filter, params (such as {"exact": True}), with_payload, with_vector, prefetch.
        """
        body = {"query": query, "limit": limit} | options
        return list(self.call("POST", f"{_path(name)}/points/query", body, read=itemgetter("points")))

    def upsert(self, name: str, points: Sequence[Point], *, wait: bool = True) -> None:
        """Write points; with wait they are applied, without they are only in the log, which a crash keeps as well."""
        self.call("PUT", f"{_path(name)}/points", {"points": list(points)}, params=_WAIT if wait else None)

    def delete_points(self, name: str, which: Sequence[PointId] | Mapping[str, Any], *, wait: bool = True) -> None:
        """Delete points by their ids, or those that a filter matches."""
        body: dict[str, Any] = {"filter": dict(which)} if isinstance(which, Mapping) else {"points": list(which)}
        self.call("POST", f"{_path(name)}/points/delete", body, params=_WAIT if wait else None)

    def set_payload(self, name: str, payload: Mapping[str, Any], ids: Sequence[PointId]) -> None:
        """Set these keys of the points' payloads; the others stay."""
        body = {"payload": dict(payload), "points": list(ids)}
        self.call("POST", f"{_path(name)}/points/payload", body, params=_WAIT)


_WAIT = {"wait": "true"}


def _path(name: str) -> str:
    return f"/collections/{segment(name)}"


def _alias(entry: Mapping[str, str]) -> tuple[str, str]:
    return entry["alias_name"], entry["collection_name"]


def _shard_places(found: Mapping[str, Any]) -> list[ShardPlace]:
    own = [
        ShardPlace(entry["shard_id"], found["peer_id"], entry["state"], True, entry.get("points_count"))
        for entry in found["local_shards"]
    ]
    return own + [
        ShardPlace(entry["shard_id"], entry["peer_id"], entry["state"], False, None) for entry in found["remote_shards"]
    ]


def _transfers(found: Mapping[str, Any]) -> tuple[str, ...]:
    rows = found.get("shard_transfers") or ()
    return tuple(f"shard {row['shard_id']} on its way from peer {row['from']} to {row['to']}" for row in rows)


def open_qdrant(block: QdrantBlock, url: str | None = None, timeout_s: float = TIMEOUT_S) -> QdrantServer:
    """Return the client of `qdrant.host`, or of one node by its URL. Reads the key anew; raises ConfigError."""
    host = f"[{block.host}]" if ":" in block.host else block.host
    address = url or f"{'https' if block.tls else 'http'}://{host}:{block.port}"
    return QdrantServer(address, block.api_key.resolve() if block.api_key else None, block.ca_file, timeout_s)


def qdrant_nodes(block: QdrantBlock, timeout_s: float = TIMEOUT_S) -> tuple[QdrantServer, ...]:
    """Return a client per node: those of `qdrant.nodes`, else the one of `qdrant.host`."""
    return tuple(open_qdrant(block, url, timeout_s) for url in block.nodes) or (open_qdrant(block, None, timeout_s),)
