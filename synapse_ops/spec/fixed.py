"""What the spec does not name because it is always the same: ports, each the one its project registers, and a role."""

from __future__ import annotations

WORKER_METRICS_PORT = 9108
OPS_METRICS_PORT = 9109  # where `watch.port` is null
POSTGRES_EXPORTER_PORT = 9187
REDIS_EXPORTER_PORT = 9121
QDRANT_GRPC_PORT = 6334
MONITORING_USER = "synapse_monitoring"  # of the exporter: it reads statistics, from the database postgres
