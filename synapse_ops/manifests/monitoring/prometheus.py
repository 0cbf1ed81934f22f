"""Renders prometheus.yml: what is scraped, how often, which rules are evaluated, and where alerts go.

Three places, the same jobs: `hosts` with the addresses of the spec, `compose` with service names, `kubernetes` with
those of Services, whole enough for a Prometheus of any namespace. Targets are static, so that the file alone says what
is watched; `prometheus.targets` replaces those of a job. Only the pods of the API and of the worker come and go: they
are found by the names of their headless Services, which asks DNS and no right in the cluster. The exporter of a whole
node and the blackbox exporter belong to compose and hosts; a cluster has its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from synapse_ops.manifests.document import Document, yaml_document
from synapse_ops.manifests.monitoring.alert_catalog import HEARTBEAT
from synapse_ops.manifests.stack import parts
from synapse_ops.manifests.stack.parts import Address, Place, address_of, namespace, object_name
from synapse_ops.manifests.stack.secret_files import SECRETS_DIR, secret_file
from synapse_ops.spec import Spec, fixed
from synapse_ops.spec.blocks.monitoring import HealthCheck
from synapse_ops.spec.units import format_duration

PATHS: dict[Place, str] = {
    "hosts": "prometheus/prometheus.yml",
    "compose": "prometheus/prometheus.compose.yml",
    "kubernetes": "prometheus/prometheus.kubernetes.yml",
}
_BY_POD = frozenset({"api", "worker"})
BLACKBOX_PATH = "prometheus/blackbox.yml"
READS = frozenset(
    {
        "alerting", "backup", "database", "failover", "health", "health_base_url", "kubernetes", "name", "prometheus",
        "qdrant", "redis", "server", "watch",
    }
)  # fmt: skip
_LONGEST_SCRAPE = timedelta(seconds=10)


def render_prometheus(spec: Spec) -> tuple[Document, ...]:
    return (
        *(yaml_document(PATHS[place], prometheus_yml(spec, place), reads=READS) for place in PATHS),
        yaml_document(BLACKBOX_PATH, _blackbox(spec), reads=frozenset(["health"])),
    )


def prometheus_yml(spec: Spec, place: Place) -> dict[str, object]:
    """Return the file's content for a place."""
    settings = spec.prometheus
    told = scraped_addresses(spec, "alertmanager", place)
    return {
        "global": {
            "scrape_interval": format_duration(settings.scrape_interval),
            "scrape_timeout": format_duration(min(settings.scrape_interval, _LONGEST_SCRAPE)),
            "evaluation_interval": format_duration(settings.evaluation_interval),
            "external_labels": {"stack": spec.name},
        },
        "rule_files": ["rules/*.yml"],
        "alerting": {
            "alert_relabel_configs": _told_to_nobody(spec),
            "alertmanagers": [{"static_configs": [{"targets": told}]}] if told else [],
        },
        "scrape_configs": [
            *_jobs(spec, place),
            *(_health_job(spec, check, place) for check in spec.health if scraped_addresses(spec, "blackbox", place)),
        ],
    }


def _told_to_nobody(spec: Spec) -> list[dict[str, object]]:
    """Return what keeps alerts here that nobody is to be told of; they still show as firing."""
    rules: list[dict[str, object]] = [{"source_labels": ["action"], "regex": "none", "action": "drop"}]
    if spec.alerting.heartbeat_url is None:
        rules.append({"source_labels": ["alertname"], "regex": HEARTBEAT, "action": "drop"})
    return rules


def _jobs(spec: Spec, place: Place) -> Iterator[dict[str, object]]:
    for job in ("api", "worker", "db", "redis", "qdrant", "node", "synapse_ops", "wal", "prometheus", "alertmanager"):
        targets = scraped_addresses(spec, job, place)
        settings: dict[str, object] = {"job_name": job}
        if job == "qdrant":
            settings |= _qdrant_access(spec, place)
        if targets and place == "kubernetes" and job in _BY_POD:
            yield settings | {"dns_sd_configs": [found for target in targets for found in _by_name(target)]}
        elif targets:
            yield settings | {"static_configs": _static(spec, job, targets)}


def _static(spec: Spec, job: str, targets: list[str]) -> list[dict[str, object]]:
    """Return the targets of a job. It has one scheme: where nodes of Qdrant differ in it, those without TLS say so."""
    plain = {str(parts.authority_of(url)) for url in spec.qdrant.nodes if url.startswith("http:")}
    if job != "qdrant" or not plain or plain.issuperset(targets):
        return [{"targets": targets}]
    secure = [target for target in targets if target not in plain]
    others = [target for target in targets if target in plain]
    unsecured: list[dict[str, object]] = [{"targets": others, "labels": {"__scheme__": "http"}}] if others else []
    return [{"targets": secure}, *unsecured]


