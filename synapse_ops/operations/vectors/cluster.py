"""All nodes of a Qdrant server, each known by its peer id: what a restore needs, and what it refuses without."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from synapse_ops.domain.vectors.placement import ACTIVE
from synapse_ops.errors import Refused, SynapseOpsError, Unreachable
from synapse_ops.systems.qdrant.server import QdrantServer

SINGLE = 0  # the peer of a server that is not a cluster, until a collection reports the real one


@dataclass(frozen=True)
class Cluster:
    """Every node, none missing. is_single: one node, no consensus. disk_bytes: of the smallest disk, if known."""

    by_peer: dict[int, QdrantServer]
    is_single: bool
    disk_bytes: int | None

    @property
    def control(self) -> QdrantServer:
        return next(iter(self.by_peer.values()))

    def homes(self, collection: str) -> dict[int, tuple[int, ...]]:
        """Return by shard the peers that hold a replica, as each node reports its own."""
        found: dict[int, list[int]] = {}
        for peer, server in self.by_peer.items():
            for place in server.shards(collection):
                if place.is_local:
                    found.setdefault(place.shard, []).append(peer)
        return {shard: tuple(peers) for shard, peers in sorted(found.items())}

    def not_ready(self, collection: str) -> tuple[str, ...]:
        """Return the replicas that are not active, as any node says, and the transfers between nodes; empty: ready."""
        found: set[str] = set()
        for server in self.by_peer.values():
            found |= {
                f"shard {place.shard} on peer {place.peer_id}: {place.state}"
                for place in server.shards(collection)
                if place.state != ACTIVE
            }
            found |= set(server.shard_transfers(collection))
        return tuple(sorted(found))


def look_at_cluster(servers: Sequence[QdrantServer]) -> Cluster:
    """Return the nodes. Raises Unreachable for a node that does not answer, Refused for a cluster of which a node is
    not named, and for one whose consensus has stopped: it would take the collection and never agree on it."""
    by_peer: dict[int, QdrantServer] = {}
    members: set[int] = set()
    for number, server in enumerate(servers):
        status = server.cluster()
        if status.get("status") != "enabled":
            by_peer[SINGLE + number] = server
            continue
        thread = (status.get("consensus_thread_status") or {}).get("consensus_thread_status")
        if thread != "working":
            raise Refused(
                f"the consensus of {server.url} is {thread}: collections cannot be made",
                hint="Restart that node; if it does not come back, see Qdrant's own recovery of a cluster.",
            )
        by_peer[int(status["peer_id"])] = server
        members |= {int(peer) for peer in status.get("peers") or {}}
    missing = members - by_peer.keys()
    if missing:
        raise Refused(
            f"{len(missing)} of {len(members)} nodes are not named: peers {', '.join(map(str, sorted(missing)))}",
            hint="Name every node's URL in qdrant.nodes: each gets its own shards, and counts are compared on all.",
        )
    if len(by_peer) != len(servers):
        raise Refused(
            f"{len(servers)} URLs of qdrant.nodes lead to {len(by_peer)} nodes",
            hint="Give each node its own address, not that of a load balancer.",
        )
    if not by_peer:
        raise Unreachable("no node of Qdrant was named")
    sizes = [size for size in map(_disk_bytes, by_peer.values()) if size is not None]
    return Cluster(by_peer, not members, min(sizes, default=None))


def _disk_bytes(server: QdrantServer) -> int | None:
    """Return the size of a node's disk from its telemetry; Qdrant does not report free space."""
    with suppress(SynapseOpsError, KeyError, TypeError, ValueError):
        kib = server.call("GET", "/telemetry", params={"details_level": 1})["app"]["system"]["disk_size"]
        return int(kib) * 1024 if kib else None
    return None
