"""A collection as its nodes show it: which nodes answer, which shards they hold, and whose collection it is.

Identity. `system_identifier` is the id of a peer of the cluster, `generation` 8 hex digits of ours; both are kept in
the collection's own metadata under `synapse_ops` (Qdrant 1.16 and later; clients' metadata beside it is left alone). A
collection that comes to another cluster, where that peer is not, gets a new one. Older servers keep no metadata: there
the generation is derived from the server's URL.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from synapse_ops.domain.backup.layout import Identity
from synapse_ops.domain.vectors.config import OWN_METADATA
from synapse_ops.domain.vectors.placement import NodeView, Placement, place_shards
from synapse_ops.errors import ConfigError, Refused, Unreachable
from synapse_ops.systems.qdrant.server import CollectionInfo, QdrantRefused, QdrantServer, qdrant_nodes

if TYPE_CHECKING:
    from synapse_ops.operations.stack import Stack

METADATA_SINCE = (1, 16)
_GENERATION = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True)
class CollectionNodes:
    """A collection on the nodes that answer. control: the one that is asked for everything but shards.

    silent: url and reason of every node that does not answer.
    """

    name: str
    control: QdrantServer
    by_peer: dict[int, QdrantServer]
    views: tuple[NodeView, ...]
    silent: tuple[tuple[str, str], ...]
    info: CollectionInfo
    version: str
    aliases: tuple[str, ...]

    @property
    def placement(self) -> Placement:
        params = self.info.config["params"]
        custom = params.get("sharding_method") == "custom"
        return place_shards(self.views, None if custom else int(params.get("shard_number") or 1))

    def points_of(self, peer_id: int, shard: int) -> int | None:
        """Return what a node counts in its own shard; approximate."""
        return next((view.points.get(shard) for view in self.views if view.peer_id == peer_id), None)


@contextmanager
def open_collection(stack: Stack, name: str) -> Iterator[CollectionNodes]:
    """Yield a collection on all nodes of the spec that answer. Raises ConfigError when there is none of that name,
    Unreachable when no node answers, Refused when two URLs of `qdrant.nodes` lead to one node."""
    with ExitStack() as opened:
        servers = [opened.enter_context(server) for server in qdrant_nodes(stack.spec.qdrant)]
        yield look_at(servers, name)


def look_at(servers: Sequence[QdrantServer], name: str) -> CollectionNodes:
    """Ask every node for its view of a collection; raises as `open_collection` does."""
    by_peer: dict[int, QdrantServer] = {}
    views: list[NodeView] = []
    silent: list[tuple[str, str]] = []
    for server in servers:
        try:
            view = _view(server, name)
        except Unreachable as error:
            silent.append((server.url, error.message))
            continue
        except QdrantRefused as refused:
            if not refused.is_missing:
                raise
            raise _no_such_collection(server, name) from None
        if view.peer_id in by_peer:
            raise Refused(
                f"{by_peer[view.peer_id].url} and {server.url} of qdrant.nodes answer as one node, peer {view.peer_id}",
                hint="Give each node its own address, not that of a load balancer.",
            )
        by_peer[view.peer_id] = server
        views.append(view)
    if not views:
        raise Unreachable(
            f"no node of Qdrant answers: {', '.join(url for url, _ in silent)}",
            detail="\n".join(f"{url}: {reason}" for url, reason in silent),
            hint="Is qdrant.host, or qdrant.nodes, of the spec right?",
        )
    control = by_peer[views[0].peer_id]
    aliases = control.aliases()
    if name in aliases:
        raise ConfigError(f'"{name}" is an alias of collection "{aliases[name]}"', hint="Name the collection itself.")
    return CollectionNodes(
        name=name,
        control=control,
        by_peer=by_peer,
        views=tuple(views),
        silent=tuple(silent),
        info=control.collection(name),
        version=control.version(),
        aliases=tuple(alias for alias, target in aliases.items() if target == name),
    )


def _view(server: QdrantServer, name: str) -> NodeView:
    places = server.shards(name)
    local = [place for place in places if place.is_local]
    return NodeView(
        peer_id=local[0].peer_id if local else server.peer_id(name),
        local={place.shard: place.state for place in local},
        points={place.shard: place.points for place in local if place.points is not None},
        remote=frozenset((place.shard, place.peer_id) for place in places if not place.is_local),
    )


def _no_such_collection(server: QdrantServer, name: str) -> ConfigError:
    names = server.collections()
    return ConfigError(
        f'there is no collection "{name}" on {server.url}, which holds {len(names)}',
        detail=", ".join(names[:20]),
    )


def ensure_identity(nodes: CollectionNodes) -> Identity:
    """Return whose collection this is, giving it a generation the first time."""
    peers = sorted(nodes.by_peer)
    members = nodes.control.cluster().get("peers") or {}
    all_peers = {*map(str, peers), *map(str, members)}
    found = _stored(nodes.info)
    if found is not None and found.system_identifier in all_peers:
        return found
    smallest = str(min(map(int, all_peers)))
    if tuple(map(int, re.findall(r"\d+", nodes.version)[:2])) < METADATA_SINCE:
        return _derived(nodes, smallest)
    fresh = Identity(smallest, os.urandom(4).hex())
    body = {"system_identifier": fresh.system_identifier, "generation": fresh.generation}
    nodes.control.update_collection(nodes.name, {"metadata": {OWN_METADATA: body}})
    stored = _stored(nodes.control.collection(nodes.name))
    return stored if stored is not None and stored.system_identifier in all_peers else _derived(nodes, smallest)


def _stored(info: CollectionInfo) -> Identity | None:
    body = info.metadata.get(OWN_METADATA)
    if not isinstance(body, dict):
        return None
    system, generation = str(body.get("system_identifier")), str(body.get("generation"))
    if not system.isdecimal() or len(system) > 20 or _GENERATION.fullmatch(generation) is None:
        return None
    return Identity(system, generation)


def _derived(nodes: CollectionNodes, system_identifier: str) -> Identity:
    return Identity(system_identifier, hashlib.sha256(nodes.control.url.encode()).hexdigest()[:8])
