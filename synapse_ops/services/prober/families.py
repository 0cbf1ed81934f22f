"""The prober's metrics, by name: what rules and dashboards of any monitoring may rely on.

Every name starts with synapse_ops_ and ends in its base unit. Moments are timestamps, because an age stops growing
when the prober dies; what is not known has no series, because a 0 would be read as a measurement.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from synapse_ops.domain.health.states import State

if TYPE_CHECKING:
    from prometheus_client.core import GaugeMetricFamily, Metric

    from synapse_ops.services.prober.prober import Prober

_DAY_S = 86_400
_NODE_PREFIX = "server/"


class _Told(NamedTuple):
    """A measurement of a verdict as a metric; several nodes measure the same where `of_node`."""

    metric: str
    help: str
    scale: int = 1
    of_node: bool = False
    is_unknown_at_0: bool = False


_TOLD: Mapping[str, _Told] = {
    "primaries": _Told("replication_primaries", "PostgreSQL nodes that take writes."),
    "standbys": _Told("replication_standbys", "PostgreSQL nodes that replay WAL."),
    "lag_bytes": _Told("replication_lag_bytes", "WAL that the last standby has not replayed."),
    "armed": _Told("failover_armed", "1 while a dead primary would be failed over; no series where we do not."),
    "lag_s": _Told("replication_lag_seconds", "Replay delay of the last standby."),
    "is_standby": _Told("postgres_is_standby", "1 where WAL is replayed.", of_node=True),
    "connections": _Told("postgres_connections", "Open connections of clients.", of_node=True),
    "max_connections": _Told("postgres_max_connections", "Most connections.", of_node=True),
    "oldest_transaction_s": _Told(
        "postgres_oldest_transaction_seconds", "Age of the oldest open transaction.", of_node=True
    ),
    "oldest_xid_age": _Told("postgres_oldest_xid_age", "Age of the oldest transaction id.", of_node=True),
    "oldest_multixact_age": _Told("postgres_oldest_multixact_age", "Age of the oldest multixact id.", of_node=True),
    "checksum_failures": _Told("postgres_checksum_failures", "Pages that failed their checksum.", of_node=True),
    "slot_retained_bytes": _Told("postgres_slot_retained_bytes", "Most WAL that one slot holds back.", of_node=True),
    "slot_left_bytes": _Told(
        "postgres_slot_left_bytes", "WAL that may be written until the first slot is lost.", of_node=True
    ),
    "archive_fails": _Told("postgres_archive_fails", "1 while the archiver's last try failed.", of_node=True),
    "archive_waiting_s": _Told(
        "postgres_archive_waiting_seconds", "How long the oldest finished segment waits for the archiver.", of_node=True
    ),
    "used_memory_bytes": _Told("redis_memory_bytes", "Memory that Redis uses."),
    "maxmemory_bytes": _Told("redis_max_memory_bytes", "Most memory; no series without a limit.", is_unknown_at_0=True),
    "evicted_keys": _Told("redis_evicted_keys", "Keys that Redis evicted for lack of memory, since its start."),
    "rejected_connections": _Told("redis_rejected_connections", "Clients that Redis refused, since its start."),
    "connected_clients": _Told("redis_clients", "Clients of Redis."),
    "certificate_days": _Told("certificate_left_seconds", "Time until the first certificate ends.", _DAY_S),
    "free_bytes": _Told("disk_free_bytes", "Free space of the fullest disk that is checked."),
    "size_bytes": _Told("disk_size_bytes", "Size of that disk."),
    "clock_skew_s": _Told("object_store_clock_skew_seconds", "How far the store's clock is ahead of ours."),
    "peers": _Told("qdrant_peers", "Peers in the cluster that a node sees.", of_node=True),
    "pending_operations": _Told("qdrant_pending_operations", "Changes that wait for consensus.", of_node=True),
}


def families(prober: Prober) -> Iterator[Metric]:
    """Yield every family, each once."""
    from prometheus_client.core import CounterMetricFamily

    beats = CounterMetricFamily(
        "synapse_ops_watch_heartbeats", "Rounds of the prober; does not increase while it hangs.", value=prober.beats
    )
    yield beats
    yield CounterMetricFamily(
        "synapse_ops_watch_unstored_verdicts", "Verdicts that could not be kept (a full disk).", value=prober.unstored
    )
    yield from _probes(prober)
    yield from _measurements(prober)
    yield from _protection(prober)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(f"synapse_ops_{name}", text, labels=labels)


def _probes(prober: Prober) -> Iterator[Metric]:
    state = _gauge("probe_state", "1 for the state that a probe is in.", "probe", "state")
    up = _gauge("probe_up", "1 while healthy or degraded, 0 otherwise.", "probe")
    since = _gauge("probe_state_since_timestamp_seconds", "When the state began.", "probe")
    last = _gauge("probe_verdict_timestamp_seconds", "When the last verdict was given.", "probe")
    latency = _gauge("probe_latency_seconds", "Latency of the last answer.", "probe")
    late = _gauge("probe_verdict_delay_seconds", "Delay from due time to stored verdict, the last one.", "probe")
    for name, watched in prober.watched.items():
        for word in State:
            state.add_metric([name, word], float(watched.condition.state is word))
        up.add_metric([name], float(watched.condition.state in {State.HEALTHY, State.DEGRADED}))
        since.add_metric([name], watched.condition.since.timestamp())
        if watched.at is None or watched.verdict is None:
            continue
        last.add_metric([name], watched.at.timestamp())
        late.add_metric([name], watched.delay_s)
        if watched.verdict.latency_s is not None:
            latency.add_metric([name], watched.verdict.latency_s)
    yield from (state, up, since, last, latency, late)


def _measurements(prober: Prober) -> Iterator[Metric]:
    found = {name: _gauge(told.metric, told.help, *(["node"] if told.of_node else [])) for name, told in _TOLD.items()}
    least: dict[str, float] = {}  # several https endpoints measure one thing: the first certificate that ends
    for probe, watched in prober.watched.items():
        for name, value in watched.verdict.measurements.items() if watched.verdict is not None else ():
            told = _TOLD.get(name)
            if told is None or (told.is_unknown_at_0 and not value):
                continue
            if told.of_node:
                found[name].add_metric([probe.removeprefix(_NODE_PREFIX)], value * told.scale)
            else:
                least[name] = min(value, least.get(name, value))
    for name, value in least.items():
        found[name].add_metric([], value * _TOLD[name].scale)
    yield from found.values()


def _protection(prober: Prober) -> Iterator[Metric]:
    of = ("repository", "subject")
    moments = {
        "backup_at": _gauge("backup_timestamp_seconds", "Moment of the newest backup.", *of),
        "proven_at": _gauge("proof_timestamp_seconds", "Moment of the newest proof that passed.", *of),
        "from_at": _gauge("recoverable_from_timestamp_seconds", "First moment that can be restored.", *of),
        "to_at": _gauge("recoverable_to_timestamp_seconds", "Last moment that can be restored.", *of),
    }
    numbers = {
        "predicted_restore_s": _gauge("restore_predicted_seconds", "How long a restore will take.", *of),
        "rpo_s": _gauge("objective_rpo_seconds", "Most work that may be lost.", *of),
        "rto_s": _gauge("objective_rto_seconds", "Longest time of a restore.", *of),
        "objectives_met": _gauge("objectives_met", "1 while backups are as promised; no series if not judged.", *of),
    }
    read = _gauge("repository_read", "1 when the repository could be read.", "repository")
    for name, found in (prober.protection or {}).items():
        read.add_metric([name], float("error" not in found))
        for subject, told in found.get("subjects", {}).items():
            facts = {**told.get("restore", {}), **{key: told.get(key) for key in ("backup_at", "proven_at")}}
            for key, family in moments.items():
                if facts.get(key) is not None:
                    family.add_metric([name, subject], datetime.fromisoformat(facts[key]).timestamp())
            for key, family in numbers.items():
                if facts.get(key) is not None:
                    family.add_metric([name, subject], float(facts[key]))
    yield from (*moments.values(), *numbers.values(), read)
