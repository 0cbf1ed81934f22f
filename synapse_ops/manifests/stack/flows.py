"""The one list of who may talk to whom. The host firewall and the network policies are two ways of writing it.

What is not listed is closed everywhere. `firewall.inbound` is the traffic that enters a host; the flows between the
parts follow from what they are. A flow names its reason, and the reason stands beside the rule that lets it through.
"""

from __future__ import annotations

from typing import NamedTuple

from synapse_ops.manifests.stack.parts import (
    API,
    HTTPS_PORT,
    OPS,
    PRIMARY,
    QDRANT,
    REDIS,
    STANDBY,
    WAL_RECEIVER,
    WORKER,
    authority_of,
    has_wal_receiver,
    is_ours,
    qdrant_nodes,
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
    """Return where our own services ask outside of the cluster, besides each store's own `host`, each once."""
    found: list[Outbound] = []
    for service in (OPS, WAL_RECEIVER) if has_wal_receiver(spec) else (OPS,):
        endpoint = spec.object_store.endpoint  # AWS has many addresses
        found.append(Outbound(service, None, HTTPS_PORT) if endpoint is None else _leads(service, endpoint))
        if service == OPS:
            found += [_leads(service, check.url) for check in spec.health if not check.url.startswith("/")]
        if not is_ours(spec, "database", "kubernetes"):
            nodes = spec.database.nodes
            found += [_leads(service, f"tcp://{address}") for address in nodes.values()]
            if spec.failover.standby not in nodes:
                found.append(Outbound(service, spec.failover.standby, spec.database.port))
    return tuple(dict.fromkeys(found))


def _leads(service: str, url: str) -> Outbound:
    return Outbound(service, *authority_of(url))


def flows(spec: Spec) -> tuple[Flow, ...]:
    """Return every flow between parts of the stack, each once."""
    database, redis = spec.database.port, spec.redis.port
    ours = is_ours(spec, "qdrant", "kubernetes")
    vectors = [spec.qdrant.port] if ours else sorted({node.port for node in qdrant_nodes(spec)})
    found = [Flow(ENTRY, API, spec.server.port, "requests, TLS ended")]
    for client in (API, WORKER):
        found += [
            Flow(client, PRIMARY, database, "queries"),
            Flow(client, STANDBY, database, "queries, after a failover"),
            Flow(client, REDIS, redis, "cache and queue"),
            *(Flow(client, QDRANT, port, "vector search") for port in vectors),
        ]
    found += [
        Flow(STANDBY, PRIMARY, database, "replication"),
        Flow(PRIMARY, STANDBY, database, "replication, after a failover"),
        Flow(OPS, API, spec.server.port, "health checks"),
        Flow(OPS, PRIMARY, database, "backup, probes, fencing"),
        Flow(OPS, STANDBY, database, "backup, probes, promotion"),
        Flow(OPS, REDIS, redis, "probes, cleanup"),
        *(Flow(OPS, QDRANT, port, "snapshots, probes") for port in vectors),
        Flow(MONITORING, API, spec.server.port, "metrics, probes"),
        Flow(MONITORING, WORKER, WORKER_METRICS_PORT, "metrics"),
        Flow(MONITORING, PRIMARY, POSTGRES_EXPORTER_PORT, "metrics"),
        Flow(MONITORING, STANDBY, POSTGRES_EXPORTER_PORT, "metrics"),
        Flow(MONITORING, REDIS, REDIS_EXPORTER_PORT, "metrics"),
        *(Flow(MONITORING, QDRANT, port, "metrics") for port in vectors),
        Flow(MONITORING, OPS, spec.watch.port or OPS_METRICS_PORT, "metrics"),
    ]
    if has_wal_receiver(spec):
        found += [
            Flow(WAL_RECEIVER, PRIMARY, database, "WAL"),
            Flow(WAL_RECEIVER, STANDBY, database, "WAL, after a failover"),
            Flow(MONITORING, WAL_RECEIVER, WAL_METRICS_PORT, "metrics"),
        ]
    return tuple(found)
