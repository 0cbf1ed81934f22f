"""What a valid spec can still cause in its documents: the rules that judge a bundle wherever it is rendered.

An error stops the rendering, a note is shown. That the renderers agree with one another holds for every spec: the tests
below tests/manifests/consistency prove it, so nothing here reads rendered bytes to find one value in two places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from synapse_ops.manifests.bundle import Bundle
from synapse_ops.manifests.servers.tls import HTTP_PORT
from synapse_ops.manifests.stack import parts
from synapse_ops.manifests.stack.prober import prober_spec
from synapse_ops.manifests.stack.processes import application_processes
from synapse_ops.spec import Spec, fixed
from synapse_ops.spec.secrets import holds_literal_secret


@dataclass(frozen=True, slots=True)
class Finding:
    """rule: the function that found it. An error stops a release, a note is shown."""

    rule: str
    path: str
    message: str
    severity: Literal["error", "note"] = "error"


Rule = Callable[[Bundle, Spec], Iterator[Finding]]

_PORTS_OF_A_HOST = {
    HTTP_PORT: "the proxy",
    parts.HTTPS_PORT: "the proxy",
    fixed.WORKER_METRICS_PORT: "the worker's metrics",
    parts.NODE_EXPORTER_PORT: "the node exporter",
    parts.BLACKBOX_PORT: "the blackbox exporter",
    parts.PROMETHEUS_PORT: "Prometheus",
    parts.ALERTMANAGER_PORT: "Alertmanager",
    parts.GRAFANA_PORT: "Grafana",
}


def check_consistency(bundle: Bundle, spec: Spec) -> tuple[Finding, ...]:
    """Return every finding, in the order of the rules; no error among them means that the bundle may be used."""
    return tuple(finding for rule in RULES for finding in rule(bundle, spec))


def no_document_holds_a_secret(bundle: Bundle, _: Spec) -> Iterator[Finding]:
    """No line of a document looks like a password, a key or a token."""
    for document in bundle.documents:
        for number in _lines_like_a_secret(document.text):
            yield Finding("no_document_holds_a_secret", str(document.path), f"line {number} looks like a secret")


@lru_cache(maxsize=256)  # a bundle is checked when it is rendered and when it is released: the same texts
def _lines_like_a_secret(text: str) -> tuple[int, ...]:
    lines = enumerate(text.splitlines(), start=1)
    return tuple(number for number, line in lines if holds_literal_secret(line) and not _is_a_command(line))


def _is_a_command(line: str) -> bool:
    """`requirepass "$(cat FILE)"` and psql's :'variable' name where a secret is read from."""
    return "$(cat " in line or "$$(cat " in line


def connections_fit(_: Bundle, spec: Spec) -> Iterator[Finding]:
    """All processes' pools together stay below `database.max_connections`; else some wait at full load."""
    processes = application_processes(spec)
    wanted = processes * spec.database.pool_size
    if wanted > spec.database.max_connections:
        message = (
            f"{processes} processes with database.pool_size {spec.database.pool_size} may want {wanted} connections, "
            f"database.max_connections is {spec.database.max_connections}"
        )
        yield Finding("connections_fit", "kubernetes/41-api.yaml", message, "note")


def the_firewall_opens_the_service(_: Bundle, spec: Spec) -> Iterator[Finding]:
    """Where the Service takes connections from outside of the cluster, `firewall.inbound` opens its port."""
    service = spec.kubernetes.service
    if service.type != "ClusterIP" and all(each.port != service.port for each in spec.firewall.inbound):
        message = f"firewall.inbound does not open port {service.port}: the Service cannot be reached from outside"
        yield Finding("the_firewall_opens_the_service", "kubernetes/20-network.yaml", message, "note")


def the_way_in_is_one_and_encrypted(_: Bundle, spec: Spec) -> Iterator[Finding]:
    """Requests come by the entry, over TLS with the stack's certificate, and past no other way."""
    service, entry = spec.kubernetes.service, spec.kubernetes.entry
    if service.type != "ClusterIP":
        beside = "" if entry.kind == "none" else f", beside the {entry.kind}"
        message = f"kubernetes.service.type is {service.type}: without TLS{beside}, and anyone there may read /metrics"
        yield Finding("the_way_in_is_one_and_encrypted", "kubernetes/41-api.yaml", message, "note")
    if entry.kind == "ingress" and not entry.hosts:
        message = "kubernetes.entry.hosts is empty: ingress-nginx and others serve a certificate of their own"
        yield Finding("the_way_in_is_one_and_encrypted", "kubernetes/50-entry.yaml", message, "note")


