"""What the spec does not name because it is always the same: ports, each the one its project registers, a role, a
directory, and what this machine is called.
"""

from __future__ import annotations

WORKER_METRICS_PORT = 9108
OPS_METRICS_PORT = 9109  # where `watch.port` is null
WAL_METRICS_PORT = 9110  # of the WAL receiver
POSTGRES_EXPORTER_PORT = 9187
REDIS_EXPORTER_PORT = 9121
QDRANT_GRPC_PORT = 6334
MONITORING_USER = "synapse_monitoring"  # of the exporter: it reads statistics, from the database postgres
LOG_DIR = "/var/log/synapse"  # of the application in containers: a volume
LOG_CHAIN = frozenset({"elasticsearch", "logstash", "kibana", "filebeat"})  # services and images
LOCAL_HOSTS = frozenset({"localhost", "0.0.0.0", "::", "127.0.0.1", "::1"})  # noqa: S104 - compared, never bound
COMPOSE_HOSTS = {"database": "db-primary", "redis": "redis", "qdrant": "qdrant"}  # services of the rendered project


def is_this_machine(host: str) -> bool:
    """Return whether a server at this host is on this machine; a socket's directory is."""
    return host in LOCAL_HOSTS or host.startswith("/")


def is_in_compose(store: str, host: str) -> bool:
    """Return whether a store at this host is one of the rendered compose project: on this machine, or its service."""
    return is_this_machine(host) or host == COMPOSE_HOSTS[store]


def is_stack_database(host: str, in_cluster: str) -> bool:
    """Return whether PostgreSQL is part of the stack in any place. in_cluster: `kubernetes.stores.database`."""
    return in_cluster == "cluster" or is_in_compose("database", host)
