"""`<state_dir>/infrastructure.yaml`: the spec of the embedded stack. Everything else knows only that spec.

The first time it is the example (examples/synapse/infrastructure.yaml) with its addresses replaced; afterwards only
the addresses are renewed, so that an operator's edits of schedules or retention stay.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from synapse_ops.errors import ConfigError
from synapse_ops.local.credentials import read_or_make_password, write_secret
from synapse_ops.local.layout import StackLayout
from synapse_ops.local.servers.databases import (
    APP_DATABASE,
    APP_USER,
    OPS_DATABASE,
    OPS_USER,
    REPLICATION_USER,
    SUPERUSER,
)
from synapse_ops.local.servers.vectors import vector_key_file

EXAMPLE = Path(__file__).parents[2] / "examples" / "synapse" / "infrastructure.yaml"
FAILOVER = {"cool_down": "0s", "max_per_hour": 60}  # the demo and `chaos` fail over as often as a person likes


def write_spec(layout: StackLayout, ports: Mapping[str, int]) -> None:
    """Write the spec and the secret files that it refers to; unchanged files are left alone.

    Raises ConfigError when the operator's edits are not YAML any more.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.representer import RoundTripRepresenter

    class Representer(RoundTripRepresenter):
        """Writes null as the word: the spec refuses an empty value, which may be a value forgotten."""

    Representer.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))

    secrets = layout.secrets
    _write_changed(
        secrets / "database-admin.url",
        _postgres_url(layout, (ports["db-primary"], ports["db-standby"]), SUPERUSER, "postgres.password", "postgres"),
    )
    _write_changed(
        secrets / "dagster-storage.url", _postgres_url(layout, (ports["ops"],), OPS_USER, "ops-password", OPS_DATABASE)
    )
    key = read_or_make_password(secrets, "s3.password")
    _write_changed(
        secrets / "object-store.credentials",
        f"[default]\naws_access_key_id = synapse\naws_secret_access_key = {key}\n",
    )
    yaml = YAML()
    yaml.Representer = Representer
    yaml.preserve_quotes = True
    yaml.width = 160
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), _write_null)
    try:
        document = yaml.load(_source(layout)) or {}
    except YAMLError as error:
        raise ConfigError(
            f"cannot read {layout.spec_file}: it is not YAML",
            detail=str(error),
            hint="Correct it, or remove it: the next `synapse-ops local up` writes a new one.",
        ) from error
    for block, values in _addresses(layout, ports).items():
        _merge(document, block, values)
    if not layout.spec_file.exists():
        _merge(document, "failover", FAILOVER)
    for name, root in {"log_roots": layout.logs, "temp_roots": layout.temp}.items():
        if not document.get("cleanup", {}).get(name):
            _merge(document, "cleanup", {name: [str(root)]})
    text = io.StringIO()
    yaml.dump(document, text)
    if not layout.spec_file.exists() or layout.spec_file.read_text(encoding="utf-8") != text.getvalue():
        making = layout.spec_file.with_suffix(".making")
        making.write_text(text.getvalue(), encoding="utf-8")
        making.replace(layout.spec_file)


def _write_null(representer: Any, _: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")  # the spec takes an empty value for a slip


def _source(layout: StackLayout) -> str:
    for place in (layout.spec_file, EXAMPLE):
        if place.is_file():
            return place.read_text(encoding="utf-8")
    return "name: synapse\n"


def _addresses(layout: StackLayout, ports: Mapping[str, int]) -> dict[str, Any]:
    secrets = layout.secrets
    return {
        "database": {
            "host": "127.0.0.1",
            "port": ports["db-primary"],
            "name": APP_DATABASE,
            "user": APP_USER,
            "admin": f"file:{secrets / 'database-admin.url'}",
            "replication_user": REPLICATION_USER,
            "nodes": {name: f"127.0.0.1:{ports[name]}" for name in ("db-primary", "db-standby")},
        },
        "tls": {"cert_file": str(layout.authority), "key_file": str(layout.data / "tls" / "server.key")},
        "redis": {
            "host": "127.0.0.1",
            "port": ports["redis"],
            "password": f"file:{secrets / 'redis.password'}",
        },
        "qdrant": {
            "host": "127.0.0.1",
            "port": ports["qdrant"],
            "tls": False,
            "api_key": f"file:{vector_key_file(layout)}",
            "nodes": [],
        },
        "object_store": {
            "endpoint": f"http://127.0.0.1:{ports['s3.port']}",
            "credentials": f"file:{secrets / 'object-store.credentials'}",
        },
        "watch": {"host": "127.0.0.1", "port": ports["watch"]},
        "health_base_url": f"http://127.0.0.1:{ports['api']}",
    }


def _merge(document: Any, block: str, values: Any) -> None:
    if not isinstance(values, dict):
        document[block] = values
        return
    if not isinstance(document.get(block), dict):
        document[block] = {}
    for name, value in values.items():
        document[block][name] = value


def _postgres_url(layout: StackLayout, ports: tuple[int, ...], user: str, password_name: str, database: str) -> str:
    """Return the address of a server; of several nodes, that of the one which takes writes."""
    password = read_or_make_password(layout.secrets, password_name)
    authority = quote(str(layout.authority), safe="/")
    places = ",".join(f"127.0.0.1:{port}" for port in ports)
    writes = "&target_session_attrs=read-write" if len(ports) > 1 else ""
    return f"postgresql://{user}:{password}@{places}/{database}?sslmode=verify-full&sslrootcert={authority}{writes}\n"


def _write_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_secret(path, text)
