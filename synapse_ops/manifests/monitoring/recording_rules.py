"""Recorded series: what several alerts and panels read, computed once. Names are level:metric:operation."""

from __future__ import annotations

from synapse_ops.manifests.monitoring.promql import range_of
from synapse_ops.spec import Spec

QUANTILES = {"p50": "0.5", "p95": "0.95", "p99": "0.99"}
FILE_SYSTEMS = 'fstype!~"tmpfs|ramfs|overlay|squashfs|iso9660|fuse.*"'


def recording_groups(spec: Spec) -> list[dict[str, object]]:
    """Return the groups, in the order in which they are evaluated."""
    window = range_of(spec)
    return [_group("synapse-hosts", _host_rules(window)), _group("synapse-services", _service_rules(window))]


def _group(name: str, rules: dict[str, str]) -> dict[str, object]:
    return {"name": name, "rules": [{"record": record, "expr": f"{expr}\n"} for record, expr in rules.items()]}


def _host_rules(window: str) -> dict[str, str]:
    return {
        "instance:node_cpu_used:ratio": (
            f'1 - avg by (job, instance) (rate(node_cpu_seconds_total{{mode="idle"}}[{window}]))'
        ),
        "instance:node_memory_used:ratio": "1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes",
        "instance:node_filesystem_used:ratio": (
            f"1 - node_filesystem_avail_bytes{{{FILE_SYSTEMS}}} / (node_filesystem_size_bytes{{{FILE_SYSTEMS}}} > 0)"
        ),
        "instance:node_load5:per_cpu": (
            'node_load5 / on (job, instance) count by (job, instance) (node_cpu_seconds_total{mode="idle"})'
        ),
    }


def _service_rules(window: str) -> dict[str, str]:
    requests = f"sum by (job) (rate(synapse_requests_total[{window}]))"
    errors = f'sum by (job) (rate(synapse_requests_total{{status=~"5.."}}[{window}]))'
    took = f"sum by (job) (rate(synapse_request_seconds_sum[{window}]))"
    count = f"sum by (job) (rate(synapse_request_seconds_count[{window}]))"
    buckets = f"sum by (job, le) (rate(synapse_request_seconds_bucket[{window}]))"
    rules = {
        "job:synapse_requests:rate": requests,
        # without one error there is no series of them; without one request there is no ratio
        "job:synapse_request_errors:ratio": f"({errors} or {requests} * 0) / ({requests} > 0)",
        "job:synapse_request_seconds:mean": f"{took} / ({count} > 0)",
    }
    for name, quantile in QUANTILES.items():
        rules[f"job:synapse_request_seconds:{name}"] = f"histogram_quantile({quantile}, {buckets}) >= 0"
    hits = f"rate(redis_keyspace_hits_total[{window}])"
    reads = f"({hits} + rate(redis_keyspace_misses_total[{window}]))"
    return rules | {
        "node:synapse_ops_postgres_connections:ratio": (
            "synapse_ops_postgres_connections / synapse_ops_postgres_max_connections"
        ),
        "instance:redis_keyspace_hits:ratio": f"{hits} / ({reads} > 0)",
    }