def _by_name(target: str) -> list[dict[str, object]]:
    """Return the look-ups of a headless Service. It has addresses of one family: that of the cluster."""
    address = _split(target)
    return [{"names": [address.host], "type": family, "port": address.port} for family in ("A", "AAAA")]


def scraped_addresses(spec: Spec, job: str, place: Place) -> list[str]:
    """Return the addresses of a job's targets; empty where there are none. `prometheus.targets` holds on hosts."""
    chosen = {str(name): addresses for name, addresses in spec.prometheus.targets.items()}.get(job)
    if chosen is not None and place == "hosts":
        return list(chosen)
    if job == "wal":
        return [str(wal_receiver_address(spec, place))] if parts.has_wal_receiver(spec) else []
    return [str(address) for address in _FINDERS[place](spec, job)]


def prober_address(spec: Spec, place: Place) -> Address:
    """Return where the prober serves its metrics and takes alerts, whatever `prometheus.targets` says."""
    port = spec.watch.port or fixed.OPS_METRICS_PORT
    if place == "kubernetes":
        return _service(spec, parts.OPS, port)
    return Address(_host(spec.watch.host) if place == "hosts" else parts.OPS, port)


def wal_receiver_address(spec: Spec, place: Place) -> Address:
    """Return where the WAL receiver serves its metrics."""
    if place == "kubernetes":
        return _service(spec, parts.WAL_RECEIVER, fixed.WAL_METRICS_PORT)
    return address_of(spec, parts.WAL_RECEIVER, place)


def _service(spec: Spec, name: str, port: int) -> Address:
    """Return a Service's address with its namespace: whoever asks may be in another."""
    return Address(f"{object_name(spec, name)}.{namespace(spec)}.svc", port)


def _in_compose(spec: Spec, job: str) -> list[Address]:
    """Return the service names. An exporter shares the network of its store: one that is not ours has none."""
    if job == "db":
        ours = parts.is_ours(spec, "database", "compose")
        return [Address(node, fixed.POSTGRES_EXPORTER_PORT) for node in parts.database_parts(spec) if ours]
    if job == "redis":
        ours = parts.is_ours(spec, "redis", "compose")
        return [Address(parts.REDIS, fixed.REDIS_EXPORTER_PORT)] if ours else []
    if job == "qdrant" and not parts.is_ours(spec, "qdrant", "compose"):
        return _qdrant_nodes(spec)
    services = {"api": parts.API, "worker": parts.WORKER, "qdrant": parts.QDRANT}
    if job in services:
        return [address_of(spec, services[job], "compose")]
    if job == "synapse_ops":
        return [prober_address(spec, "compose")]
    return [_WATCHERS_IN_COMPOSE[job]]


def _on_hosts(spec: Spec, job: str) -> list[Address]:
    """Return where a job finds its targets by what the spec says elsewhere; exporters run beside what they export.

    Beside a database elsewhere that has no standby there are none: it is a managed one, or `prometheus.targets` names
    its exporters.
    """
    nodes = [_host(spec.database.host)]
    if spec.database.nodes:
        nodes = [node.host for node in parts.node_addresses(spec, "hosts")]
    if spec.failover.standby is None and not fixed.is_this_machine(spec.database.host):
        nodes = []
    redis, qdrant = _host(spec.redis.host), _qdrant_nodes(spec)
    if job == "api":
        return [_api_on_hosts(spec)]
    if job == "db":
        return [Address(host, fixed.POSTGRES_EXPORTER_PORT) for host in dict.fromkeys(nodes)]
    if job == "redis":
        return [Address(redis, fixed.REDIS_EXPORTER_PORT)]
    if job == "qdrant":
        return qdrant
    if job == "node":
        hosts = ["localhost", *nodes, redis, *(_host(address.host) for address in qdrant)]
        return [Address(host, parts.NODE_EXPORTER_PORT) for host in dict.fromkeys(hosts)]
    if job == "synapse_ops":
        return [prober_address(spec, "hosts")]
    return [_WATCHERS_ON_HOSTS[job]]


def _in_cluster(spec: Spec, job: str) -> list[Address]:
    """Return the names of Services."""
    if job == "api":
        return [_service(spec, parts.API_PODS, spec.server.port)]
    if job == "worker":
        return [_service(spec, parts.WORKER, fixed.WORKER_METRICS_PORT)]
    if job == "db":
        ours = parts.is_ours(spec, "database", "kubernetes")
        return [_service(spec, node, fixed.POSTGRES_EXPORTER_PORT) for node in parts.database_parts(spec) if ours]
    if job == "redis":
        ours = parts.is_ours(spec, "redis", "kubernetes")
        return [_service(spec, parts.REDIS, fixed.REDIS_EXPORTER_PORT)] if ours else []
    if job == "qdrant":
        ours = parts.is_ours(spec, "qdrant", "kubernetes")
        return [_service(spec, parts.QDRANT, spec.qdrant.port)] if ours else _qdrant_nodes(spec)
    if job == "node":  # beside each store, for the space on its volume; the nodes have exporters of the cluster's own
        return [_service(spec, part, parts.NODE_EXPORTER_PORT) for part in parts.volume_parts(spec)]
    if job == "synapse_ops":
        return [prober_address(spec, "kubernetes")]
    if job == "alertmanager":
        return [Address(f"alertmanager.{spec.kubernetes.monitoring_namespace}.svc", parts.ALERTMANAGER_PORT)]
    return [Address("localhost", parts.PROMETHEUS_PORT)] if job == "prometheus" else []