def somebody_is_told(_: Bundle, spec: Spec) -> Iterator[Finding]:
    """Alerts reach somebody who is not looking at this tool's own pages."""
    told = spec.alerting
    if not any((told.webhook_url, told.mail, told.slack, told.pagerduty)):
        message = "no alert leaves this tool: set alerting.mail, slack, pagerduty or webhook_url"
        yield Finding("somebody_is_told", "alertmanager/alertmanager.yml", message, "note")


def ports_of_a_host_differ(_: Bundle, spec: Spec) -> Iterator[Finding]:
    """On a host without containers each port is one program's: of the spec, of its companions, of those that watch."""
    taken = dict(_PORTS_OF_A_HOST)
    ports = {"server.port": spec.server.port}
    if spec.logging.is_shipped:
        ports["logging.beats_port"] = spec.logging.beats_port
        taken[parts.LOGSTASH_API_PORT] = "Logstash's own API"
    companions = {
        "database": (fixed.POSTGRES_EXPORTER_PORT, "the exporter of PostgreSQL"),
        "redis": (fixed.REDIS_EXPORTER_PORT, "the exporter of Redis"),
        "qdrant": (fixed.QDRANT_GRPC_PORT, "Qdrant's gRPC"),
    }
    for store, (port, what) in companions.items():
        settings = getattr(spec, store)
        if fixed.is_this_machine(settings.host):
            ports[f"{store}.port"] = settings.port
            taken[port] = what
    if spec.watch.port is None:
        taken[fixed.OPS_METRICS_PORT] = "the prober"
    else:
        ports["watch.port"] = spec.watch.port
    if parts.has_wal_receiver(spec):
        taken[fixed.WAL_METRICS_PORT] = "the WAL receiver"
    for field, port in ports.items():
        if port in taken:
            message = (
                f"{field} {port} is that of {taken[port]}: on one host without containers one of them cannot start"
            )
            yield Finding("ports_of_a_host_differ", "prometheus/prometheus.yml", message, "note")


def the_prober_asks_other_hosts(_: Bundle, spec: Spec) -> Iterator[Finding]:
    """In a container the prober asks no address of this machine: nothing but the prober itself would answer there."""
    for place, path in _PROBER_SPECS.items():
        for field, address in _asked(prober_spec(spec, place)):
            if fixed.is_this_machine(address.host):
                message = f"{field} is {address}: in a container that is the container itself"
                yield Finding("the_prober_asks_other_hosts", path, message, "note")


_PROBER_SPECS: dict[parts.PlaceName, str] = {
    "compose": "docker/synapse-ops/infrastructure.yaml",
    "kubernetes": "kubernetes/43-synapse-ops.yaml",
}


def _asked(told: Spec) -> Iterator[tuple[str, parts.Address]]:
    """Yield field and address of each server that a prober with this spec asks."""
    for node in told.failover.nodes:
        given = told.database.nodes.get(node)
        usual = parts.Address(told.database.host, told.database.port)
        yield f"database.nodes.{node}", usual if given is None else parts.authority_of(f"//{given}")
    yield "redis.host", parts.Address(told.redis.host, told.redis.port)
    for address in parts.qdrant_nodes(told):
        yield "qdrant.nodes" if told.qdrant.nodes else "qdrant.host", address
    if told.object_store.endpoint is not None:
        yield "object_store.endpoint", parts.authority_of(told.object_store.endpoint)
    for check in told.health:
        if not check.url.startswith("/"):
            yield f"health.{check.name}", parts.authority_of(check.url)


RULES: tuple[Rule, ...] = (
    no_document_holds_a_secret,
    connections_fit,
    the_firewall_opens_the_service,
    the_way_in_is_one_and_encrypted,
    somebody_is_told,
    ports_of_a_host_differ,
    the_prober_asks_other_hosts,
)
