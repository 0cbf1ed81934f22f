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
