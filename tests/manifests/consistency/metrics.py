"""Every metric that a rule or a panel may read, and who serves it. A name that is not here is a slip of the pen."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_SERVED: Mapping[str, tuple[str, ...]] = {
    "api": (
        "synapse_requests_total",
        "synapse_request_seconds_bucket",
        "synapse_request_seconds_sum",
        "synapse_request_seconds_count",
        "synapse_documents_acknowledged_total",
        "synapse_database_up",
    ),
    "synapse_ops": (
        "synapse_ops_watch_heartbeats_total",
        "synapse_ops_probe_state",
        "synapse_ops_probe_up",
        "synapse_ops_probe_latency_seconds",
        "synapse_ops_replication_primaries",
        "synapse_ops_replication_standbys",
        "synapse_ops_replication_lag_bytes",
        "synapse_ops_replication_lag_seconds",
        "synapse_ops_postgres_connections",
        "synapse_ops_postgres_max_connections",
        "synapse_ops_postgres_oldest_transaction_seconds",
        "synapse_ops_postgres_oldest_xid_age",
        "synapse_ops_postgres_checksum_failures",
        "synapse_ops_postgres_slot_retained_bytes",
        "synapse_ops_postgres_slot_left_bytes",
        "synapse_ops_postgres_archive_fails",
        "synapse_ops_postgres_archive_waiting_seconds",
        "synapse_ops_redis_memory_bytes",
        "synapse_ops_redis_max_memory_bytes",
        "synapse_ops_redis_evicted_keys",
        "synapse_ops_redis_clients",
        "synapse_ops_certificate_left_seconds",
        "synapse_ops_disk_free_bytes",
        "synapse_ops_backup_timestamp_seconds",
        "synapse_ops_objectives_met",
        "synapse_ops_proof_timestamp_seconds",
        "synapse_ops_repository_read",
    ),
    "wal": (
        "synapse_ops_wal_up",
        "synapse_ops_wal_lag_bytes",
        "synapse_ops_wal_lag_seconds",
        "synapse_ops_wal_stored_bytes_total",
        "synapse_ops_wal_gap_timestamp_seconds",
        "synapse_ops_wal_unprotected",
    ),
    "qdrant": ("collections_total", "collections_vector_total", "rest_responses_total", "memory_resident_bytes"),
    "prometheus": (
        "up",
        "ALERTS",
        "prometheus_config_last_reload_successful",
        "prometheus_rule_evaluation_failures_total",
        "prometheus_notifications_errors_total",
        "prometheus_tsdb_head_series",
    ),
    "alertmanager": ("alertmanager_notifications_failed_total", "alertmanager_config_last_reload_successful"),
    "node-exporter": (
        "node_cpu_seconds_total",
        "node_memory_MemAvailable_bytes",
        "node_memory_MemTotal_bytes",
        "node_filesystem_avail_bytes",
        "node_filesystem_size_bytes",
        "node_load5",
        "node_network_receive_bytes_total",
        "node_network_transmit_bytes_total",
        "node_disk_io_time_seconds_total",
    ),
    "postgres-exporter": (
        "pg_stat_database_xact_commit",
        "pg_stat_database_xact_rollback",
        "pg_stat_database_blks_hit",
        "pg_stat_database_blks_read",
        "pg_stat_database_deadlocks",
        "pg_database_size_bytes",
    ),
    "redis-exporter": (
        "redis_keyspace_hits_total",
        "redis_keyspace_misses_total",
        "redis_commands_processed_total",
        "redis_expired_keys_total",
        "redis_db_keys",
    ),
    "blackbox-exporter": ("probe_success", "probe_duration_seconds"),
    "rule": (
        "instance:node_cpu_used:ratio",
        "instance:node_memory_used:ratio",
        "instance:node_filesystem_used:ratio",
        "instance:node_load5:per_cpu",
        "job:synapse_requests:rate",
        "job:synapse_request_errors:ratio",
        "job:synapse_request_seconds:mean",
        "job:synapse_request_seconds:p50",
        "job:synapse_request_seconds:p95",
        "job:synapse_request_seconds:p99",
        "node:synapse_ops_postgres_connections:ratio",
        "instance:redis_keyspace_hits:ratio",
    ),
}

METRICS: Mapping[str, str] = MappingProxyType(
    {metric: source for source, metrics in _SERVED.items() for metric in metrics}
)
