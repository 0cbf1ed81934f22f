"""What hosts without containers share, and containers do not: their ports."""

from __future__ import annotations

from collections.abc import Iterator

from synapse_ops.manifests import parts
from synapse_ops.manifests.findings import Finding, Rule, View
from synapse_ops.manifests.tls import HTTP_PORT
from synapse_ops.spec import fixed

_PORTS_OF_A_HOST = {
    HTTP_PORT: "the proxy",
    parts.HTTPS_PORT: "the proxy",
    fixed.WORKER_METRICS_PORT: "the worker's metrics",
    parts.NODE_EXPORTER_PORT: "the node exporter",
    parts.BLACKBOX_PORT: "the blackbox exporter",
    parts.PROMETHEUS_PORT: "Prometheus",
    parts.ALERTMANAGER_PORT: "Alertmanager",
    parts.GRAFANA_PORT: "Grafana",
    parts.LOGSTASH_API_PORT: "Logstash's own API",
}


def ports_of_a_host_differ(view: View) -> Iterator[Finding]:
    """On a host without containers each port is one program's: of the spec, of its companions, of those that watch."""
    spec, taken = view.spec, dict(_PORTS_OF_A_HOST)
    ports = {"server.port": spec.server.port, "logging.beats_port": spec.logging.beats_port}
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
    for field, port in ports.items():
        if port in taken:
            message = (
                f"{field} {port} is that of {taken[port]}: on one host without containers one of them cannot start"
            )
            yield Finding("ports_of_a_host_differ", "prometheus/prometheus.yml", message, "note")


RULES: tuple[Rule, ...] = (ports_of_a_host_differ,)
