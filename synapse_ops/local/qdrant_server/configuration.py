"""What a collection's configuration may be: checked, completed with a real server's defaults, and put to the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synapse_ops.local.qdrant_server.answers import BadBody, Invalid, NotSpoken

DISTANCES = ("Cosine", "Euclid", "Dot", "Manhattan")
LARGEST_VECTOR = 65536
HNSW = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000, "max_indexing_threads": 0, "on_disk": False}
OPTIMIZERS: dict[str, Any] = {
    "deleted_threshold": 0.2,
    "vacuum_min_vector_number": 1000,
    "default_segment_number": 0,
    "max_segment_size": None,
    "memmap_threshold": None,
    "indexing_threshold": 10000,
    "flush_interval_sec": 5,
    "max_optimization_threads": None,
    "prevent_unoptimized": None,
}
WAL = {"wal_capacity_mb": 32, "wal_segments_ahead": 0, "wal_retain_closed": 1}


def check_name(name: str) -> str:
    """Return a collection's name. Raises Invalid as a real server does, and for what would not be one folder."""
    for character in '<>:"/\\|?*\0\x1f':
        if character in name:
            raise Invalid("path parameters", "collection_name", f'collection name cannot contain "{character}" char')
    if not name or len(name.encode()) > 200 or name in (".", ".."):
        raise Invalid("path parameters", "collection_name", "collection name is empty, too long, or a folder's")
    return name


def new_config(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole configuration of a new collection. body: of PUT /collections/<name>."""
    if body.get("shard_number", 1) not in (1, None):
        raise NotSpoken(f"shard_number {body['shard_number']}: it keeps one shard per collection")
    if body.get("replication_factor", 1) not in (1, None):
        raise NotSpoken(f"replication_factor {body['replication_factor']}: it is a single node")
    if body.get("sharding_method") not in (None, "auto"):
        raise NotSpoken(f"sharding_method {body['sharding_method']}")
    params: dict[str, Any] = {
        "vectors": _vectors(body.get("vectors")),
        "shard_number": 1,
        "replication_factor": 1,
        "write_consistency_factor": 1,
        "on_disk_payload": body.get("on_disk_payload", True) is not False,
    }
    if body.get("sparse_vectors"):
        params["sparse_vectors"] = {str(name): given or {} for name, given in body["sparse_vectors"].items()}
    config: dict[str, Any] = {
        "params": params,
        "hnsw_config": HNSW | _given(body, "hnsw_config"),
        "optimizer_config": OPTIMIZERS | _given(body, "optimizers_config"),
        "wal_config": WAL | _given(body, "wal_config"),
        "quantization_config": body.get("quantization_config"),
    }
    for name in ("strict_mode_config", "metadata"):
        if body.get(name) is not None:
            config[name] = body[name]
    return config


def changed_config(config: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration after PATCH /collections/<name>; vectors stay as they are."""
    changed = dict(config)
    for name, key in (("hnsw_config", "hnsw_config"), ("optimizers_config", "optimizer_config")):
        changed[key] = {**changed[key], **_given(body, name)}
    for name in ("quantization_config", "strict_mode_config"):
        if body.get(name) is not None:
            changed[name] = body[name]
    if body.get("metadata") is not None:
        merged = {**(changed.get("metadata") or {}), **body["metadata"]}
        changed["metadata"] = {key: value for key, value in merged.items() if value is not None}  # as payloads merge
    return changed


def _given(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    given = body.get(name) or {}
    if not isinstance(given, dict):
        raise BadBody(f"{name} is not an object")
    return {key: value for key, value in given.items() if value is not None}


def _vectors(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if isinstance(given, dict) and "size" in given:
        return _vector(given)
    if isinstance(given, dict) and all(isinstance(vector, dict) for vector in given.values()):
        return {str(name): _vector(vector) for name, vector in given.items()}
    raise BadBody("data did not match any variant of untagged enum VectorsConfig")


def _vector(given: Mapping[str, Any]) -> dict[str, Any]:
    size, distance = given.get("size"), given.get("distance")
    if not isinstance(size, int) or not 1 <= size <= LARGEST_VECTOR or distance not in DISTANCES:
        raise BadBody("data did not match any variant of untagged enum VectorsConfig")
    return {key: value for key, value in given.items() if value is not None}


def engine_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engine's own file, edge_config.json, of a new shard."""
    vectors = config["params"]["vectors"]
    named = {"": vectors} if "size" in vectors else vectors
    sparse = {
        name: {key: value for key, value in given.items() if key != "index"} | (given.get("index") or {})
        for name, given in config["params"].get("sparse_vectors", {}).items()
    }
    made: dict[str, Any] = {"vectors": named, "sparse_vectors": sparse}
    if config.get("quantization_config"):
        made["quantization_config"] = config["quantization_config"]
    return made


def vector_names(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the names of the dense and of the sparse vectors; the unnamed one is an empty name."""
    vectors = config["params"].get("vectors") or {}
    return ([""] if "size" in vectors else sorted(vectors)), sorted(config["params"].get("sparse_vectors") or {})


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Return why a snapshot's data does not fit into a collection, or nothing when it does."""
    for what, key in (("vectors", "vectors"), ("sparse vectors", "sparse_vectors"), ("shard number", "shard_number")):
        ours, its = _shape(mine["params"].get(key)), _shape(theirs["params"].get(key))
        if ours != its:
            return f"Collection {what}: {ours} Snapshot {what}: {its}"
    return ""


def _shape(value: Any) -> Any:
    if not isinstance(value, dict):
        return value or {}
    if "size" in value:
        return {key: value.get(key) for key in ("size", "distance", "multivector_config", "datatype")}
    return {
        name: _shape(entry) if "size" in (entry or {}) else (entry or {}).get("modifier")
        for name, entry in value.items()
    }
