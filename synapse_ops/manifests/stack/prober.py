"""The spec as the prober reads it in a container: the same, with the addresses and files that are valid there.

Inside a container `localhost` is the container. Every store that is part of the stack is therefore named as the others
name it (parts.py), and every secret and certificate that the prober needs is a file below /run/secrets. All else is
the operator's own word. The file holds every value, defaults included: a command that is run in the container must not
find a default where the operator had chosen, such as backups without encryption.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from synapse_ops.manifests.stack.parts import API, PRIMARY, QDRANT, REDIS, STANDBY, PlaceName, address_of, is_ours
from synapse_ops.manifests.stack.processes import QDRANT_API_KEY, REDIS_PASSWORD, SECRETS_DIR, every_address
from synapse_ops.manifests.stack.secret_files import TOKEN
from synapse_ops.manifests.yaml_text import write_entries
from synapse_ops.spec import Spec
from synapse_ops.spec.fixed import OPS_METRICS_PORT
from synapse_ops.spec.secrets import SecretRef

READS = frozenset(Spec.model_fields)
SPEC_DIR = "/etc/synapse"
SPEC_FILE = "infrastructure.yaml"
STATE_DIR = "/var/lib/synapse-ops"

DATABASE_ADMIN = "database-admin-url"
OBJECT_STORE_CREDENTIALS = "object-store-credentials"
OBJECT_STORE_CA, QDRANT_CA, WATCH_CA = "object-store-ca.crt", "qdrant-ca.crt", "watch-ca.crt"
STACK_CA, CERTIFICATE = "ca.crt", "tls.crt"

_FIELDS = {  # what each of them is in the spec; the stack's own authority is named where it is needed
    TOKEN: ("alerting", "webhook_token"),
    OBJECT_STORE_CREDENTIALS: ("object_store", "credentials"),
    DATABASE_ADMIN: ("database", "admin"),
    REDIS_PASSWORD: ("redis", "password"),
    QDRANT_API_KEY: ("qdrant", "api_key"),
    CERTIFICATE: ("tls", "cert_file"),
    OBJECT_STORE_CA: ("object_store", "ca_file"),
    WATCH_CA: ("watch", "ca_file"),
    QDRANT_CA: ("qdrant", "ca_file"),
}

ABOUT = """The spec as the prober reads it: addresses and files are those of its container. Rendered; edit the spec.
The stack's own copy is the one to render from."""


def prober_command() -> tuple[str, ...]:
    """Return the prober's command line in a container."""
    return (
        *("python", "-m", "synapse_ops.services.watch"),
        *("--spec", f"{SPEC_DIR}/{SPEC_FILE}", "--state-dir", STATE_DIR),
    )


def prober_port(spec: Spec) -> int:
    """Return the port of its metrics: a number always, since nobody could be told of a free one."""
    return spec.watch.port or OPS_METRICS_PORT


def health_command(spec: Spec) -> tuple[str, ...]:
    """Return a command that exits with 0 when the prober answers; its image has Python and no HTTP client."""
    url = f"http://127.0.0.1:{prober_port(spec)}/healthz"
    return ("python", "-c", f"from urllib.request import urlopen; urlopen({url!r}, timeout=5)")


def prober_secrets(spec: Spec, place: PlaceName) -> tuple[str, ...]:
    """Return the names of the files below /run/secrets that the prober opens, each once. What is not watched has none:
    a superuser's password does not lie where nobody uses it. Decryption keys are never among them.
    """
    watched = set(spec.watch.servers)
    wanted = {
        TOKEN: True,
        OBJECT_STORE_CREDENTIALS: True,
        DATABASE_ADMIN: bool(watched & {"nodes", "replication"}),
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
    """Return the spec with the addresses, files and references that are valid in the prober's container.

    A reference to what is not mounted there stays the operator's: who needs it in the container brings it along.
    """
    blocks: dict[str, Any] = {name: getattr(spec, name) for name in Spec.model_fields}
    addresses = {
        "database": _database(spec, place),
        "redis": {"host": address_of(spec, REDIS, place).host},
        "qdrant": _qdrant(spec, place),
        "watch": {"host": every_address(spec.watch.host), "port": prober_port(spec)},
    }
    changes = _files(prober_secrets(spec, place))
    for name in addresses.keys() | changes.keys():
        blocks[name] = blocks[name].model_copy(update=changes.get(name, {}) | addresses.get(name, {}))
    blocks["health_base_url"] = f"http://{address_of(spec, API, place)}"
    return Spec.model_construct(**blocks)


def prober_spec_text(spec: Spec, place: PlaceName) -> str:
    """Return it as YAML, every value written out, a block on each line.

    Names below a block are quoted: a bare `password:` in a ConfigMap is taken for a secret, whatever follows it.
    """
    about = "".join(f"# {line}\n" for line in ABOUT.splitlines())
    return about + write_entries(_plain(prober_spec(spec, place).model_dump(mode="json")))


def _database(spec: Spec, place: PlaceName) -> dict[str, Any]:
    """The nodes are named one by one, so that the superuser's URL may carry any host."""
    if not is_ours(spec, "database", place):
        return {}
    primary, standby = address_of(spec, PRIMARY, place), address_of(spec, STANDBY, place)
    return {"host": primary.host, "nodes": {spec.failover.primary: str(primary), spec.failover.standby: str(standby)}}


def _qdrant(spec: Spec, place: PlaceName) -> dict[str, Any]:
    if not is_ours(spec, "qdrant", place):
        return {}
    ca_file = f"{SECRETS_DIR}/{STACK_CA}" if spec.qdrant.tls else None
    return {"host": address_of(spec, QDRANT, place).host, "nodes": (), "ca_file": ca_file}


def _files(mounted: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return by block and field what lies below /run/secrets."""
    changes: dict[str, dict[str, Any]] = {}
    for name in mounted:
        if name in _FIELDS:
            block, field = _FIELDS[name]
            path = f"{SECRETS_DIR}/{name}"
            changes.setdefault(block, {})[field] = path if field.endswith("_file") else SecretRef("file", path)
    return changes


def _plain(value: Any) -> Any:
    """Return the value with each ratio as a decimal number: how a float is printed is not ours to promise."""
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, dict):
        return {key: _plain(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_plain(below) for below in value]
    return value
