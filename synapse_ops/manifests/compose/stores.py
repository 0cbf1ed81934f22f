"""PostgreSQL's nodes, Redis and Qdrant in the compose file, each with its exporter in the same network namespace.

So a metrics port belongs to the part that it measures, on hosts, in compose and in Kubernetes alike.
"""

from __future__ import annotations

from typing import Any

from synapse_ops.manifests.compose.service import (
    INTERNAL,
    SMALL,
    Service,
    check,
    healthy,
    helper_resources,
    metric_check,
    mounted,
    part_resources,
    service,
)
from synapse_ops.manifests.servers.containers import (
    REDIS_EXPORTER_PASSWORDS,
    qdrant_environment,
    qdrant_start,
    redis_ping,
    redis_start,
)
from synapse_ops.manifests.servers.postgres import shared_memory
from synapse_ops.manifests.servers.postgres_container import (
    CONFIG_DIR,
    DATA_DIR,
    MONITORING_PASSWORD,
    RUN_DIR,
    SERVER_ENVIRONMENT,
    container_secrets,
    ready_command,
    server_arguments,
)
from synapse_ops.manifests.stack.parts import PRIMARY, QDRANT, REDIS, STANDBY, database_parts, is_ours
from synapse_ops.manifests.stack.processes import QDRANT_API_KEY, REDIS_PASSWORD, SECRETS_DIR
from synapse_ops.spec import Spec
from synapse_ops.spec.fixed import MONITORING_USER, POSTGRES_EXPORTER_PORT, QDRANT_GRPC_PORT, REDIS_EXPORTER_PORT

_POSTGRES_USER = "999:999"  # of the image; its data directory belongs to it
_QDRANT_USER = "1000:1000"
_NOBODY = "65534:65534"


def store_services(spec: Spec) -> dict[str, Service]:
    """Return the services of the stores that are ours, each with its exporter."""
    found: dict[str, Service] = {}
    if is_ours(spec, "database", "compose"):
        for node in database_parts(spec):
            found[node] = _postgres(spec, node)
            found[f"{node}-exporter"] = _postgres_exporter(spec, node)
    if is_ours(spec, "redis", "compose"):
        found[REDIS] = _redis(spec)
        found[f"{REDIS}-exporter"] = _redis_exporter(spec)
    if is_ours(spec, "qdrant", "compose"):
        found[QDRANT] = _qdrant(spec)
    return found


def _postgres(spec: Spec, node: str) -> Service:
    role = "primary" if node == PRIMARY else "standby"
    name = spec.failover.nodes[node == STANDBY]
    volumes: list[Any] = [
        {"type": "volume", "source": f"{node}-data", "target": DATA_DIR},
        mounted(f"../postgres/{role}/postgresql.conf", f"{CONFIG_DIR}/postgresql.conf"),
        mounted(f"../postgres/{role}/pg_hba.conf", f"{CONFIG_DIR}/pg_hba.conf"),
        mounted(f"./start-{role}.sh", f"{CONFIG_DIR}/start.sh"),
    ]
    if node == PRIMARY:
        volumes.append(mounted("./create-roles.sh", "/docker-entrypoint-initdb.d/create-roles.sh"))
    # no depends_on: the start script of a standby without data waits for a primary by itself, and the start gate of
    # the primary asks a standby with data, which may have been promoted
    return service(
        spec.docker.images.postgres,
        user=_POSTGRES_USER,
        resources=part_resources(spec),
        healthcheck=check(("CMD", *ready_command(spec)), start_s=300),
        networks={INTERNAL: {"aliases": [name]}} if name != node else (INTERNAL,),
        listens=[spec.database.port, POSTGRES_EXPORTER_PORT],
        entrypoint=["bash", f"{CONFIG_DIR}/start.sh"],
        command=server_arguments(spec, node, "compose"),
        environment=dict(SERVER_ENVIRONMENT),
        secrets=list(container_secrets(spec)),
        volumes=volumes,
        tmpfs=["/tmp", f"{RUN_DIR}:uid=999,gid=999"],  # noqa: S108 - the container's own
        shm_size=f"{shared_memory(spec) >> 20}m",
        stop_signal="SIGINT",  # fast shutdown: sessions end, nothing is lost
        stop_grace_period="2m",
    )


