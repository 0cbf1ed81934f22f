"""The spec as our own services read it in a container: the same, with the addresses and files that are valid there.

Inside a container `localhost` is the container. Every store that is part of the stack is therefore named as the others
name it (parts.py), and every secret and certificate that the service needs is a file below /run/secrets. All else is
the operator's own word. The file holds every value, defaults included: a command that is run in the container must not
find a default where the operator had chosen, such as backups without encryption.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from synapse_ops.manifests.stack.parts import (
    API,
    OPS,
    QDRANT,
    REDIS,
    PlaceName,
    address_of,
    is_ours,
    node_addresses,
)
from synapse_ops.manifests.stack.processes import QDRANT_API_KEY, REDIS_PASSWORD, SECRETS_DIR, every_address
from synapse_ops.manifests.stack.secret_files import TOKEN
from synapse_ops.manifests.yaml_text import write_entries
from synapse_ops.spec import Spec
from synapse_ops.spec.secrets import SecretRef

READS = frozenset(Spec.model_fields)
SPEC_DIR = "/etc/synapse"
SPEC_FILE = "infrastructure.yaml"
STATE_DIR = "/var/lib/synapse-ops"

DATABASE_ADMIN = "database-admin-url"
DATABASE_REPLICATION = "database-replication-url"
OBJECT_STORE_CREDENTIALS = "object-store-credentials"
OBJECT_STORE_CA, QDRANT_CA, WATCH_CA = "object-store-ca.crt", "qdrant-ca.crt", "watch-ca.crt"
STACK_CA, CERTIFICATE = "ca.crt", "tls.crt"

_FIELDS = {  # what each of them is in the spec; the stack's own authority is named where it is needed
    TOKEN: ("alerting", "webhook_token"),
    OBJECT_STORE_CREDENTIALS: ("object_store", "credentials"),
    DATABASE_ADMIN: ("database", "admin"),
    DATABASE_REPLICATION: ("database", "replication"),
    REDIS_PASSWORD: ("redis", "password"),
    QDRANT_API_KEY: ("qdrant", "api_key"),
    CERTIFICATE: ("tls", "cert_file"),
    OBJECT_STORE_CA: ("object_store", "ca_file"),
    WATCH_CA: ("watch", "ca_file"),
    QDRANT_CA: ("qdrant", "ca_file"),
}


def service_command(module: str) -> tuple[str, ...]:
    """Return the command line of a service of ours in a container."""
    return (
        "python",
        "-m",
        f"synapse_ops.services.{module}",
        "--spec",
        f"{SPEC_DIR}/{SPEC_FILE}",
        "--state-dir",
        STATE_DIR,
    )


def answers_command(port: int, path: str) -> tuple[str, ...]:
    """Return a command that exits with 0 when a service answers; its image has Python and no HTTP client."""
    url = f"http://127.0.0.1:{port}{path}"
    return ("python", "-c", f"from urllib.request import urlopen; urlopen({url!r}, timeout=5)")


def container_spec(spec: Spec, place: PlaceName, mounted: Sequence[str]) -> Spec:
    """Return the spec with the addresses, files and references that are valid in a container.

    mounted: names of files below /run/secrets. A reference to what is not there stays the operator's: who needs it in
    the container brings it along.
    """
    blocks: dict[str, Any] = {name: getattr(spec, name) for name in Spec.model_fields}
    addresses = {
        "database": _database(spec, place),
        "redis": {"host": address_of(spec, REDIS, place).host},
        "qdrant": _qdrant(spec, place),
        "watch": {"host": every_address(spec.watch.host), "port": address_of(spec, OPS, place).port},
    }
    changes = _files(mounted)
    for name in addresses.keys() | changes.keys():
        blocks[name] = blocks[name].model_copy(update=changes.get(name, {}) | addresses.get(name, {}))
    blocks["health_base_url"] = f"http://{address_of(spec, API, place)}"
    return Spec.model_construct(**blocks)


def container_spec_text(told: Spec, program: str) -> str:
    """Return it as YAML, every value written out, a block on each line. program: who reads it, for people.

    Names below a block are quoted: a bare `password:` in a ConfigMap is taken for a secret, whatever follows it.
    """
    about = (
        f"# The spec as the {program} reads it: addresses and files are those of its container. Rendered; edit the "
        "spec.\n# The stack's own copy is the one to render from.\n"
    )
    return about + write_entries(_plain(told.model_dump(mode="json")))


def _database(spec: Spec, place: PlaceName) -> dict[str, Any]:
    """The nodes are named one by one, so that the superuser's URL may carry any host."""
    if not is_ours(spec, "database", place):
        return {}
    addresses = node_addresses(spec, place)
    nodes = {name: str(address) for name, address in zip(spec.failover.nodes, addresses, strict=True)}
    return {"host": addresses[0].host, "nodes": nodes}


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