_FINDERS = {"hosts": _on_hosts, "compose": _in_compose, "kubernetes": _in_cluster}
_WATCHERS_ON_HOSTS = {
    "worker": Address("localhost", fixed.WORKER_METRICS_PORT),
    "prometheus": Address("localhost", parts.PROMETHEUS_PORT),
    "alertmanager": Address("localhost", parts.ALERTMANAGER_PORT),
    "blackbox": Address("localhost", parts.BLACKBOX_PORT),
}
_WATCHERS_IN_COMPOSE = {
    "node": Address("node-exporter", parts.NODE_EXPORTER_PORT),
    "prometheus": Address("localhost", parts.PROMETHEUS_PORT),
    "alertmanager": Address("alertmanager", parts.ALERTMANAGER_PORT),
    "blackbox": Address("blackbox-exporter", parts.BLACKBOX_PORT),
}


def _qdrant_nodes(spec: Spec) -> list[Address]:
    return [*parts.qdrant_nodes(spec)] if spec.qdrant.nodes else [address_of(spec, parts.QDRANT, "hosts")]


def _host(host: str) -> str:
    """Return where something runs: a loopback address, a wildcard or a socket's directory is this machine."""
    return "localhost" if fixed.is_this_machine(host) else host


def _base(spec: Spec) -> str:
    """Return the URL below which relative health paths lie, without a slash at its end."""
    if spec.health_base_url is not None:
        return spec.health_base_url.rstrip("/")
    return f"http://{address_of(spec, parts.API, 'hosts')}"


def _api_on_hosts(spec: Spec) -> Address:
    """Return where the API itself is: a proxy in front of it, at the ports of HTTP and HTTPS, refuses /metrics."""
    base = parts.authority_of(_base(spec))
    is_proxy = base.port in (80, parts.HTTPS_PORT)
    return Address(base.host, spec.server.port) if is_proxy else base


def _split(address: str) -> Address:
    """Return host and port of `host:port`, without an IPv6 address's brackets."""
    host, _, port = address.rpartition(":")
    return Address(host.strip("[]"), int(port))


def _qdrant_access(spec: Spec, place: Place) -> dict[str, object]:
    qdrant, access = spec.qdrant, dict[str, object]()
    urls = qdrant.nodes or (f"{'https' if qdrant.tls else 'http'}://",)
    if any(url.startswith("https:") for url in urls):
        access["scheme"] = "https"
        is_stack_s = place != "hosts" and parts.is_ours(spec, "qdrant", place)
        ca_file = f"{SECRETS_DIR}/ca.crt" if is_stack_s else qdrant.ca_file
        if ca_file is not None:
            access["tls_config"] = {"ca_file": ca_file}
    if qdrant.api_key is not None:
        path = secret_file(qdrant.api_key, "qdrant-api-key", place)
        access["authorization"] = {"type": "Bearer", "credentials_file": path}
    return access


def _health_job(spec: Spec, check: HealthCheck, place: Place) -> dict[str, object]:
    """Return the job that has the blackbox exporter ask one `health` entry, at its own interval and time limit."""
    base = _base(spec) if place == "hosts" else f"http://{address_of(spec, parts.API, place)}"
    exporter = scraped_addresses(spec, "blackbox", place)[0]
    return {
        "job_name": f"health_{check.name}",
        "scrape_interval": format_duration(check.interval),
        "scrape_timeout": format_duration(check.timeout),
        "metrics_path": "/probe",
        "params": {"module": ["http_2xx"]},
        "static_configs": [
            {
                "targets": [check.url if "://" in check.url else f"{base}{check.url}"],
                "labels": {"check": check.name},
            }
        ],
        "relabel_configs": [
            {"source_labels": ["__address__"], "target_label": "__param_target"},
            {"source_labels": ["__param_target"], "target_label": "instance"},
            {"target_label": "__address__", "replacement": exporter},
        ],
    }


def _blackbox(spec: Spec) -> dict[str, object]:
    """Return the exporter's file. Its own limit is the longest; the shorter one of a job comes with each scrape."""
    longest = max((check.timeout for check in spec.health), default=timedelta(seconds=5))
    return {
        "modules": {
            "http_2xx": {
                "prober": "http",
                "timeout": format_duration(longest),
                "http": {"follow_redirects": False, "preferred_ip_protocol": "ip4"},
            }
        }
    }
