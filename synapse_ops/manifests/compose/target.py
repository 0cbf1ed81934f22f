"""The compose file: the whole stack on one host, from the same settings as every other place.

Everything talks on an internal network without a way out; only the proxy and the dashboards have a published port.
Secrets are files beside the compose file, in `secrets/`: their names are rendered, never their contents.
"""

from __future__ import annotations

from typing import Any

from synapse_ops.manifests.compose.monitoring import monitoring_services
from synapse_ops.manifests.compose.prober import prober_service
from synapse_ops.manifests.compose.service import (
    INTERNAL,
    OUTSIDE,
    SECRETS_GROUP,
    SMALL,
    Service,
    Size,
    check,
    curl_check,
    escaped,
    healthy,
    helper_resources,
    mounted,
    part_resources,
    service,
)
from synapse_ops.manifests.compose.stores import store_services
from synapse_ops.manifests.compose.wal_receiver import wal_receiver_service
from synapse_ops.manifests.docker import health_command
from synapse_ops.manifests.document import Document, text_document, yaml_document
from synapse_ops.manifests.servers.postgres_container import roles_script, start_script
from synapse_ops.manifests.servers.tls import HTTP_PORT, INNER_HTTP_PORT, INNER_HTTPS_PORT, nginx_conf
from synapse_ops.manifests.stack.parts import (
    API,
    HTTPS_PORT,
    OPS,
    PRIMARY,
    QDRANT,
    REDIS,
    WAL_RECEIVER,
    WORKER,
    Address,
    authority_of,
    database_parts,
    has_wal_receiver,
    is_ours,
)
from synapse_ops.manifests.stack.probes import PERIOD_S, START_LIMIT, TIMEOUT_S, liveness, liveness_failures
from synapse_ops.manifests.stack.processes import (
    STOP_SIGNAL,
    USER_ID,
    api_command,
    api_grace_s,
    application_secrets,
    environment,
    log_rotation_command,
    worker_command,
    worker_grace_s,
)
from synapse_ops.manifests.stack.units import whole_seconds
from synapse_ops.spec import Spec
from synapse_ops.spec.fixed import LOCAL_HOSTS, LOG_DIR, WORKER_METRICS_PORT

READS = frozenset(
    {
        "name", "server", "worker", "database", "redis", "qdrant", "docker", "kubernetes", "resources", "health",
        "failover", "firewall", "tls", "watch", "object_store", "grafana", "alerting", "logging", "backup",
    }
)  # fmt: skip
PROXY = "proxy"
_ROTATED_KIB = 256 << 10  # what Filebeat may be behind, when it was off, without that lines are missing
_APPLICATION_USER = f"{USER_ID}:{USER_ID}"
_ABOUT = f"""The whole stack on one host. Start: docker compose --file docker/compose.yaml up --detach --wait
Put each secret into docker/secrets/NAME first, mode 0440, group {SECRETS_GROUP}; the list ends this file."""


def render_compose(spec: Spec) -> tuple[Document, ...]:
    """Return the compose file and what only it mounts."""
    documents = [yaml_document("docker/compose.yaml", compose(spec), reads=READS, about=_ABOUT)]
    upstream = Address(API, spec.server.port)
    documents.append(text_document("docker/nginx.conf", nginx_conf(spec, upstream, in_container=True), READS))
    if is_ours(spec, "database", "compose"):
        scripts = {
            f"start-{node.removeprefix('db-')}.sh": start_script(spec, node, "compose") for node in database_parts(spec)
        }
        scripts["create-roles.sh"] = roles_script(spec)
        documents += [text_document(f"docker/{name}", text, READS) for name, text in scripts.items()]
    return tuple(documents)


def compose(spec: Spec) -> dict[str, Any]:
    """Return the compose file as data."""
    stores = store_services(spec)
    needed = [name for name in stores if name in (PRIMARY, REDIS, QDRANT)]  # a standby that is away stops nobody
    services = {
        PROXY: _proxy(spec),
        API: _api(spec, needed),
        WORKER: _worker(spec, needed),
        "log-rotation": _log_rotation(spec),
        **stores,
        OPS: prober_service(spec),
        **({WAL_RECEIVER: wal_receiver_service(spec)} if has_wal_receiver(spec) else {}),
        **monitoring_services(spec),
    }
    secrets = sorted({name for each in services.values() for name in each.get("secrets", ())})
    volumes = sorted(
        {
            mount["source"]
            for each in services.values()
            for mount in each.get("volumes", ())
            if mount["type"] == "volume"
        }
    )
    return {
        "name": spec.name,
        "services": {name: escaped(each) for name, each in services.items()},
        "networks": {INTERNAL: {"internal": True}, OUTSIDE: {"enable_ipv6": True} if _asks_by_ipv6(spec) else {}},
        "volumes": {name: {} for name in volumes},
        "secrets": {name: {"file": f"./secrets/{name}"} for name in secrets},
    }


