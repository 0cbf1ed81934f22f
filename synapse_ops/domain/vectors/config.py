"""Does a copy's own configuration agree with the collection's? Vectors by name, size and distance; payload indexes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ShardSchema:
    """What the engine says of one shard. vectors: (size, distance) by name; indexes: type by payload field."""

    shard_id: int
    vectors: Mapping[str, tuple[int, str]]
    sparse: tuple[str, ...]
    indexes: Mapping[str, str]


def compare_config(
    config: Mapping[str, Any], payload_schema: Mapping[str, Any], shards: Sequence[ShardSchema]
) -> tuple[str, ...]:
    """Return every named difference between a collection's configuration and what its shards say; empty: they agree.

    config, payload_schema: Qdrant's own JSON. A field is indexed in the shard's segments or it is not indexed there at
    all; further ones are differences too.
    """
    params = config["params"]
    vectors = params.get("vectors") or {}
    named = {"": vectors} if "size" in vectors else vectors
    wanted = {name: (int(one["size"]), str(one["distance"])) for name, one in named.items()}
    sparse = sorted(params.get("sparse_vectors") or {})
    indexes = {field: str(entry["data_type"]) for field, entry in payload_schema.items()}
    found: list[str] = []
    for shard in shards:
        where = f"shard {shard.shard_id}: "
        found += [where + text for text in _compare("vector", wanted, shard.vectors)]
        if sparse != sorted(shard.sparse):
            found.append(f"{where}sparse vectors {', '.join(shard.sparse) or 'none'}, expected {', '.join(sparse)}")
        found += [where + text for text in _compare("payload index", indexes, shard.indexes)]
    return tuple(found)


def _compare(kind: str, expected: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    found = []
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            is_what = _words(actual.get(name))
            found.append(f"{kind} {name or '(unnamed)'}: {is_what}, expected {_words(expected.get(name))}")
    return found


def _words(value: Any) -> str:
    return "none" if value is None else " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


OWN_METADATA = "synapse_ops"  # whose life a collection is; a restored one is another life
RESTORE_MARK = "synapse_ops_restore"  # metadata of a collection while a restore fills it: that restore's token
_RENAMED = {"optimizer_config": "optimizers_config"}
_NOT_AT_CREATION = {"read_fan_out_factor", "read_fan_out_delay_ms"}  # of params; set by an update
_LAST = "strict_mode_config"  # it may forbid what a comparison of the new collection asks


def creation_body(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body that makes an empty collection of this configuration. config: as Qdrant reports it.

    Without its strict mode, which `update_body` puts back once the collection has been compared.
    """
    params = {key: value for key, value in config["params"].items() if key not in _NOT_AT_CREATION}
    rest = {_RENAMED.get(key, key): value for key, value in config.items() if key not in {"params", "metadata", _LAST}}
    own = {OWN_METADATA, RESTORE_MARK}
    metadata = {key: value for key, value in (config.get("metadata") or {}).items() if key not in own}
    body = {**params, **rest, "metadata": metadata}
    return {key: value for key, value in body.items() if value not in (None, {})}


def update_body(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be set once the collection is filled and compared; empty when there is nothing."""
    late = {key: config["params"][key] for key in sorted(_NOT_AT_CREATION) if config["params"].get(key) is not None}
    strict = config.get(_LAST)
    return ({"params": late} if late else {}) | ({_LAST: strict} if strict else {})


def index_schema(entry: Mapping[str, Any]) -> str | dict[str, Any]:
    """Return the request for a payload index, from how Qdrant reports one."""
    return dict(entry["params"]) if entry.get("params") else str(entry["data_type"])


def parse_version(text: str) -> tuple[int, ...]:
    """Return the numbers of `1.18.3` or `0.6.0`, so that versions compare; raises ValueError for another form."""
    return tuple(int(part) for part in text.split("-")[0].split("."))
