"""From which nodes the shards of a collection are taken: each from one active replica, or the set is void.

A node's snapshot holds its own shards alone, so each shard is asked of a node that has it. What a node reports of its
own replicas counts; what others report of them may be older.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ACTIVE = "Active"


@dataclass(frozen=True, slots=True)
class NodeView:
    """What one node reports of a collection. local: state by shard of its own replicas; points: by shard, approximate.

    remote: every (shard, peer) elsewhere that it knows of.
    """

    peer_id: int
    local: Mapping[int, str]
    points: Mapping[int, int]
    remote: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Placement:
    """candidates: by shard the peers to ask, in this order; empty for a shard that no node can give. faults: why."""

    candidates: Mapping[int, tuple[int, ...]]
    faults: tuple[str, ...]


def place_shards(views: Sequence[NodeView], shard_number: int | None) -> Placement:
    """Return from whom each shard is taken, the work spread over the nodes.

    views: of every node that answers, each once. shard_number: as configured; None with custom sharding, where the
    shards are what the nodes say. A shard more than configured is being made by a resharding: that is a fault.
    """
    known = {shard for view in views for shard in view.local} | {shard for view in views for shard, _ in view.remote}
    wanted = sorted(known | set(range(shard_number or 0)))
    surplus = [shard for shard in wanted if shard_number is not None and shard >= shard_number]
    faults = [f"shard {one} is more than the {shard_number} configured: is a resharding under way?" for one in surplus]
    load = {view.peer_id: 0 for view in views}
    candidates = {}
    for shard in wanted:
        active = [view.peer_id for view in views if view.local.get(shard) == ACTIVE]
        active.sort(key=lambda peer: (load[peer], peer))
        if active:
            load[active[0]] += 1
        else:
            faults.append(f"shard {shard} has no active replica on a node that answers: {_states(views, shard)}")
        candidates[shard] = tuple(active)
    return Placement(candidates, tuple(faults))


def _states(views: Sequence[NodeView], shard: int) -> str:
    states = [f"{view.local[shard]} on peer {view.peer_id}" for view in views if shard in view.local]
    answering = {view.peer_id for view in views}
    silent = sorted({peer for view in views for number, peer in view.remote if number == shard} - answering)
    states += [f"peer {peer} does not answer, or is not in qdrant.nodes" for peer in silent]
    return ", ".join(states) or "no node reports one"
