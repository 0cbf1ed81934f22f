"""What fields must be to one another: combinations that cannot work are refused before anything is started.

Each rule reads a spec whose single fields are valid and yields conflicts. A conflict names every field that it
compared, so that it is left out when one of them has its own fault: its value would be a placeholder.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import combinations
from urllib.parse import urlsplit

from synapse_ops.spec.bounds import times_fit_their_programs
from synapse_ops.spec.conflict import Conflict
from synapse_ops.spec.document import Spec
from synapse_ops.spec.faults import FieldPath
from synapse_ops.spec.fixed import (
    LOCAL_HOSTS,
    LOG_CHAIN,
    MONITORING_USER,
    OPS_METRICS_PORT,
    POSTGRES_EXPORTER_PORT,
    QDRANT_GRPC_PORT,
    REDIS_EXPORTER_PORT,
    WORKER_METRICS_PORT,
    is_in_compose,
    is_stack_database,
    is_this_machine,
)
from synapse_ops.spec.nodes import fencing_password, no_standby, nodes, other_manager
from synapse_ops.spec.units import format_cores, format_duration, format_size

_NEVER_OURS = {"bin", "boot", "dev", "etc", "lib", "lib64", "proc", "root", "sbin", "sys", "usr"}  # nor below them
# how many directories deep a root of ours may begin in the others of a system: /srv/ours, but /var/lib/ours
_OURS_FROM = {"media": 2, "mnt": 2, "opt": 2, "run": 2, "srv": 2, "tmp": 2, "home": 3, "var": 3}
# Of the rendered compose project, where these names are hosts; a store's are there where that store is.
COMPOSE_SERVICES = LOG_CHAIN | frozenset(
    {
        "proxy",
        "api",
        "worker",
        "log-rotation",
        "synapse-ops",
        "prometheus",
        "alertmanager",
        "blackbox-exporter",
        "node-exporter",
    }
    | {"grafana", "wal-receiver"}
)
COMPOSE_STORES: Mapping[str, frozenset[str]] = {
    "database": frozenset({"db-primary", "db-primary-exporter", "db-standby", "db-standby-exporter"}),
    "redis": frozenset({"redis", "redis-exporter"}),
    "qdrant": frozenset({"qdrant"}),
}
_SHORTEST_GRACE = timedelta(minutes=1)  # three heartbeats of 20 s


def find_conflicts(spec: Spec) -> list[Conflict]:
    """Return every conflict, in the order of the rules; empty means that the spec holds together."""
    return [conflict for rule in RULES for conflict in rule(spec)]


def _at_most(
    path: FieldPath, value: float, other: FieldPath, limit: float, write: Callable[..., str] = str
) -> Iterator[Conflict]:
    if value > limit:
        yield Conflict(path, f"{write(value)}, above {{other}} {write(limit)}", "at most {other}", (other,))


def _limits(spec: Spec) -> Iterator[Conflict]:
    """More than there is: `database.pool_size` above `database.max_connections`, `autoscaling.min_replicas` above
    `autoscaling.max_replicas`, `updates.max_unavailable` above the fewest pods, `resources.requests` above
    `resources.limits`.
    """
    database, pods = spec.database, spec.autoscaling
    connections: FieldPath = ("database", "max_connections")
    yield from _at_most(("database", "pool_size"), database.pool_size, connections, database.max_connections)
    fewest, fewest_path = spec.kubernetes.replicas, ("kubernetes", "replicas")
    if pods is not None:
        most: FieldPath = ("autoscaling", "max_replicas")
        yield from _at_most(("autoscaling", "min_replicas"), pods.min_replicas, most, pods.max_replicas)
        fewest, fewest_path = pods.min_replicas, ("autoscaling", "min_replicas")
    yield from _at_most(("updates", "max_unavailable"), spec.updates.max_unavailable, fewest_path, fewest)
    limits, requests = spec.resources.limits, spec.resources.requests
    asked: FieldPath = ("resources", "requests")
    allowed: FieldPath = ("resources", "limits")
    if requests.cpu > limits.cpu:
        yield from _requests_above("cpu", format_cores(requests.cpu), format_cores(limits.cpu), asked, allowed)
    if requests.memory > limits.memory:
        yield from _requests_above("memory", format_size(requests.memory), format_size(limits.memory), asked, allowed)


def _requests_above(key: str, value: str, limit: str, asked: FieldPath, allowed: FieldPath) -> Iterator[Conflict]:
    other = (*allowed, key)
    yield Conflict((*asked, key), f"{value}, above {{other}} {limit}", "at most {other}", (other,))


def _times(spec: Spec) -> Iterator[Conflict]:
    """A time that does not fit into another: `health[].timeout` into its `interval`, `watch.timeout` into
    `watch.interval` and `watch.store_interval`, `updates.timeout` and `proof.timeout` between two windows of their
    schedules, `failover.primary_start_timeout` into `failover.timeout`, and that into `objectives.rto`; a
    `retention.left_over_grace` under a minute, in which a running backup's heartbeat may be late.
    """
    for index, check in enumerate(spec.health):
        yield from _fits(("health", index, "timeout"), check.timeout, ("health", index, "interval"), check.interval)
    for key in ("interval", "store_interval"):
        yield from _fits(("watch", "timeout"), spec.watch.timeout, ("watch", key), getattr(spec.watch, key))
    failover, rto = spec.failover, spec.objectives.rto
    yield from _fits(("failover", "timeout"), failover.timeout, ("objectives", "rto"), rto)
    start: FieldPath = ("failover", "primary_start_timeout")
    yield from _fits(start, failover.primary_start_timeout, ("failover", "timeout"), failover.timeout)
    for block in ("updates", "proof"):
        timeout, schedule = getattr(spec, block).timeout, getattr(spec, block).schedule
        window = schedule.shortest_gap()
        if timeout > window:
            found = f"{format_duration(timeout)}, longer than the {format_duration(window)} between two windows"
            yield Conflict((block, "timeout"), found, "at most the time to the next window", ((block, "schedule"),))
    if spec.retention.left_over_grace < _SHORTEST_GRACE:
        found = f"{format_duration(spec.retention.left_over_grace)}, in which a running backup's heartbeat may be late"
        yield Conflict(("retention", "left_over_grace"), found, f"at least {format_duration(_SHORTEST_GRACE)}")


def _fits(path: FieldPath, value: timedelta, other: FieldPath, limit: timedelta) -> Iterator[Conflict]:
    if value > limit:
        found = f"{format_duration(value)}, longer than {{other}} {format_duration(limit)}"
        yield Conflict(path, found, "at most {other}", (other,))


def _ports(spec: Spec) -> Iterator[Conflict]:
    """One port for two services of one host: `server`, `database`, `redis`, `qdrant`, `logging.beats_port`.
    `localhost`, `127.0.0.1`, `0.0.0.0` and their IPv6 forms are one host. Nor one that a part's companion has in the
    same container or pod: exporters of `database` and `redis`, gRPC of `qdrant`; or the worker's and the prober's
    metrics beside `server`.
    """
    metrics = spec.watch.port or OPS_METRICS_PORT
    for path, port, taken, by in (
        (("database", "port"), spec.database.port, POSTGRES_EXPORTER_PORT, "the exporter beside it"),
        (("redis", "port"), spec.redis.port, REDIS_EXPORTER_PORT, "the exporter beside it"),
        (("qdrant", "port"), spec.qdrant.port, QDRANT_GRPC_PORT, "its own gRPC"),
        (("server", "port"), spec.server.port, WORKER_METRICS_PORT, "the worker's metrics"),
        (("server", "port"), spec.server.port, metrics, "the metrics of `watch`"),
        (("watch", "port"), metrics, WORKER_METRICS_PORT, "the worker's metrics"),
    ):
        if port == taken:
            yield Conflict(path, f"{port}, which {by} has", "another port")
    listening = [
        (("server", "port"), spec.server.host, spec.server.port),
        (("database", "port"), spec.database.host, spec.database.port),
        (("redis", "port"), spec.redis.host, spec.redis.port),
        (("qdrant", "port"), spec.qdrant.host, spec.qdrant.port),
        *([(("logging", "beats_port"), "localhost", spec.logging.beats_port)] if spec.logging.is_shipped else []),
    ]
    for (path, host, port), (later_path, later_host, later_port) in combinations(listening, 2):
        same_host = host == later_host or {host, later_host} <= LOCAL_HOSTS
        if same_host and port == later_port and not host.startswith("/"):
            found = f"{later_port}, which is {{other}} on the same host"
            yield Conflict(later_path, found, "another port", (path, (*path[:-1], "host")))


def _database_names(spec: Spec) -> Iterator[Conflict]:
    """Names in `database` that PostgreSQL keeps for itself or that another role of the stack has, where the database is
    part of the stack: its first start would fail half way.
    """
    database = spec.database
    if not is_stack_database(database.host, spec.kubernetes.stores.database):
        return
    for key, role in (("user", database.user), ("replication_user", database.replication_user)):
        if role.startswith("pg_") or role in (MONITORING_USER, "postgres", "none", "public"):
            yield Conflict(("database", key), f'"{role}", which is not yours to name', "another role")
    if database.user == database.replication_user:
        path: FieldPath = ("database", "replication_user")
        yield Conflict(path, f'"{database.user}", which is {{other}}', "another role", (("database", "user"),))
    names: list[tuple[FieldPath, str]] = [(("database", "name"), database.name)]
    names += [(("database", "databases", i), name) for i, name in enumerate(database.databases)]
    for path, name in names:
        if name in ("template0", "template1"):
            yield Conflict(path, f'"{name}", which new databases are made from', "another database name")


def _firewall(spec: Spec) -> Iterator[Conflict]:
    """`firewall.inbound` rules of one port whose networks overlap: the author of the narrow one believes that the
    wide one is not there.
    """
    rules = [(rule.port, ipaddress.ip_network(rule.source)) for rule in spec.firewall.inbound]
    for (i, (port, network)), (j, (later_port, later)) in combinations(enumerate(rules), 2):
        if port != later_port or network.version != later.version:
            continue
        path: FieldPath = ("firewall", "inbound", j)
        other: FieldPath = ("firewall", "inbound", i)
        if network == later:
            yield Conflict(path, f"port {port} from {later} again, as in {{other}}", "each rule once", (other,))
        elif network.overlaps(later):
            found = f"port {port} from {later}, which overlaps {network} in {{other}}"
            yield Conflict(path, found, "rules of one port that do not overlap; the wider one would win", (other,))


def _unique(path: FieldPath, values: Sequence[Hashable], what: str, key: str | None = None) -> Iterator[Conflict]:
    first: dict[Hashable, int] = {}
    for index, value in enumerate(values):
        here: FieldPath = (*path, index) if key is None else (*path, index, key)
        if value in first:
            other: FieldPath = (*path, first[value]) if key is None else (*path, first[value], key)
            yield Conflict(here, f'"{value}" again, as in {{other}}', f"each {what} once", (other,))
        first.setdefault(value, index)


def _names(spec: Spec) -> Iterator[Conflict]:
    """The same thing twice in a list: names in `health`, `alerts` and `firewall.egress`, `watch.servers`, databases,
    dashboards, nodes, hosts of the entry, log files, recipients, cache patterns, pairs of `vectors.sources`.
    """
    yield from _unique(("health",), [check.name for check in spec.health], "name", "name")
    yield from _unique(("alerts",), [alert.name for alert in spec.alerts], "name", "name")
    yield from _unique(("firewall", "egress"), [each.name for each in spec.firewall.egress], "name", "name")
    yield from _unique(("watch", "servers"), spec.watch.servers, "server")
    yield from _unique(("database", "databases"), spec.database.databases, "database")
    yield from _unique(("qdrant", "nodes"), [url.rstrip("/") for url in spec.qdrant.nodes], "node")
    yield from _unique(("grafana", "dashboards"), spec.grafana.dashboards, "dashboard")
    yield from _unique(("logging", "elasticsearch"), spec.logging.elasticsearch, "node")
    yield from _unique(("kubernetes", "entry", "hosts"), spec.kubernetes.entry.hosts, "host")
    yield from _unique(("logging", "paths"), spec.logging.paths, "path")
    yield from _unique(("encryption", "recipients"), spec.encryption.recipients, "recipient")
    yield from _unique(("cleanup", "cache_patterns"), spec.cleanup.cache_patterns, "pattern")
    pairs = [f"{source.table} -> {source.collection}" for source in spec.vectors.sources]
    yield from _unique(("vectors", "sources"), pairs, "pair of table and collection")


def _vector_nodes(spec: Spec) -> Iterator[Conflict]:
    """A node in `qdrant.nodes` by http:// where `qdrant.tls` is on and there is a `qdrant.api_key`: the key would be
    sent in the clear.
    """
    qdrant = spec.qdrant
    for index, url in enumerate(qdrant.nodes):
        if qdrant.tls and qdrant.api_key is not None and not url.startswith("https://"):
            found = f'"{url}" without TLS, where {{other}} is true and an api key is sent'
            yield Conflict(("qdrant", "nodes", index), found, "https://", (("qdrant", "tls"), ("qdrant", "api_key")))


def _destinations(spec: Spec) -> Iterator[Conflict]:
    """Destinations of `backup.database`, `backup.vectors` and `backup.redis` that are equal or within one another."""
    kinds = ("database", "vectors") if spec.backup.redis is None else ("database", "vectors", "redis")
    places = [(("backup", kind, "destination"), getattr(spec.backup, kind).destination) for kind in kinds]
    for (other, first), (path, later) in combinations(places, 2):
        if later.startswith(first) or first.startswith(later):
            yield Conflict(
                path, f'"{later}", which overlaps {{other}} "{first}"', "a prefix that overlaps no other", (other,)
            )


def _redis_state(spec: Spec) -> Iterator[Conflict]:
    """A pattern in `cleanup.cache_patterns` that is nothing but `*` where `backup.redis` is on: what is backed up
    because it is not a cache would be removed once it is idle for a while.
    """
    for index, pattern in enumerate(spec.cleanup.cache_patterns):
        if spec.backup.redis is not None and not pattern.strip("*"):
            found = f'"{pattern}", which removes every idle key, where {{other}} keeps what is in Redis'
            path: FieldPath = ("cleanup", "cache_patterns", index)
            yield Conflict(path, found, "patterns of the cache alone, such as cache:*", (("backup", "redis"),))


def _cleanup_roots(spec: Spec) -> Iterator[Conflict]:
    """Directories in `cleanup.log_roots` and `cleanup.temp_roots` that belong to the system or to others (`/`, `/tmp`,
    `/var/lib`, `/home/alice`, whatever is below `/etc`), hold `..`, or lie within one another.
    """
    roots: list[tuple[FieldPath, str]] = [
        (("cleanup", "log_roots", i), root) for i, root in enumerate(spec.cleanup.log_roots)
    ]
    roots += [(("cleanup", "temp_roots", i), root) for i, root in enumerate(spec.cleanup.temp_roots)]
    for path, root in roots:
        if not _may_be_ours(root):
            yield Conflict(path, f'"{root}"', "a directory that belongs to this stack alone, without ..")
    for (path, root), (later_path, later) in combinations(roots, 2):
        outer, inner = sorted((f"{root.rstrip('/')}/", f"{later.rstrip('/')}/"), key=len)
        if inner.startswith(outer) and outer != "/":
            found = f'"{later}", which overlaps {{other}} "{root}"'
            yield Conflict(later_path, found, "directories that do not contain one another", (path,))


def _may_be_ours(directory: str) -> bool:
    parts = [part for part in directory.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or parts[0] in _NEVER_OURS:
        return False
    return len(parts) >= _OURS_FROM.get(parts[0], 1)


def _log_paths(spec: Spec) -> Iterator[Conflict]:
    """A pattern with braces in `logging.paths`: neither Filebeat nor logrotate knows them."""
    for index, path in enumerate(spec.logging.paths):
        if set(path) & set("{}"):
            yield Conflict(("logging", "paths", index), f"'{path}'", "one path for each, with * ? [ ] at most")


def _stores_elsewhere(spec: Spec) -> Iterator[Conflict]:
    """`kubernetes.stores` says that a store is elsewhere, and its `host` is this machine, which no pod reaches."""
    for name in ("database", "redis", "qdrant"):
        host = getattr(spec, name).host
        if (
            getattr(spec.kubernetes.stores, name) == "elsewhere"
            and is_this_machine(host)
            and not (name == "qdrant" and spec.qdrant.nodes)
        ):
            other: FieldPath = (name, "host")
            found = f"elsewhere, and {{other}} is {host}, which is each pod itself"
            yield Conflict(
                ("kubernetes", "stores", name), found, "auto or cluster, or a host that pods reach", (other,)
            )


def _namespaces(spec: Spec) -> Iterator[Conflict]:
    """`kubernetes.namespace`, or `name` in its place, that is `default` or Kubernetes' own (`kube-...`), or where the
    monitoring or the entry's controller runs: everything in it that is not ours would be cut off from the network.
    """
    kubernetes = spec.kubernetes
    path: FieldPath = ("kubernetes", "namespace") if kubernetes.namespace else ("name",)
    found = kubernetes.namespace or spec.name
    if found == "default" or found.startswith("kube-"):
        yield Conflict(path, f'"{found}", where others run', "a namespace that belongs to this stack alone")
    others: list[tuple[FieldPath, str]] = [(("kubernetes", "monitoring_namespace"), kubernetes.monitoring_namespace)]
    if kubernetes.entry.kind != "none":
        others.append((("kubernetes", "entry", "controller_namespace"), kubernetes.entry.controller_namespace))
    for where, other in others:
        if found == other:
            yield Conflict(where, f'"{other}", which is {{other}}', "another namespace than the stack's", (path,))


def _log_nodes(spec: Spec) -> Iterator[Conflict]:
    """Nodes in `logging.elasticsearch` of which some are https:// and some are not, or an `logging.api_key` for one
    that is not: Logstash takes one scheme for all, and sends no key in the clear.
    """
    nodes = spec.logging.elasticsearch
    secure = [node.startswith("https://") for node in nodes]
    for index, node in enumerate(nodes):
        path: FieldPath = ("logging", "elasticsearch", index)
        if not secure[index] and any(secure):
            other: FieldPath = ("logging", "elasticsearch", secure.index(True))
            yield Conflict(path, f'"{node}" without https://, beside {{other}}', "one scheme for all nodes", (other,))
        elif not secure[index] and spec.logging.api_key is not None:
            yield Conflict(path, f'"{node}" without https://', "https:// beside {other}", (("logging", "api_key"),))


def _compose_names(spec: Spec) -> Iterator[Conflict]:
    """The host of a store elsewhere (`database.host`, `redis.host`, `qdrant.host`, `qdrant.nodes`,
    `object_store.endpoint`) that is also a service's name in the rendered compose project, such as `api`: containers
    would reach that service. So would they with a node's name in `failover`, unless it is that of its own service.
    """
    stores = {store: getattr(spec, store).host for store in COMPOSE_STORES}
    hosts: list[tuple[FieldPath, str]] = [
        ((store, "host"), host) for store, host in stores.items() if not is_in_compose(store, host)
    ]
    hosts += [(("qdrant", "nodes", i), urlsplit(url).hostname or "") for i, url in enumerate(spec.qdrant.nodes)]
    hosts.append((("object_store", "endpoint"), urlsplit(spec.object_store.endpoint or "").hostname or ""))
    taken = COMPOSE_SERVICES.union(
        *(names for store, names in COMPOSE_STORES.items() if is_in_compose(store, stores[store]))
    )
    if spec.failover.standby is None:
        taken -= {"db-standby", "db-standby-exporter"}
    if not spec.logging.is_shipped:
        taken -= LOG_CHAIN
    for node, name, own in zip(("primary", "standby"), spec.failover.nodes, ("db-primary", "db-standby"), strict=False):
        hosts += [(("failover", node), name)] if name != own else []
    for path, host in hosts:
        if host in taken:
            yield Conflict(path, f'"{host}", which is a service of the rendered compose project', "another host name")


def _synchronous(spec: Spec) -> Iterator[Conflict]:
    """The WAL receiver sets for whom commits wait: it does not run unless `backup.database.wal_archiving` is
    continuous.
    """
    archiving: FieldPath = ("backup", "database", "wal_archiving")
    found = spec.backup.database.wal_archiving
    if found == "continuous":
        return
    if spec.failover.synchronous != "off":
        path: FieldPath = ("failover", "synchronous")
        yield Conflict(path, f'"{spec.failover.synchronous}", with {{other}} {found}', '"off"', (archiving,))
    if spec.backup.database.wal.synchronous:
        yield Conflict(
            ("backup", "database", "wal", "synchronous"), f"true, with {{other}} {found}", "false", (archiving,)
        )


def _summaries(spec: Spec) -> Iterator[Conflict]:
    """A rendered server older than PostgreSQL 17 would not start with the setting that `full_every` needs."""
    image: FieldPath = ("docker", "images", "postgres")
    major = re.search(r":(\d+)[^:/]*$", spec.docker.images.postgres.partition("@")[0])
    if spec.backup.database.base.full_every is not None and major is not None and int(major[1]) < 17:
        path: FieldPath = ("backup", "database", "base", "full_every")
        yield Conflict(path, f"a time, and {{other}} is PostgreSQL {major[1]}", "null before PostgreSQL 17", (image,))


RULES: tuple[Callable[[Spec], Iterator[Conflict]], ...] = (
    _limits,
    _times,
    times_fit_their_programs,
    nodes,
    no_standby,
    other_manager,
    _ports,
    _database_names,
    _firewall,
    _names,
    _vector_nodes,
    _destinations,
    _redis_state,
    _cleanup_roots,
    _stores_elsewhere,
    fencing_password,
    _log_paths,
    _compose_names,
    _synchronous,
    _summaries,
    _namespaces,
    _log_nodes,
)