def _postgres_exporter(spec: Spec, node: str) -> Service:
    return service(
        spec.docker.images.postgres_exporter,
        user=_NOBODY,
        resources=helper_resources(SMALL),
        healthcheck=metric_check(POSTGRES_EXPORTER_PORT, "pg_up"),
        network_mode=f"service:{node}",
        environment={
            "DATA_SOURCE_URI": f"localhost:{spec.database.port}/postgres?sslmode=require",
            "DATA_SOURCE_USER": MONITORING_USER,
            "DATA_SOURCE_PASS_FILE": f"{SECRETS_DIR}/{MONITORING_PASSWORD}",
            "PG_EXPORTER_WEB_LISTEN_ADDRESS": f":{POSTGRES_EXPORTER_PORT}",
        },
        secrets=[MONITORING_PASSWORD],
        depends_on=healthy(node, restarts=True),
    )


def _redis(spec: Spec) -> Service:
    more = {} if spec.redis.password is None else {"secrets": [REDIS_PASSWORD]}
    return service(
        spec.docker.images.redis,
        user="999:999",
        resources=part_resources(spec),
        healthcheck=check(["CMD", *redis_ping(spec)]),
        listens=[spec.redis.port, REDIS_EXPORTER_PORT],
        entrypoint=redis_start(spec, "/etc/redis/redis.conf"),
        volumes=[
            {"type": "volume", "source": "redis-data", "target": "/data"},
            mounted("../redis/redis.conf", "/etc/redis/redis.conf"),
        ],
        stop_grace_period="30s",
        **more,
    )


def _redis_exporter(spec: Spec) -> Service:
    environment = {
        "REDIS_ADDR": f"redis://localhost:{spec.redis.port}",
        "REDIS_EXPORTER_WEB_LISTEN_ADDRESS": f":{REDIS_EXPORTER_PORT}",
    }
    more: dict[str, Any] = {}
    if spec.redis.password is not None:
        environment["REDIS_PASSWORD_FILE"] = f"{SECRETS_DIR}/{REDIS_EXPORTER_PASSWORDS}"
        more["secrets"] = [REDIS_EXPORTER_PASSWORDS]
    return service(
        spec.docker.images.redis_exporter,
        user="59000:59000",
        resources=helper_resources(SMALL),
        healthcheck=metric_check(REDIS_EXPORTER_PORT, "redis_up"),
        network_mode=f"service:{REDIS}",
        environment=environment,
        depends_on=healthy(REDIS, restarts=True),
        **more,
    )


def qdrant_ping(spec: Spec) -> list[str]:
    """Return a command that exits with 0 when Qdrant is ready: its image has bash and no HTTP client."""
    connect = f"exec 3<>/dev/tcp/127.0.0.1/{spec.qdrant.port}"
    if spec.qdrant.tls:
        return ["bash", "-euc", connect]
    return ["bash", "-euc", f"{connect}; printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3; grep -q '^HTTP/1.. 200' <&3"]


def _qdrant(spec: Spec) -> Service:
    secrets = [QDRANT_API_KEY] if spec.qdrant.api_key is not None else []
    secrets += ["tls.crt", "tls.key"] if spec.qdrant.tls else []
    return service(
        spec.docker.images.qdrant,
        user=_QDRANT_USER,
        resources=part_resources(spec),
        healthcheck=check(["CMD", *qdrant_ping(spec)]),
        listens=[spec.qdrant.port, QDRANT_GRPC_PORT],
        entrypoint=qdrant_start(spec),
        environment=qdrant_environment(spec),
        volumes=[
            {"type": "volume", "source": "qdrant-data", "target": "/qdrant/storage"},
            mounted("../qdrant/config.yaml", "/etc/qdrant/config.yaml"),
        ],
        stop_grace_period="1m",
        **({"secrets": secrets} if secrets else {}),
    )
