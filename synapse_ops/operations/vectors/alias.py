"""Makes a restored collection live: one alias, switched in one atomic step, and only to a collection that is whole."""

from __future__ import annotations

from collections.abc import Sequence

from synapse_ops.errors import ConfigError, Refused
from synapse_ops.operations.vectors.cluster import look_at_cluster
from synapse_ops.systems.qdrant.server import QdrantServer


def switch_alias(servers: Sequence[QdrantServer], alias: str, collection: str) -> str | None:
    """Make an alias stand for a restored collection, in one step; return what it stood for before.

    Raises ConfigError when the collection is not there or the alias is the name of one, Refused when it is not whole on
    every node: a shard not active, or counts that differ between the nodes.
    """
    cluster = look_at_cluster(servers)
    names = cluster.control.collections()
    if collection not in names:
        raise ConfigError(
            f'there is no collection "{collection}" on {cluster.control.url}', detail=", ".join(names[:20])
        )
    if alias in names:
        raise ConfigError(
            f'"{alias}" is a collection, not an alias', hint="Only clients that search by an alias can be switched."
        )
    counts = {server.url: server.count(collection, exact=True) for server in cluster.by_peer.values()}
    waiting = cluster.not_ready(collection)
    if waiting or len(set(counts.values())) > 1:
        raise Refused(
            f'collection "{collection}" is not whole on every node',
            detail="\n".join([*waiting, *(f"{url}: {count} points" for url, count in counts.items())]),
        )
    before = cluster.control.aliases().get(alias)
    cluster.control.switch_alias(alias, collection)
    return before