def _asks_by_ipv6(spec: Spec) -> bool:
    """Tell whether a server elsewhere is given by an IPv6 address: a network of Docker's has IPv4 alone unless asked.
    Docker 27 and newer choose its prefix themselves.
    """
    hosts = [getattr(spec, store).host for store in ("database", "redis", "qdrant")]
    if not is_ours(spec, "database", "compose"):
        hosts += [authority_of(f"tcp://{address}").host for address in spec.database.nodes.values()]
    alerting = spec.alerting
    urls = [*spec.qdrant.nodes, *(check.url for check in spec.health), *spec.logging.elasticsearch]
    urls += [url for url in (spec.object_store.endpoint, alerting.webhook_url, alerting.heartbeat_url) if url]
    hosts += [authority_of(url if "://" in url else f"http://{url}").host for url in urls if not url.startswith("/")]
    return any(":" in host and not host.startswith("/") and host not in LOCAL_HOSTS for host in hosts)


def _proxy(spec: Spec) -> Service:
    return service(
        spec.docker.images.nginx,
        user="101:101",
        resources=helper_resources(SMALL),
        # answered by nginx itself, with the redirect: an API that is away does not make its proxy unhealthy
        healthcheck=curl_check(f"http://127.0.0.1:{INNER_HTTP_PORT}/", start_s=60),
        networks=(INTERNAL, OUTSIDE),
        ports=[f"{HTTP_PORT}:{INNER_HTTP_PORT}", f"{HTTPS_PORT}:{INNER_HTTPS_PORT}"],
        volumes=[mounted("./nginx.conf", "/etc/nginx/nginx.conf")],
        secrets=["tls.crt", "tls.key"],
        depends_on=healthy(API, restarts=True),
        stop_signal="SIGQUIT",  # lets requests end
        stop_grace_period=f"{whole_seconds(spec.server.timeout)}s",
    )


def _networks(spec: Spec) -> tuple[str, ...]:
    """The application needs a way out to stores that are elsewhere, and to what `firewall.egress` lists."""
    is_whole = all(is_ours(spec, store, "compose") for store in ("database", "redis", "qdrant"))
    return (INTERNAL,) if is_whole and not spec.firewall.egress else (INTERNAL, OUTSIDE)


def _api(spec: Spec, stores: list[str]) -> Service:
    probe = liveness(spec)
    command = api_command(spec)
    return service(
        spec.kubernetes.image,
        user=_APPLICATION_USER,
        resources=part_resources(spec),
        healthcheck=check(
            ("CMD", *health_command(spec)),
            interval_s=PERIOD_S,
            timeout_s=TIMEOUT_S if probe is None else probe.timeout_s,
            start_s=whole_seconds(START_LIMIT),
            retries=liveness_failures(spec),
        ),
        networks=_networks(spec),
        listens=[spec.server.port],
        entrypoint=[command[0]],
        command=list(command[1:]),
        environment=environment(spec, "compose"),
        secrets=[*application_secrets(spec), "ca.crt"],
        volumes=[{"type": "volume", "source": "application-logs", "target": LOG_DIR}],
        stop_signal=STOP_SIGNAL,
        stop_grace_period=f"{api_grace_s(spec)}s",
        **({"depends_on": healthy(*stores)} if stores else {}),
    )


def _worker(spec: Spec, stores: list[str]) -> Service:
    command = worker_command(spec)
    return service(
        spec.kubernetes.image,
        user=_APPLICATION_USER,
        resources=part_resources(spec),
        healthcheck=_worker_check(),
        networks=_networks(spec),
        listens=[WORKER_METRICS_PORT],
        entrypoint=[command[0]],
        command=list(command[1:]),
        environment=environment(spec, "compose") | {"SYNAPSE_WORKER_METRICS_PORT": str(WORKER_METRICS_PORT)},
        secrets=[*application_secrets(spec), "ca.crt"],
        volumes=[{"type": "volume", "source": "application-logs", "target": LOG_DIR}],
        stop_signal=STOP_SIGNAL,
        stop_grace_period=f"{worker_grace_s(spec)}s",
        **({"depends_on": healthy(*stores)} if stores else {}),
    )


def _log_rotation(spec: Spec) -> Service:
    """Return what keeps the log files of API and worker from filling the host's disk, shipped or not."""
    return service(
        spec.kubernetes.image,
        user=_APPLICATION_USER,
        resources=helper_resources(Size("0.1", "64M")),
        healthcheck=check(("CMD", "test", "-w", LOG_DIR), interval_s=60),
        network_mode="none",
        entrypoint=log_rotation_command(_ROTATED_KIB),
        volumes=[{"type": "volume", "source": "application-logs", "target": LOG_DIR}],
    )


def _worker_check() -> Service:
    connect = f"import socket; socket.create_connection(('127.0.0.1', {WORKER_METRICS_PORT}), 5)"
    return check(("CMD", "python", "-c", connect), interval_s=30, start_s=whole_seconds(START_LIMIT))
