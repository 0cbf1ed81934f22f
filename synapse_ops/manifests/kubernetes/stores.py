"""PostgreSQL's nodes, Redis and Qdrant in the cluster: each a StatefulSet of one, with its own headless Service.

A node is its own StatefulSet, because a standby is not the second of two equal pods: after a failover the roles change
places and the names must not. Clients use the nodes' names; the Service `<stack>-db` points at the first primary and
is pointed at the other by a failover.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from synapse_ops.manifests.kubernetes.objects import (
    Object,
    config_map,
    config_volume,
    container,
    disruption_budget,
    headless_service,
    helper_resources,
    part_resources,
    pod_template,
    secrets_volume,
    service_account,
    service_port,
    stateful_set,
)
from synapse_ops.manifests.servers.containers import (
    REDIS_EXPORTER_PASSWORDS,
    qdrant_environment,
    qdrant_start,
    redis_ping,
    redis_start,
)
from synapse_ops.manifests.servers.postgres import pg_hba, postgresql_conf, shared_memory
from synapse_ops.manifests.servers.postgres_container import (
    CONFIG_DIR,
    DATA_DIR,
    MONITORING_PASSWORD,
    RUN_DIR,
    SERVER_ENVIRONMENT,
    container_secrets,
    ready_command,
    roles_script,
    server_arguments,
    start_script,
)
from synapse_ops.manifests.servers.redis_and_qdrant import qdrant_config, redis_conf
from synapse_ops.manifests.stack.parts import NODE_EXPORTER_PORT, PRIMARY, QDRANT, REDIS, database_parts
from synapse_ops.manifests.stack.probes import FAILURES
from synapse_ops.manifests.stack.processes import QDRANT_API_KEY, REDIS_PASSWORD, SECRETS_DIR
from synapse_ops.manifests.yaml_text import write_yaml
from synapse_ops.spec import Spec
from synapse_ops.spec.fixed import MONITORING_USER, POSTGRES_EXPORTER_PORT, QDRANT_GRPC_PORT, REDIS_EXPORTER_PORT
from synapse_ops.spec.units import format_size

POSTGRES, METRICS, VOLUME = "postgres", "metrics", "volume"  # names of ports
_VOLUME_DIR = "/volume"
_START_LIMIT = timedelta(minutes=10)
# A node that is killed while it recovers begins again, and a standby while it is cloned, with the whole load on the
# primary. Recovery: CloudNativePG's start delay; a clone: 4 TB at 50 MB/s.
_RECOVERY_LIMIT, _CLONE_LIMIT = timedelta(hours=1), timedelta(days=1)


def database_objects(spec: Spec) -> list[Object]:
    """Return the nodes of PostgreSQL. Clients name both and take the one that takes writes: a Service of one of them
    would be wrong after a failover.
    """
    return [found for node in database_parts(spec) for found in _node(spec, node)]


def _node(spec: Spec, node: str) -> list[Object]:
    role = "primary" if node == PRIMARY else "standby"
    files = {
        "postgresql.conf": postgresql_conf(spec, role),
        "pg_hba.conf": pg_hba(spec) + "\n",
        "start.sh": start_script(spec, node, "kubernetes"),
    }
    config = config_map(spec, node, files)
    volumes, mounts = _pairs(config_volume("config", config, CONFIG_DIR), secrets_volume(spec, container_secrets(spec)))
    objects = [config]
    if node == PRIMARY:
        roles = config_map(spec, "db-roles", {"create-roles.sh": roles_script(spec)})
        objects.append(roles)
        volume, mount = config_volume("roles", roles, "/docker-entrypoint-initdb.d")
        volumes, mounts = [*volumes, volume], [*mounts, mount]
    volumes += [
        {"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": format_size(shared_memory(spec))}},
    ]
    mounts += [
        {"name": "data", "mountPath": DATA_DIR},
        {"name": "run", "mountPath": RUN_DIR},
        {"name": "memory", "mountPath": "/dev/shm"},  # noqa: S108 - the container's own
    ]
    server = container(
        "postgres",
        spec.docker.images.postgres,
        part_resources(spec),
        command=["bash", f"{CONFIG_DIR}/start.sh"],
        # a $ doubled: Kubernetes takes $(NAME) for a variable, and $$ for a $
        args=[argument.replace("$", "$$") for argument in server_arguments(spec, node, "kubernetes")],
        env=_env(SERVER_ENVIRONMENT),
        ports=[_container_port(POSTGRES, spec.database.port)],
        volumeMounts=mounts,
        **_probes(
            {"exec": {"command": ready_command(spec)}},
            {"tcpSocket": {"port": POSTGRES}},
            start_limit=_RECOVERY_LIMIT if node == PRIMARY else _CLONE_LIMIT,
        ),
    )
    exporter = container(
        "exporter",
        spec.docker.images.postgres_exporter,
        helper_resources(),
        env=_env(
            {
                "DATA_SOURCE_URI": f"localhost:{spec.database.port}/postgres?sslmode=require",
                "DATA_SOURCE_USER": MONITORING_USER,
                "DATA_SOURCE_PASS_FILE": f"{SECRETS_DIR}/{MONITORING_PASSWORD}",
                "PG_EXPORTER_WEB_LISTEN_ADDRESS": f":{POSTGRES_EXPORTER_PORT}",
            }
        ),
        ports=[_container_port(METRICS, POSTGRES_EXPORTER_PORT)],
        volumeMounts=[mounts[1]],
        **_exporter_probes(),
    )
    ports = [service_port(POSTGRES, spec.database.port), service_port(METRICS, POSTGRES_EXPORTER_PORT)]
    ports.append(service_port(VOLUME, NODE_EXPORTER_PORT))
    pod = pod_template(
        spec, node, [server, exporter, _volume_exporter(spec)], grace_s=120, volumes=volumes, spread_by_revision=False
    )
    return [*objects, *_stateful(spec, node, pod, ports, spec.kubernetes.storage.database)]


def redis_objects(spec: Spec) -> list[Object]:
    """Return Redis."""
    config = config_map(spec, REDIS, {"redis.conf": redis_conf(spec)})
    volumes, mounts = _pairs(config_volume("config", config, "/etc/redis"))
    exporter_env = {
        "REDIS_ADDR": f"redis://localhost:{spec.redis.port}",
        "REDIS_EXPORTER_WEB_LISTEN_ADDRESS": f":{REDIS_EXPORTER_PORT}",
    }
    exporter_mounts: list[Object] = []
    if spec.redis.password is not None:
        volume, mount = secrets_volume(spec, (REDIS_PASSWORD, REDIS_EXPORTER_PASSWORDS))
        volumes, mounts, exporter_mounts = [*volumes, volume], [*mounts, mount], [mount]
        exporter_env["REDIS_PASSWORD_FILE"] = f"{SECRETS_DIR}/{REDIS_EXPORTER_PASSWORDS}"
    server = container(
        REDIS,
        spec.docker.images.redis,
        part_resources(spec),
        command=redis_start(spec, "/etc/redis/redis.conf"),
        ports=[_container_port(REDIS, spec.redis.port)],
        volumeMounts=[*mounts, {"name": "data", "mountPath": "/data"}],
        **_probes({"exec": {"command": redis_ping(spec)}}, {"tcpSocket": {"port": REDIS}}),
    )
    exporter = container(
        "exporter",
        spec.docker.images.redis_exporter,
        helper_resources(),
        env=_env(exporter_env),
        ports=[_container_port(METRICS, REDIS_EXPORTER_PORT)],
        volumeMounts=exporter_mounts,
        **_exporter_probes(),
    )
    containers = [server, exporter, _volume_exporter(spec)]
    pod = pod_template(spec, REDIS, containers, grace_s=30, volumes=volumes, spread_by_revision=False)
    ports = [service_port(REDIS, spec.redis.port), service_port(METRICS, REDIS_EXPORTER_PORT)]
    ports.append(service_port(VOLUME, NODE_EXPORTER_PORT))
    return [config, *_stateful(spec, REDIS, pod, ports, spec.kubernetes.storage.redis)]


def qdrant_objects(spec: Spec) -> list[Object]:
    """Return Qdrant."""
    told = {key: value for key, value in qdrant_config(spec).items() if key != "tls"}  # the environment names its files
    config = config_map(spec, QDRANT, {"config.yaml": write_yaml(told | {"cluster": {"enabled": False}})})
    secrets = [QDRANT_API_KEY] if spec.qdrant.api_key is not None else []
    secrets += ["tls.crt", "tls.key"] if spec.qdrant.tls else []
    pairs = [config_volume("config", config, "/etc/qdrant")]
    pairs += [secrets_volume(spec, secrets)] if secrets else []
    volumes, mounts = _pairs(*pairs)
    scheme = "HTTPS" if spec.qdrant.tls else "HTTP"
    server = container(
        QDRANT,
        spec.docker.images.qdrant,
        part_resources(spec),
        command=qdrant_start(spec),
        env=_env(qdrant_environment(spec)),
        ports=[_container_port("http", spec.qdrant.port), _container_port("grpc", QDRANT_GRPC_PORT)],
        volumeMounts=[*mounts, {"name": "data", "mountPath": "/qdrant/storage"}],
        **_probes(
            {"httpGet": {"path": "/readyz", "port": "http", "scheme": scheme}},
            {"httpGet": {"path": "/livez", "port": "http", "scheme": scheme}},
        ),
    )
    containers = [server, _volume_exporter(spec)]
    pod = pod_template(spec, QDRANT, containers, grace_s=60, volumes=volumes, spread_by_revision=False)
    ports = [service_port("http", spec.qdrant.port), service_port("grpc", QDRANT_GRPC_PORT)]
    ports.append(service_port(VOLUME, NODE_EXPORTER_PORT))
    return [config, *_stateful(spec, QDRANT, pod, ports, spec.kubernetes.storage.qdrant)]


def _volume_exporter(spec: Spec) -> Object:
    """Return what tells how full the volume is: the server does not, and the kubelet tells only who has a right on
    nodes. It sees the file systems of its own container alone.
    """
    return container(
        "volume-exporter",
        spec.docker.images.node_exporter,
        helper_resources(),
        args=[
            "--collector.disable-defaults",
            "--collector.filesystem",
            f"--collector.filesystem.mount-points-include=^{_VOLUME_DIR}$",
            f"--web.listen-address=:{NODE_EXPORTER_PORT}",
        ],
        ports=[_container_port(VOLUME, NODE_EXPORTER_PORT)],
        volumeMounts=[{"name": "data", "mountPath": _VOLUME_DIR, "readOnly": True}],
        **_exporter_probes(VOLUME),
    )


def _stateful(spec: Spec, part: str, pod: Object, ports: list[Object], size: int) -> list[Object]:
    return [
        service_account(spec, part),
        headless_service(spec, part, ports),
        stateful_set(spec, part, pod, size, volume="data"),
        disruption_budget(spec, part),
    ]


def _pairs(*pairs: tuple[Object, Object]) -> tuple[list[Object], list[Object]]:
    return [volume for volume, _ in pairs], [mount for _, mount in pairs]


def _env(values: dict[str, str]) -> list[Object]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _container_port(name: str, port: int) -> Object:
    return {"name": name, "containerPort": port, "protocol": "TCP"}


def _probes(ready: Object, live: Object, *, start_limit: timedelta = _START_LIMIT) -> dict[str, Any]:
    """Return three probes: being slow to start is no fault, being busy is no reason to be restarted."""
    often = {"periodSeconds": 10, "timeoutSeconds": 5}
    return {
        "startupProbe": ready
        | {"periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": start_limit // timedelta(seconds=5)},
        "livenessProbe": live | often | {"failureThreshold": 2 * FAILURES},
        "readinessProbe": ready | often | {"failureThreshold": FAILURES},
    }


def _exporter_probes(port: str = METRICS) -> dict[str, Any]:
    often = {"periodSeconds": 30, "timeoutSeconds": 5, "failureThreshold": FAILURES}
    return {
        "livenessProbe": {"tcpSocket": {"port": port}} | often,
        "readinessProbe": {"httpGet": {"path": "/", "port": port}} | often,
    }
