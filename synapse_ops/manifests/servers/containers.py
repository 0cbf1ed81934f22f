"""How Redis and Qdrant are started in a container, in compose and in the cluster alike."""

from __future__ import annotations

from synapse_ops.manifests.stack.processes import QDRANT_API_KEY, REDIS_PASSWORD, SECRETS_DIR
from synapse_ops.spec import Spec

REDIS_EXPORTER_PASSWORDS = "redis-exporter-passwords.json"


def redis_start(spec: Spec, config: str) -> list[str]:
    """Return the command that starts Redis; a password goes in through its standard input, never through argv."""
    if spec.redis.password is None:
        return ["redis-server", config]
    escaped_password = f"$(cat {SECRETS_DIR}/{REDIS_PASSWORD} | sed 's/[\\\\\"]/\\\\&/g')"  # as redis.conf quotes
    script = f'exec redis-server - <<EOF\n$(cat {config})\nrequirepass "{escaped_password}"\nEOF\n'
    return ["sh", "-euc", script]


def redis_ping(spec: Spec) -> list[str]:
    """Return a command that exits with 0 when Redis answers."""
    login = "" if spec.redis.password is None else f'REDISCLI_AUTH="$(cat {SECRETS_DIR}/{REDIS_PASSWORD})" '
    return ["sh", "-euc", f'[ "$({login}redis-cli -p {spec.redis.port} ping)" = PONG ]']


def qdrant_start(spec: Spec) -> list[str]:
    """Return the command that starts Qdrant; its key is read from a file into its own environment."""
    run = "exec /qdrant/entrypoint.sh --config-path /etc/qdrant/config.yaml"
    if spec.qdrant.api_key is None:
        return ["bash", "-euc", run]
    return ["bash", "-euc", f'export QDRANT__SERVICE__API_KEY="$(cat {SECRETS_DIR}/{QDRANT_API_KEY})"; {run}']


def qdrant_environment(spec: Spec) -> dict[str, str]:
    """Return where the read-only image may write, and its certificate in a container."""
    told = {"QDRANT_INIT_FILE_PATH": "/tmp/.qdrant-initialized"}  # noqa: S108 - the container's own
    if spec.qdrant.tls:
        told |= {"QDRANT__TLS__CERT": f"{SECRETS_DIR}/tls.crt", "QDRANT__TLS__KEY": f"{SECRETS_DIR}/tls.key"}
    return told
