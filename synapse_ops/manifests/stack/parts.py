"""What a stack consists of: its parts, their ports, where each lives, and how the others reach it.

Every target asks here, so that a port or an address is decided once. Three places are rendered: `hosts` (as the spec
says), `compose` (service names) and `kubernetes` (Service names). A store whose `host` is this machine is part of the
stack; any other host is somebody else's server, which is reached and never started.
"""

from __future__ import annotations

import hashlib
import ipaddress
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from synapse_ops.spec import Spec
from synapse_ops.spec.fixed import (
    LOCAL_HOSTS,
    OPS_METRICS_PORT,
    WAL_METRICS_PORT,
    WORKER_METRICS_PORT,
    is_in_compose,
    is_this_machine,
)

PlaceName = Literal["hosts", "compose", "kubernetes"]
Store = Literal["database", "redis", "qdrant"]

API = "api"
API_PODS = "api-pods"  # the API's pods one by one, in the cluster: what is measured must not be balanced
WORKER = "worker"
PRIMARY = "db-primary"
STANDBY = "db-standby"
REDIS = "redis"
QDRANT = "qdrant"
OPS = "synapse-ops"
WAL_RECEIVER = "wal-receiver"

# Ports of what watches, each the one its project registers; spec/fixed.py has those beside the stack's own.
NODE_EXPORTER_PORT = 9100
BLACKBOX_PORT = 9115
PROMETHEUS_PORT = 9090
ALERTMANAGER_PORT = 9093
GRAFANA_PORT = 3000
KIBANA_PORT = 5601
ELASTICSEARCH_PORT = 9200
LOGSTASH_API_PORT = 9600
HTTPS_PORT = 443
# What the API tells Prometheus, and its developers at FastAPI's own paths, but nobody outside. An API whose docs are
# public serves them elsewhere. Health checks pass the entry: `health_base_url` may lead there.
INTERNAL_PATHS = ("/metrics", "/docs", "/redoc", "/openapi.json")

_LONGEST_NAME = 63  # of a Service and of a label's value


class Address(NamedTuple):
    """Where a client connects."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return host:port, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_ours(spec: Spec, store: Store, place: PlaceName) -> bool:
    """Return whether a store is part of the stack at a place, rather than somebody else's server.

    A Qdrant whose nodes are other machines is somebody else's: what is rendered is one server on this machine.
    """
    if place == "kubernetes":
        chosen = getattr(spec.kubernetes.stores, store)
        if chosen != "auto":
            return bool(chosen == "cluster")
    host = getattr(spec, store).host
    if store == "qdrant" and has_qdrant_cluster(spec):
        return False
    return is_in_compose(store, host) if place == "compose" else is_this_machine(host)


def has_wal_receiver(spec: Spec) -> bool:
    """Return whether WAL is streamed into the repository, of whose server ever the database is.

    With `wal_archiving: command` its process runs beside the server, on a host that is not rendered.
    """
    return spec.backup.database.wal_archiving == "continuous"


def object_name(spec: Spec, part: str = "", *, longest: int = _LONGEST_NAME) -> str:
    """Return `<name>-<part>` as a DNS label. A longer one is cut and keeps 8 hex digits of the whole, so that two
    parts never share a name.
    """
    whole = f"{spec.name}-{part}" if part else spec.name
    label = whole.replace(".", "-").replace("_", "-").lower()
    if len(label) <= longest and label == whole:
        return label
    mark = hashlib.sha256(whole.encode("utf-8")).hexdigest()[:8]
    return f"{label[: longest - 9].rstrip('-')}-{mark}" if len(label) > longest else label


def address_of(spec: Spec, part: str, place: PlaceName) -> Address:
    """Return where a part is reached by the others. part: one of the constants of this module."""
    if part == API:
        host, port, ours = spec.server.host, spec.server.port, True
    elif part == WORKER:
        host, port, ours = "localhost", WORKER_METRICS_PORT, True
    elif part == OPS:
        host, port, ours = spec.watch.host, spec.watch.port or OPS_METRICS_PORT, True
    elif part == WAL_RECEIVER:
        host, port, ours = spec.watch.host, WAL_METRICS_PORT, True
    elif part in (PRIMARY, STANDBY):
        host, port, ours = spec.database.host, spec.database.port, is_ours(spec, "database", place)
    elif part == REDIS:
        host, port, ours = spec.redis.host, spec.redis.port, is_ours(spec, "redis", place)
    elif part == QDRANT:
        ours = is_ours(spec, "qdrant", place)
        away = [node for node in qdrant_nodes(spec) if node.host not in LOCAL_HOSTS]
        is_here = ours or place == "hosts" or not away
        host, port = (spec.qdrant.host, spec.qdrant.port) if is_here else away[0]
    else:
        raise ValueError(part)
    if ours and place != "hosts":
        host = part if place == "compose" else object_name(spec, part)
    if part == API and place == "kubernetes":
        port = spec.kubernetes.service.port
    return Address("localhost" if host in ("0.0.0.0", "::") else host, port)  # noqa: S104 - compared, never bound


def has_qdrant_cluster(spec: Spec) -> bool:
    """Tell whether Qdrant's nodes are other machines than this one."""
    return any(authority_of(url).host not in LOCAL_HOSTS for url in spec.qdrant.nodes)


