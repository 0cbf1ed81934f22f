"""What the prober is in a container: its command, its port, the files that it opens."""

from __future__ import annotations

from synapse_ops.manifests.stack.container_spec import (
    CERTIFICATE,
    DATABASE_ADMIN,
    DATABASE_REPLICATION,
    OBJECT_STORE_CA,
    OBJECT_STORE_CREDENTIALS,
    QDRANT_CA,
    STACK_CA,
    WATCH_CA,
    answers_command,
    container_spec,
    container_spec_text,
    service_command,
)
from synapse_ops.manifests.stack.parts import PlaceName, is_ours
from synapse_ops.manifests.stack.processes import QDRANT_API_KEY, REDIS_PASSWORD
from synapse_ops.manifests.stack.secret_files import TOKEN
from synapse_ops.spec import Spec
from synapse_ops.spec.fixed import OPS_METRICS_PORT


def prober_command() -> tuple[str, ...]:
    """Return the prober's command line in a container."""
    return service_command("watch")


def prober_port(spec: Spec) -> int:
    """Return the port of its metrics: a number always, since nobody could be told of a free one."""
    return spec.watch.port or OPS_METRICS_PORT


def health_command(spec: Spec) -> tuple[str, ...]:
    """Return a command that exits with 0 when the prober answers."""
    return answers_command(prober_port(spec), "/healthz")


def prober_secrets(spec: Spec, place: PlaceName) -> tuple[str, ...]:
    """Return the names of the files below /run/secrets that the prober opens, each once. What is not watched has none:
    a superuser's password does not lie where nobody uses it. Decryption keys are never among them.
    """
    watched = set(spec.watch.servers)
    follows = spec.failover.standby is not None and spec.failover.manager == "external"  # it looks who takes writes
    wanted = {
        TOKEN: True,
        OBJECT_STORE_CREDENTIALS: True,
        DATABASE_ADMIN: follows or bool(watched & {"nodes", "replication"}),
        DATABASE_REPLICATION: spec.database.replication is not None,
        REDIS_PASSWORD: "redis" in watched and spec.redis.password is not None,
        QDRANT_API_KEY: "qdrant" in watched and spec.qdrant.api_key is not None,
        STACK_CA: True,
        CERTIFICATE: "certificates" in watched,
        OBJECT_STORE_CA: spec.object_store.ca_file is not None,
        WATCH_CA: spec.watch.ca_file is not None,
        QDRANT_CA: spec.qdrant.ca_file is not None and not is_ours(spec, "qdrant", place),
    }
    return tuple(name for name, is_wanted in wanted.items() if is_wanted)


def prober_spec(spec: Spec, place: PlaceName) -> Spec:
    """Return the spec as the prober reads it."""
    return container_spec(spec, place, prober_secrets(spec, place))


def prober_spec_text(spec: Spec, place: PlaceName) -> str:
    """Return it as the file that the prober is given."""
    return container_spec_text(prober_spec(spec, place), "prober")
