"""What the four dashboards show: panels as data, in reading order. grafana.py turns them into Grafana's JSON.

`$window` in an expression stands for the range of rates. A panel reads what the alerts read, so that a person who comes
from an alert sees the same number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from synapse_ops.manifests.monitoring.alert_rule import Dashboard

Kind = Literal["timeseries", "stat"]
WINDOW = "$window"


@dataclass(frozen=True, slots=True)
class Panel:
    """queries: (expression, legend). unit: Grafana's id of a unit. most: where the axis ends, such as 1 for a part."""

    title: str
    about: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: Kind = "timeseries"
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    panels: tuple[Panel, ...]


def _one(
    title: str, about: str, unit: str, expr: str, legend: str, *, kind: Kind = "timeseries", most: int | None = None
) -> Panel:
    return Panel(title, about, unit, ((expr, legend),), kind, most)


_AT = "{{instance}}"
_NODE = "{{node}}"
_SUBJECT = "{{repository}} {{subject}}"
_HIT = f"sum by (datname) (rate(pg_stat_database_blks_hit[{WINDOW}]))"
_READ = f"sum by (datname) (rate(pg_stat_database_blks_read[{WINDOW}]))"
_AGE = "time() - max by (repository, subject)"

SYSTEM = (
    Section(
        "What is up",
        (
            _one("Targets", "1 while Prometheus can scrape it.", "bool_on_off", "up", "{{job}} {{instance}}"),
            _one(
                "Certificate",
                "Time until the first one ends.",
                "s",
                "min(synapse_ops_certificate_left_seconds)",
                "left",
            ),
            _one("Least free disk", "Where Synapse Ops looks.", "bytes", "min(synapse_ops_disk_free_bytes)", "free"),
        ),
    ),
    Section(
        "Hosts",
        (
            _one("CPU", "Part of the time not idle.", "percentunit", "instance:node_cpu_used:ratio", _AT, most=1),
            _one("Memory", "Part not available.", "percentunit", "instance:node_memory_used:ratio", _AT, most=1),
            _one(
                "File systems",
                "Part used.",
                "percentunit",
                "instance:node_filesystem_used:ratio",
                "{{instance}} {{mountpoint}}",
                most=1,
            ),
            _one(
                "Load per CPU",
                "Of the last 5 minutes; above 1 work waits.",
                "short",
                "instance:node_load5:per_cpu",
                _AT,
            ),
            Panel(
                "Network",
                "Bytes per second, all devices but loopback.",
                "Bps",
                (
                    (
                        f'sum by (instance) (rate(node_network_receive_bytes_total{{device!="lo"}}[{WINDOW}]))',
                        f"in {_AT}",
                    ),
                    (
                        f'sum by (instance) (rate(node_network_transmit_bytes_total{{device!="lo"}}[{WINDOW}]))',
                        f"out {_AT}",
                    ),
                ),
            ),
            _one(
                "Disks",
                "Part of the time busy.",
                "percentunit",
                f"max by (instance, device) (rate(node_disk_io_time_seconds_total[{WINDOW}]))",
                "{{instance}} {{device}}",
            ),
        ),
    ),
    Section(
        "The watching itself",
        (
            _one(
                "Rounds of the prober",
                "Per second; 0 is a prober that stands still.",
                "ops",
                f"rate(synapse_ops_watch_heartbeats_total[{WINDOW}])",
                _AT,
            ),
            _one("Series in Prometheus", "In memory.", "short", "prometheus_tsdb_head_series", _AT),
        ),
    ),
)

APPLICATION = (
    Section(
        "Now",
        (
            _one("Requests", "Per second.", "reqps", "job:synapse_requests:rate", "{{job}}", kind="stat"),
            _one(
                "Errors",
                "Part with status 500 or above.",
                "percentunit",
                "job:synapse_request_errors:ratio",
                "{{job}}",
                kind="stat",
            ),
            _one("95 % answered within", "", "s", "job:synapse_request_seconds:p95", "{{job}}", kind="stat"),
        ),
    ),
    Section(
        "Requests",
        (
            _one(
                "By path and status",
                "Per second.",
                "reqps",
                f"sum by (path, status) (rate(synapse_requests_total[{WINDOW}]))",
                "{{path}} {{status}}",
            ),
            Panel(
                "Time to answer",
                "Half, 95 % and 99 % of the requests take no longer.",
                "s",
                tuple((f"job:synapse_request_seconds:{name}", name) for name in ("p50", "p95", "p99")),
            ),
            _one(
                "Documents acknowledged",
                "Writes per second that clients were told are kept.",
                "ops",
                f"sum by (job) (rate(synapse_documents_acknowledged_total[{WINDOW}]))",
                "{{job}}",
            ),
            _one("The API's database", "1 while its last use succeeded.", "bool_on_off", "synapse_database_up", _AT),
        ),
    ),
    Section(
        "Health",
        (
            _one(
                "Probes of Synapse Ops",
                "1 while healthy or degraded.",
                "bool_on_off",
                "max by (probe) (synapse_ops_probe_up)",
                "{{probe}}",
            ),
            _one(
                "Their answers",
                "Time of the last one.",
                "s",
                "max by (probe) (synapse_ops_probe_latency_seconds)",
                "{{probe}}",
            ),
            _one(
                "Endpoints from outside",
                "1 while the blackbox exporter gets a good answer.",
                "bool_on_off",
                "probe_success",
                "{{check}}",
            ),
            _one("Their answers from outside", "Time of the last one.", "s", "probe_duration_seconds", "{{check}}"),
        ),
    ),
    Section(
        "Vectors",
        (
            _one("Collections", "In Qdrant.", "short", "collections_total", _AT),
            _one("Vectors", "In Qdrant, all collections.", "short", "collections_vector_total", _AT),
            _one(
                "Qdrant's answers",
                "Per second, by status.",
                "reqps",
                f"sum by (status) (rate(rest_responses_total[{WINDOW}]))",
                "{{status}}",
            ),
            _one("Qdrant's memory", "Pages that are resident.", "bytes", "memory_resident_bytes", _AT),
        ),
    ),
)

