"""The application's processes: their command lines, environment, and the time that they are given to end.

A command line is what the spec's `server` and `worker` blocks mean to uvicorn and to the worker; it holds no secret:
passwords reach the application as files below /run/secrets, named by `..._FILE` variables.
"""

from __future__ import annotations

from urllib.parse import quote, urlencode

from synapse_ops.manifests.stack.parts import QDRANT, REDIS, PlaceName, address_of, database_nodes, qdrant_scheme
from synapse_ops.manifests.stack.units import milliseconds, whole_seconds
from synapse_ops.spec import Spec
from synapse_ops.spec.fixed import LOG_DIR

SECRETS_DIR = "/run/secrets"
USER_ID = 10001  # above what hosts give to people and services, so that an escaped process owns nothing
STOP_SIGNAL = "SIGTERM"
DRAIN_S = 5  # a load balancer's endpoints lag behind a pod's end by a second or two
CONNECT_TIMEOUT_S = 5
KEEPALIVES_S = 10  # idle time, then three probes of 5 s: a dead peer is known after 25 s

# Whose word on a client's address and scheme counts: private networks, where the proxy and the entry's controller are.
# A client that a load balancer leaves its own public address is not believed.
_PROXIES = "127.0.0.1,::1,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7"
DATABASE_PASSWORD = "database-password"  # noqa: S105 - names of secrets, not secrets
REDIS_PASSWORD = "redis-password"  # noqa: S105
QDRANT_API_KEY = "qdrant-api-key"


def every_address(host: str) -> str:
    """Return what a server listens on in a container: all addresses, whatever the spec says of the host, since whoever
    asks is in another container. `::` stays, for networks without IPv4.
    """
    return host if host == "::" else "0.0.0.0"  # noqa: S104 - of a container's own networks


def api_command(spec: Spec) -> tuple[str, ...]:
    """Return uvicorn's command line in a container. At `::` a single process would take IPv6 alone, where several take
    both families; at an empty name it is the other way round.

    `server.timeout` is how long a request may still run when the process is told to end; that no request is longer is
    kept by the proxy in front, because uvicorn has no such limit.
    """
    server = spec.server
    options: dict[str, object] = {
        "--host": "" if server.host == "::" and server.workers == 1 else every_address(server.host),
        "--port": server.port,
        "--workers": server.workers,
        "--forwarded-allow-ips": _PROXIES,
        "--timeout-keep-alive": whole_seconds(server.keepalive),
        "--timeout-graceful-shutdown": whole_seconds(server.timeout),
    }
    flags = [str(part) for option in options.items() for part in option]
    return ("uvicorn", spec.docker.application, *flags, "--no-server-header")


def application_processes(spec: Spec) -> int:
    """Return how many processes of API and worker there are at most, each with connections of its own."""
    pods = spec.autoscaling.max_replicas if spec.autoscaling else spec.kubernetes.replicas
    return pods * spec.server.workers + spec.kubernetes.worker_replicas * spec.worker.processes


def worker_command(spec: Spec) -> tuple[str, ...]:
    """Return the worker's command line: the module's own, without options; it reads its environment."""
    return ("python", "-m", spec.docker.worker_module)


def log_rotation_command(kib: int) -> list[str]:
    """Return what keeps each log file of the application below twice that size. A file is copied and emptied: no
    program need reopen it. A signal ends a container's first process only where it asks.
    """
    script = f"""\
trap 'exit 0' TERM
while :; do
  find {LOG_DIR} -type f ! -name '*.1' -size +{kib}k -exec sh -c 'cp "$1" "$1.1" && : >"$1"' sh {{}} \\;
  sleep 10 & wait $!
done
"""
    return ["sh", "-euc", script]


def api_grace_s(spec: Spec) -> int:
    """Return how long the API may take to end: drained, then its longest request, then a rest."""
    return DRAIN_S + whole_seconds(spec.server.timeout) + 5


