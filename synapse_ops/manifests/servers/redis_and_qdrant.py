"""redis.conf and Qdrant's configuration. Neither holds a password: containers add it from a file when they start."""

from __future__ import annotations

from synapse_ops.manifests.document import Document, text_document, yaml_document
from synapse_ops.manifests.stack.parts import has_qdrant_cluster
from synapse_ops.manifests.stack.processes import application_processes
from synapse_ops.spec import Spec
from synapse_ops.spec.fixed import QDRANT_GRPC_PORT

READS_REDIS = frozenset({"redis", "resources", "backup", "server", "worker", "kubernetes", "autoscaling"})
READS_QDRANT = frozenset({"qdrant", "tls"})
_OTHER_CLIENTS = 32  # probes, exporter, this tool, and Redis' own reserve


def render_redis(spec: Spec) -> tuple[Document, ...]:
    """Return redis.conf."""
    return (text_document("redis/redis.conf", redis_conf(spec), READS_REDIS),)


def redis_conf(spec: Spec) -> str:
    """Return Redis' settings: a cache that survives a restart and never grows beyond its memory. What `backup.redis`
    keeps is no cache: then a write that finds no room is refused, and nothing is evicted.
    """
    memory = max(spec.resources.limits.memory * 3 // 4, 1 << 20)  # a quarter is left for copies on write and buffers
    is_locked = spec.redis.password is not None
    settings = {
        "bind": "* -::*",
        "port": spec.redis.port,
        "protected-mode": "yes" if is_locked else "no",
        "databases": 16,
        # each process has a connection at least
        "maxclients": max(spec.redis.max_connections, application_processes(spec)) + _OTHER_CLIENTS,
        "timeout": 0,
        "tcp-keepalive": 60,
        "maxmemory": f"{memory}b",
        "maxmemory-policy": "allkeys-lru" if spec.backup.redis is None else "noeviction",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "60 1000",
        # a cache goes on when a snapshot fails, for the sake of which nobody stops; what is backed up refuses writes
        "stop-writes-on-bgsave-error": "no" if spec.backup.redis is None else "yes",
        # with a snapshot that fails it would stay until it is killed
        "shutdown-on-sigterm": "force" if spec.backup.redis is None else "default",
        "dir": "/data",
        "busy-reply-threshold": int(spec.redis.timeout.total_seconds() * 1000),
        "shutdown-timeout": 10,
        "daemonize": "no",
        "loglevel": "notice",
    }
    head = "# Redis 7 and newer. " + (
        "The password is added from a file when it starts.\n"
        if is_locked
        else "redis.password is null: whoever reaches the port may use it.\n"
    )
    return head + "".join(f"{key} {value}\n" for key, value in settings.items())


def render_qdrant(spec: Spec) -> tuple[Document, ...]:
    """Return Qdrant's configuration file."""
    return (yaml_document("qdrant/config.yaml", qdrant_config(spec), reads=READS_QDRANT),)


def qdrant_config(spec: Spec) -> dict[str, object]:
    """Return Qdrant's settings. Source: Qdrant docs, "Configuration"."""
    service: dict[str, object] = {
        "host": "::",
        "http_port": spec.qdrant.port,
        "grpc_port": QDRANT_GRPC_PORT,
        "enable_cors": False,
        "enable_tls": spec.qdrant.tls,
    }
    config: dict[str, object] = {
        "log_level": "INFO",
        "telemetry_disabled": True,
        "storage": {
            "storage_path": "/qdrant/storage",
            "snapshots_path": "/qdrant/storage/snapshots",
            "on_disk_payload": True,
        },
        "service": service,
        "cluster": {"enabled": has_qdrant_cluster(spec)},
    }
    if spec.qdrant.tls:
        config["tls"] = {"cert": spec.tls.cert_file, "key": spec.tls.key_file}
    return config