DATABASE = (
    Section(
        "Protection",
        (
            _one(
                "Age of the last backup",
                "By repository.",
                "s",
                f"{_AGE} (synapse_ops_backup_timestamp_seconds)",
                _SUBJECT,
            ),
            _one(
                "Age of the last proof",
                "A backup counts once proven.",
                "s",
                f"{_AGE} (synapse_ops_proof_timestamp_seconds)",
                _SUBJECT,
            ),
            _one(
                "Repository readable",
                "0: ages beside it are old.",
                "bool_on_off",
                "max by (repository) (synapse_ops_repository_read)",
                "{{repository}}",
            ),
        ),
    ),
    Section(
        "Replication",
        (
            Panel(
                "Nodes",
                "One primary; at least one standby.",
                "short",
                (
                    ("max(synapse_ops_replication_primaries)", "primaries"),
                    ("max(synapse_ops_replication_standbys)", "standbys"),
                ),
            ),
            _one("Standby behind", "WAL not replayed.", "bytes", "max(synapse_ops_replication_lag_bytes)", "behind"),
            _one("Standby behind, in time", "", "s", "max(synapse_ops_replication_lag_seconds)", "behind"),
            _one(
                "WAL held back by slots",
                "For a reader that does not come.",
                "bytes",
                "max by (node) (synapse_ops_postgres_slot_retained_bytes)",
                _NODE,
            ),
        ),
    ),
    Section(
        "WAL in the repository",
        (
            _one(
                "WAL not stored",
                "On the server, not in the repository.",
                "bytes",
                "max(synapse_ops_wal_lag_bytes)",
                "behind",
            ),
            _one("WAL waits", "Of what has arrived, the oldest.", "s", "max(synapse_ops_wal_lag_seconds)", "waits"),
            _one(
                "Until a slot is lost",
                "WAL that may be written.",
                "bytes",
                "min by (node) (synapse_ops_postgres_slot_left_bytes)",
                _NODE,
            ),
            _one(
                "WAL stored",
                "Compressed, a second.",
                "Bps",
                f"sum(rate(synapse_ops_wal_stored_bytes_total[{WINDOW}]))",
                "stored",
            ),
        ),
    ),
    Section(
        "Load",
        (
            _one(
                "Connections",
                "Part of max_connections.",
                "percentunit",
                "node:synapse_ops_postgres_connections:ratio",
                _NODE,
                most=1,
            ),
            _one(
                "Oldest transaction",
                "It holds back VACUUM.",
                "s",
                "max by (node) (synapse_ops_postgres_oldest_transaction_seconds)",
                _NODE,
            ),
            _one(
                "Oldest transaction id",
                "At 2.1 billion writes stop.",
                "short",
                "max by (node) (synapse_ops_postgres_oldest_xid_age)",
                _NODE,
            ),
            Panel(
                "Transactions",
                "Per second.",
                "ops",
                (
                    (f"sum by (datname) (rate(pg_stat_database_xact_commit[{WINDOW}]))", "commit {{datname}}"),
                    (f"sum by (datname) (rate(pg_stat_database_xact_rollback[{WINDOW}]))", "rollback {{datname}}"),
                ),
            ),
            _one(
                "Reads from memory",
                "Part of the blocks found in shared buffers.",
                "percentunit",
                f"{_HIT} / ({_HIT} + {_READ} > 0)",
                "{{datname}}",
                most=1,
            ),
            _one("Size", "Of each database.", "bytes", "pg_database_size_bytes", "{{datname}}"),
            _one(
                "Deadlocks",
                "Per second.",
                "ops",
                f"sum by (datname) (rate(pg_stat_database_deadlocks[{WINDOW}]))",
                "{{datname}}",
            ),
            _one(
                "Checksum failures",
                "Pages since the last reset; must be 0.",
                "short",
                "max by (node) (synapse_ops_postgres_checksum_failures)",
                _NODE,
            ),
        ),
    ),
)

CACHE = (
    Section(
        "Memory",
        (
            Panel(
                "Memory",
                "Used, and the most that Redis may use.",
                "bytes",
                (("synapse_ops_redis_memory_bytes", "used"), ("synapse_ops_redis_max_memory_bytes", "maxmemory")),
            ),
            _one(
                "Evicted keys",
                "Per second: keys dropped for want of memory.",
                "ops",
                f"rate(synapse_ops_redis_evicted_keys[{WINDOW}])",
                _AT,
            ),
            _one("Clients", "Connected.", "short", "synapse_ops_redis_clients", _AT),
        ),
    ),
    Section(
        "Use",
        (
            _one(
                "Hit rate",
                "Part of the reads that found their key.",
                "percentunit",
                "instance:redis_keyspace_hits:ratio",
                _AT,
                most=1,
            ),
            _one("Commands", "Per second.", "ops", f"rate(redis_commands_processed_total[{WINDOW}])", _AT),
            _one("Keys", "By logical database.", "short", "redis_db_keys", "{{db}}"),
            _one("Expired keys", "Per second.", "ops", f"rate(redis_expired_keys_total[{WINDOW}])", _AT),
        ),
    ),
)

DASHBOARDS: Mapping[Dashboard, tuple[str, tuple[Section, ...]]] = {
    "system": ("System", SYSTEM),
    "application": ("Application", APPLICATION),
    "database": ("Database", DATABASE),
    "cache": ("Cache", CACHE),
}