def worker_grace_s(spec: Spec) -> int:
    """Return how long the worker may take to end: its longest job and a rest."""
    return whole_seconds(spec.worker.timeout) + 5


def environment(spec: Spec, place: PlaceName) -> dict[str, str]:
    """Return what API and worker are told, without a secret."""
    redis, qdrant = address_of(spec, REDIS, place), address_of(spec, QDRANT, place)
    told = {
        "SYNAPSE_DATABASE_URL": database_url(spec, place),
        "SYNAPSE_DATABASE_PASSWORD_FILE": f"{SECRETS_DIR}/{DATABASE_PASSWORD}",
        "SYNAPSE_DATABASE_POOL_SIZE": str(spec.database.pool_size),
        "SYNAPSE_DATABASE_MAX_CONNECTIONS": str(spec.database.max_connections),
        "SYNAPSE_REDIS_URL": f"redis://{redis}/{spec.redis.db}",
        "SYNAPSE_REDIS_MAX_CONNECTIONS": str(spec.redis.max_connections),
        "SYNAPSE_REDIS_TIMEOUT_MS": str(milliseconds(spec.redis.timeout)),
        "SYNAPSE_QDRANT_URL": f"{qdrant_scheme(spec, place)}://{qdrant}",
        "SYNAPSE_QDRANT_COLLECTION": spec.qdrant.collection,
        "SYNAPSE_WORKER_PROCESSES": str(spec.worker.processes),
        "SYNAPSE_WORKER_THREADS": str(spec.worker.threads),
        "SYNAPSE_WORKER_QUEUE_SIZE": str(spec.worker.queue_size),
        "SYNAPSE_WORKER_TIMEOUT_S": str(whole_seconds(spec.worker.timeout)),
    }
    if spec.redis.password is not None:
        told["SYNAPSE_REDIS_PASSWORD_FILE"] = f"{SECRETS_DIR}/{REDIS_PASSWORD}"
    if spec.qdrant.api_key is not None:
        told["SYNAPSE_QDRANT_API_KEY_FILE"] = f"{SECRETS_DIR}/{QDRANT_API_KEY}"
    return told


def application_secrets(spec: Spec) -> tuple[str, ...]:
    """Return the names of the secrets that API and worker read."""
    names = [DATABASE_PASSWORD]
    names += [REDIS_PASSWORD] if spec.redis.password is not None else []
    names += [QDRANT_API_KEY] if spec.qdrant.api_key is not None else []
    return tuple(names)


def database_url(spec: Spec, place: PlaceName) -> str:
    """Return the libpq URL of the application: it tries every node and keeps the one that takes writes.

    After a failover a broken session is made anew by the same URL. The timeouts bound how long a client believes in a
    node that is gone: PostgreSQL docs, "Multiple Hosts" and "Parameter Key Words".
    """
    nodes = database_nodes(spec, place)
    base = {
        "target_session_attrs": "read-write",
        "connect_timeout": CONNECT_TIMEOUT_S,
        "tcp_user_timeout": 2 * CONNECT_TIMEOUT_S * 1000,
        "keepalives": 1,
        "keepalives_idle": KEEPALIVES_S,
        "keepalives_interval": CONNECT_TIMEOUT_S,
        "keepalives_count": 3,
        "sslmode": "verify-full",
        "sslrootcert": "system" if place == "hosts" else f"{SECRETS_DIR}/ca.crt",
        "application_name": spec.name,
    }
    if nodes[0].host.startswith("/"):  # a socket: no network, no TLS
        base = {"host": nodes[0].host, "port": nodes[0].port, "application_name": spec.name}
    hosts = "" if nodes[0].host.startswith("/") else ",".join(str(node) for node in nodes)
    user, database = quote(spec.database.user, safe=""), quote(spec.database.name, safe="")
    return f"postgresql://{user}@{hosts}/{database}?{urlencode(base, quote_via=quote, safe='/')}"
