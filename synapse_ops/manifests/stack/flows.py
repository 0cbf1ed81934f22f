"""The one list of who may talk to whom. The host firewall and the network policies are two ways of writing it.

What is not listed is closed everywhere. `firewall.inbound` is the traffic that enters a host; the flows between the
parts follow from what they are. A flow names its reason, and the reason stands beside the rule that lets it through.
"""

from __future__ import annotations

from typing import NamedTuple

from synapse_ops.manifests.stack.parts import (
    API,
    HTTPS_PORT,
    NODE_EXPORTER_PORT,
    OPS,
    PRIMARY,
    QDRANT,
    REDIS,
    STANDBY,
    WAL_RECEIVER,
    WORKER,
    authority_of,
    database_nodes,
    database_parts,
    has_wal_receiver,
    is_ours,
    node_addresses,
    qdrant_nodes,
    volume_parts,
)
from synapse_ops.spec import Spec
from synapse_ops.spec.fixed import (
    OPS_METRICS_PORT,
    POSTGRES_EXPORTER_PORT,
    REDIS_EXPORTER_PORT,
    WAL_METRICS_PORT,
    WORKER_METRICS_PORT,
)

ANYONE = ("0.0.0.0/0", "::/0")
MONITORING = "monitoring"  # Prometheus and its exporters
ENTRY = "entry"  # the controller that ends TLS: Ingress, Gateway or nginx
STORES = {PRIMARY: "database", STANDBY: "database", REDIS: "redis", QDRANT: "qdrant"}


class Inbound(NamedTuple):
    """Traffic that may enter a host: TCP to `port` from `source`, an IPv4 or IPv6 network."""

    source: str
    port: int


class Outbound(NamedTuple):
    """TCP from one part to somebody else's server. host: a name or an address; None is anywhere."""

    source: str
    host: str | None
    port: int


class Flow(NamedTuple):
    """TCP from one part to a port of another."""

    source: str
    target: str
    port: int
    reason: str


def inbound(spec: Spec) -> tuple[Inbound, ...]:
    """Return what may enter from outside, in the order of the spec."""
    return tuple(Inbound(rule.source, rule.port) for rule in spec.firewall.inbound)


def outbound(spec: Spec) -> tuple[Outbound, ...]:
    """Return where parts of the stack ask outside of the cluster, besides Redis' and Qdrant's own hosts, each once."""
    found: list[Outbound] = []
    services = (OPS, WAL_RECEIVER) if has_wal_receiver(spec) else (OPS,)
    for service in services:
        endpoint = spec.object_store.endpoint  # AWS has many addresses
        found.append(Outbound(service, None, HTTPS_PORT) if endpoint is None else _leads(service, endpoint))
        if service == OPS:
            found += [_leads(service, check.url) for check in spec.health if not check.url.startswith("/")]
    if not is_ours(spec, "database", "kubernetes"):
        clients = database_nodes(spec, "kubernetes")
        nodes = dict.fromkeys((*clients, *node_addresses(spec, "kubernetes")))  # the superuser's URL leads to either
        found += [Outbound(client, *address) for client in (API, WORKER) for address in clients]
        found += [Outbound(service, *address) for service in services for address in nodes]
    return tuple(dict.fromkeys(found))


def _leads(service: str, url: str) -> Outbound:
    return Outbound(service, *authority_of(url))


def flows(spec: Spec) -> tuple[Flow, ...]:
    """Return every flow between parts of the stack, each once. A database elsewhere is in `outbound`."""
    redis = spec.redis.port
    ours = is_ours(spec, "qdrant", "kubernetes")
    vectors = [spec.qdrant.port] if ours else sorted({node.port for node in qdrant_nodes(spec)})
    found = [Flow(ENTRY, API, spec.server.port, "requests, TLS ended")]
    for client in (API, WORKER):
        found += [
            *_to_nodes(spec, client, "queries"),
            Flow(client, REDIS, redis, "cache and queue"),
            *(Flow(client, QDRANT, port, "vector search") for port in vectors),
        ]
    found += [
        *(flow for node in database_parts(spec) for flow in _to_nodes(spec, node, "replication")),
        *_to_the_start_gate(spec),
        Flow(OPS, API, spec.server.port, "health checks"),
        *_to_nodes(spec, OPS, "backup, probes"),
        Flow(OPS, REDIS, redis, "probes, cleanup"),
        *(Flow(OPS, QDRANT, port, "snapshots, probes") for port in vectors),
        Flow(MONITORING, API, spec.server.port, "metrics, probes"),
        Flow(MONITORING, WORKER, WORKER_METRICS_PORT, "metrics"),
        *(Flow(MONITORING, node, POSTGRES_EXPORTER_PORT, "metrics") for node in database_parts(spec)),
        Flow(MONITORING, REDIS, REDIS_EXPORTER_PORT, "metrics"),
        *(Flow(MONITORING, QDRANT, port, "metrics") for port in vectors),
        *(Flow(MONITORING, part, NODE_EXPORTER_PORT, "space on its volume") for part in volume_parts(spec)),
        Flow(MONITORING, OPS, spec.watch.port or OPS_METRICS_PORT, "metrics"),
    ]
    if has_wal_receiver(spec):
        found += [
            *_to_nodes(spec, WAL_RECEIVER, "WAL"),
            Flow(MONITORING, WAL_RECEIVER, WAL_METRICS_PORT, "metrics"),
        ]
    return tuple(found)


def _to_the_start_gate(spec: Spec) -> list[Flow]:
    if not (is_ours(spec, "database", "kubernetes") and spec.failover.is_ours):
        return []
    port = spec.watch.port or OPS_METRICS_PORT
    return [Flow(node, OPS, port, "start gate") for node in database_parts(spec)]


def _to_nodes(spec: Spec, source: str, reason: str) -> list[Flow]:
    """Return the flows from one part to every other node of the database: after a failover it is another's turn."""
    if not is_ours(spec, "database", "kubernetes"):
        return []
    return [Flow(source, node, spec.database.port, reason) for node in database_parts(spec) if node != source]