def qdrant_nodes(spec: Spec) -> tuple[Address, ...]:
    """Return where Qdrant's nodes are as the spec says: `qdrant.nodes`, else `qdrant.host`."""
    nodes = tuple(authority_of(url) for url in spec.qdrant.nodes)
    return nodes or (Address(spec.qdrant.host, spec.qdrant.port),)


def qdrant_scheme(spec: Spec, place: PlaceName) -> str:
    """Return http or https, as the URL of the node of `address_of` says, else `qdrant.tls`."""
    for url in spec.qdrant.nodes:
        if authority_of(url) == address_of(spec, QDRANT, place):
            return urlsplit(url).scheme
    return "https" if spec.qdrant.tls else "http"


def authority_of(url: str) -> Address:
    """Return where a URL leads, with the port of its scheme where it names none."""
    found = urlsplit(url)
    return Address(found.hostname or "", found.port or (443 if found.scheme == "https" else 80))


def database_parts(spec: Spec) -> tuple[str, ...]:
    """Return the nodes of the database as parts: the primary, and the standby where there is one."""
    return (PRIMARY, STANDBY)[: len(spec.failover.nodes)]


def volume_parts(spec: Spec) -> tuple[str, ...]:
    """Return the stores that have a volume of their own in the cluster."""
    parts_of: dict[Store, tuple[str, ...]] = {
        "database": database_parts(spec), "redis": (REDIS,), "qdrant": (QDRANT,)
    }  # fmt: skip
    return tuple(part for store, parts in parts_of.items() if is_ours(spec, store, "kubernetes") for part in parts)


def database_nodes(spec: Spec, place: PlaceName) -> tuple[Address, ...]:
    """Return where a client of the database tries to connect, in this order: every node, of which one takes writes.

    Elsewhere it is `database.host` alone, unless that is one of `database.nodes`: a managed server, or what stands in
    front of the nodes, such as a pooler or an address that moves.
    """
    nodes = node_addresses(spec, place)
    host = spec.database.host
    if is_ours(spec, "database", place) or (spec.database.nodes and host in {node.host for node in nodes}):
        return nodes
    return (Address(host, spec.database.port),)


def node_addresses(spec: Spec, place: PlaceName) -> tuple[Address, ...]:
    """Return where each node of the database is, in the order of `failover.nodes`."""
    if place != "hosts" and is_ours(spec, "database", place):
        return tuple(address_of(spec, part, place) for part in database_parts(spec))
    return tuple(_node(spec, node) for node in spec.failover.nodes)


def _node(spec: Spec, node: str) -> Address:
    """Return a node's address as `database.nodes` gives it, else the host of its name on the common port; the primary
    of a database elsewhere is at `database.host`.
    """
    given = spec.database.nodes.get(node)
    if given is None:
        is_at_host = node == spec.failover.primary and not is_this_machine(spec.database.host)
        return Address(spec.database.host if is_at_host else node, spec.database.port)
    host, _, port = given.rpartition(":")
    return Address(host.strip("[]"), int(port))


def is_address(host: str) -> bool:
    """Return whether a host is an IP address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def namespace(spec: Spec) -> str:
    """Return the namespace of every object."""
    return spec.kubernetes.namespace or object_name(spec)


Place = PlaceName
