"""What each measure of an alert's condition is in PromQL, and the series that give it a wished value.

The names and units are the spec's (spec/measures.py); there is exactly one entry here for each name there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from synapse_ops.manifests.monitoring.alert_rule import AlertRule, Dashboard, Proof, Series
from synapse_ops.manifests.monitoring.promql import number
from synapse_ops.spec.blocks.monitoring import Alert
from synapse_ops.spec.measures import MEASURES, OPERATORS, sample_values, threshold_of

WithValue = Callable[[Decimal], tuple[Series, ...]]
XIDS = 2**31  # PostgreSQL stops at this distance; docs, "Preventing Transaction ID Wraparound Failures"
_HOST = 'job="node",instance="host:9100"'
_API = 'job="api",instance="api:8000"'


@dataclass(frozen=True, slots=True)
class Rendered:
    """expr: an instant vector in base units. subject: what one series of it is about, as a template of its labels."""

    expr: str
    subject: str
    dashboard: Dashboard
    series: WithValue
    is_rate: bool = False


def _gauge(selector: str, scale: int = 1) -> WithValue:
    return lambda value: (Series(selector, value * scale),)


def _share(part: str, whole: str, *, of: int = 10**6) -> WithValue:
    return lambda value: (Series(part, value * of), Series(whole, of))


def _free_share(part: str, whole: str) -> WithValue:
    return lambda value: (Series(part, (1 - value) * 10**6), Series(whole, 10**6))


def _growing(*series: Callable[[Decimal], tuple[str, Decimal]]) -> WithValue:
    def made(value: Decimal) -> tuple[Series, ...]:
        pairs = [one(value) for one in series]
        return tuple(Series(selector, 0, per_second) for selector, per_second in pairs)

    return made


def _requests(status: int) -> str:
    return f'synapse_requests_total{{{_API},path="/generate",status="{status}"}}'


def _histogram(value: Decimal) -> tuple[Series, ...]:
    """Return buckets that put every quantile at the value: all requests between just below and it."""
    name = "synapse_request_seconds_bucket"
    below = value * Decimal("0.999")
    bounds = [(number(below), 0), (number(value), 10), ("+Inf", 10)] if value else [("0", 10), ("+Inf", 10)]
    return tuple(Series(f'{name}{{{_API},le="{bound}"}}', 0, per_second) for bound, per_second in bounds)


def _age(metric: str) -> WithValue:
    return lambda value: (Series(f'{metric}{{repository="database",subject="synapse"}}', -value, 1),)


def _of_node(metric: str) -> str:
    return f'{metric}{{node="db-primary"}}'


_NODE = "node {{ $labels.node }}"
_AT = "{{ $labels.instance }}"
_JOB = "job {{ $labels.job }}"
_MEAN: WithValue = _growing(
    lambda value: (f"synapse_request_seconds_sum{{{_API}}}", value * 10),
    lambda _: (f"synapse_request_seconds_count{{{_API}}}", Decimal(10)),
)

RENDERED: Mapping[str, Rendered] = {
    "up": Rendered("up", "job {{ $labels.job }} at {{ $labels.instance }}", "application", _gauge(f"up{{{_API}}}")),
    "health": Rendered(
        "max by (probe) (synapse_ops_probe_up)",
        "probe {{ $labels.probe }}",
        "application",
        _gauge('synapse_ops_probe_up{probe="api"}'),
    ),
    "cpu": Rendered(
        "instance:node_cpu_used:ratio",
        _AT,
        "system",
        _growing(lambda value: (f'node_cpu_seconds_total{{{_HOST},cpu="0",mode="idle"}}', 1 - value)),
        is_rate=True,
    ),
    "memory": Rendered(
        "instance:node_memory_used:ratio",
        _AT,
        "system",
        _free_share(f"node_memory_MemAvailable_bytes{{{_HOST}}}", f"node_memory_MemTotal_bytes{{{_HOST}}}"),
    ),
    "disk": Rendered(
        "instance:node_filesystem_used:ratio",
        "{{ $labels.mountpoint }} of {{ $labels.instance }}",
        "system",
        _free_share(
            f'node_filesystem_avail_bytes{{{_HOST},device="sda",fstype="ext4",mountpoint="/"}}',
            f'node_filesystem_size_bytes{{{_HOST},device="sda",fstype="ext4",mountpoint="/"}}',
        ),
    ),
    "load": Rendered(
        "instance:node_load5:per_cpu",
        _AT,
        "system",
        lambda value: (
            Series(f"node_load5{{{_HOST}}}", value),
            Series(f'node_cpu_seconds_total{{{_HOST},cpu="0",mode="idle"}}', 0, 1),
        ),
    ),
    "request_rate": Rendered(
        "job:synapse_requests:rate", _JOB, "application", _growing(lambda value: (_requests(200), value)), is_rate=True
    ),
    "error_rate": Rendered(
        "job:synapse_request_errors:ratio",
        _JOB,
        "application",
        _growing(
            lambda value: (_requests(500), value * 10**6),
            lambda value: (_requests(200), (1 - value) * 10**6),
        ),
        is_rate=True,
    ),
    "latency": Rendered("job:synapse_request_seconds:mean", _JOB, "application", _MEAN, is_rate=True),
    **{
        f"{name}_latency": Rendered(
            f"job:synapse_request_seconds:{name}", _JOB, "application", _histogram, is_rate=True
        )
        for name in ("p50", "p95", "p99")
    },
    "connections": Rendered(
        "node:synapse_ops_postgres_connections:ratio",
        _NODE,
        "database",
        _share(_of_node("synapse_ops_postgres_connections"), _of_node("synapse_ops_postgres_max_connections")),
    ),
    "replication_lag": Rendered(
        "max(synapse_ops_replication_lag_seconds)",
        "the standby",
        "database",
        _gauge("synapse_ops_replication_lag_seconds"),
    ),
    "replication_lag_bytes": Rendered(
        "max(synapse_ops_replication_lag_bytes)",
        "the standby",
        "database",
        _gauge("synapse_ops_replication_lag_bytes"),
    ),
    "oldest_transaction": Rendered(
        "max by (node) (synapse_ops_postgres_oldest_transaction_seconds)",
        _NODE,
        "database",
        _gauge(_of_node("synapse_ops_postgres_oldest_transaction_seconds")),
    ),
    "wraparound": Rendered(
        f"max by (node) (synapse_ops_postgres_oldest_xid_age) / {XIDS}",
        _NODE,
        "database",
        _gauge(_of_node("synapse_ops_postgres_oldest_xid_age"), XIDS),
    ),
    "redis_memory": Rendered(
        "sum(synapse_ops_redis_memory_bytes) / sum(synapse_ops_redis_max_memory_bytes)",
        "Redis",
        "cache",
        _share("synapse_ops_redis_memory_bytes", "synapse_ops_redis_max_memory_bytes"),
    ),
    "cache_hit_rate": Rendered(
        "instance:redis_keyspace_hits:ratio",
        _AT,
        "cache",
        _growing(
            lambda value: ('redis_keyspace_hits_total{job="redis",instance="redis:9121"}', value * 10**6),
            lambda value: ('redis_keyspace_misses_total{job="redis",instance="redis:9121"}', (1 - value) * 10**6),
        ),
        is_rate=True,
    ),
    "backup_age": Rendered(
        "time() - max by (repository, subject) (synapse_ops_backup_timestamp_seconds)",
        "{{ $labels.repository }} {{ $labels.subject }}",
        "database",
        _age("synapse_ops_backup_timestamp_seconds"),
    ),
    "proof_age": Rendered(
        "time() - max by (repository, subject) (synapse_ops_proof_timestamp_seconds)",
        "{{ $labels.repository }} {{ $labels.subject }}",
        "database",
        _age("synapse_ops_proof_timestamp_seconds"),
    ),
    "certificate_left": Rendered(
        "min(synapse_ops_certificate_left_seconds)",
        "a certificate",
        "system",
        _gauge("synapse_ops_certificate_left_seconds"),
    ),
}


def alert_of(alert: Alert) -> AlertRule:
    """Return the rule of one of the spec's own alerts: the measure, its comparison, the threshold in base units."""
    condition = alert.condition
    rendered, measure = RENDERED[condition.measure], MEASURES[condition.measure]
    holds, limit = OPERATORS[condition.operator], threshold_of(condition)
    values = sample_values(condition)
    bad = [value for value in values if holds(value, limit)]
    good = [value for value in values if not holds(value, limit)]
    return AlertRule(
        name=alert.name,
        expr=f"{rendered.expr} {condition.operator} {number(limit)}",
        hold=alert.duration,
        severity=alert.severity,
        summary=f"{condition.measure} of {rendered.subject} is {{{{ $value | {_FORMS[measure.kind]} }}}}",
        description=f"The alert {alert.name} of the spec: {measure.description}; it fires at {condition}.",
        page=f"measure-{condition.measure.replace('_', '-')}",
        dashboard=rendered.dashboard,
        proof=Proof(
            bad=rendered.series(_farthest(bad, limit)),
            good=rendered.series(_farthest(good, limit)),
            is_rate=rendered.is_rate,
        ),
        labels=(("measure", condition.measure),),
    )


_FORMS = {
    "part": "humanizePercentage",
    "time": "humanizeDuration",
    "size": "humanize1024",
    "number": "humanize",
    "state": "humanize",
}


def _farthest(values: list[Decimal], limit: Decimal) -> Decimal:
    """Return the value farthest from the threshold, so that no rounding of a rate decides."""
    return max(values, key=lambda value: abs(value - limit))
