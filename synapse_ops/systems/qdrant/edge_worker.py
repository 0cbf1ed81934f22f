"""Opens snapshots of shards with Qdrant's own engine: the program that `qdrant/edge.py` starts, limits and may kill.

A damaged file can abort the process that reads it, so this one does nothing else, and touches only its own directory.
In: one JSON document on stdin. Out: one JSON document a line on stdout, the last one with the key "result".
It decides nothing: it says what is in the copy, and the caller judges.
"""

from __future__ import annotations

import heapq
import json
import resource
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from synapse_ops.domain.vectors.points import PointId, PointsDigest, canonical_point, order_of, point_hash

PAGE = 500
EXAMPLES = 20  # most ids named of those that were not requested


def main() -> None:
    """Do the one job on stdin."""
    job = json.load(sys.stdin)
    _limit(**job["limits"])
    begun = time.monotonic()
    shards = [_open(one) for one in job["shards"]]
    say("opened", shards=len(shards))
    result = {
        "engine_version": metadata.version("qdrant-edge-py"),
        "counts": {one["shard_id"]: _count(shard) for one, shard in zip(job["shards"], shards, strict=True)},
        "open_s": round(time.monotonic() - begun, 3),
        "schemas": [_schema(one, shard) for one, shard in zip(job["shards"], shards, strict=True)],
        "segment_versions": sorted({version for one in job["shards"] for version in _segment_versions(one)}),
    }
    if job["wanted"] is not None:
        result |= _read_all(shards, Path(job["wanted"]))
    result["queries"] = [_query(shards, query) for query in job["queries"]]
    print(json.dumps({"result": result}), flush=True)


def _limit(memory_bytes: int, file_bytes: int, cpu_s: int) -> None:
    """Bound what this process may take; mapped files do not count as memory. No core dump: it would be the data."""
    wanted = {
        resource.RLIMIT_DATA: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in wanted.items():
        _, hard = resource.getrlimit(kind)
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (limit, limit))


def say(stage: str, **facts: Any) -> None:
    print(json.dumps({"stage": stage, **facts}), flush=True)


def _open(one: dict[str, Any]) -> Any:
    from qdrant_edge import EdgeShard

    say("unpacking", shard_id=one["shard_id"])
    EdgeShard.unpack_snapshot(one["snapshot"], one["directory"])
    return EdgeShard.load(one["directory"])


def _count(shard: Any) -> int:
    from qdrant_edge import CountRequest

    return int(shard.count(CountRequest(exact=True)))


def _segment_versions(one: dict[str, Any]) -> list[str]:
    files = Path(one["directory"]).glob("segments/*/version.info")
    return [file.read_text(encoding="utf-8").strip() for file in files]


def _schema(one: dict[str, Any], shard: Any) -> dict[str, Any]:
    """Return what a shard says of its vectors and payload indexes."""
    config = json.loads(Path(one["directory"], "edge_config.json").read_text(encoding="utf-8"))
    indexes = {field: str(entry.data_type).rpartition(".")[2].lower() for field, entry in _indexes(shard)}
    return {
        "shard_id": one["shard_id"],
        "vectors": {name: [vector["size"], vector["distance"]] for name, vector in config["vectors"].items()},
        "sparse": sorted(config.get("sparse_vectors") or {}),
        "indexes": indexes,
    }


def _indexes(shard: Any) -> list[tuple[str, Any]]:
    return sorted(shard.info().payload_schema.items())


def _read_all(shards: list[Any], wanted_path: Path) -> dict[str, Any]:
    """Read every point of every shard in ascending id; hash the wanted ones, and digest all of them."""
    wanted = set(json.loads(wanted_path.read_text(encoding="utf-8")))
    digest, hashes, unlisted = PointsDigest(), dict[str, str](), 0
    examples: list[str] = []
    for record in heapq.merge(*map(_scroll, shards), key=lambda found: order_of(_id(found.id))):
        point_id = _id(record.id)
        canonical = canonical_point(point_id, _vectors(record.vector), record.payload)
        digest.add(point_id, canonical)
        if str(point_id) in wanted:
            hashes[str(point_id)] = point_hash(canonical)
        else:
            unlisted += 1
            if len(examples) < EXAMPLES:
                examples.append(str(point_id))
        if digest.count % 10_000 == 0:
            say("reading", points=digest.count)
    return {
        "points_digest": digest.points,
        "ids_digest": digest.ids,
        "hashes": hashes,
        "unlisted": unlisted,
        "unlisted_examples": examples,
    }


def _scroll(shard: Any) -> Iterator[Any]:
    from qdrant_edge import ScrollRequest

    offset = None
    while True:
        records, offset = shard.scroll(ScrollRequest(offset=offset, limit=PAGE, with_payload=True, with_vector=True))
        yield from records
        if offset is None:
            return


def _id(value: Any) -> PointId:
    return value if isinstance(value, int) else str(value)


def _vectors(vector: Any) -> Any:
    """Return vectors as the server's scroll gives them: the engine has a separate class for sparse ones."""
    if isinstance(vector, dict):
        return {name: _vectors(value) for name, value in vector.items()}
    if hasattr(vector, "indices"):
        return {"indices": vector.indices, "values": vector.values}
    return vector


def _query(shards: list[Any], query: dict[str, Any]) -> list[list[Any]]:
    """Return the best points over all shards as [id, score], best first; none when the engine refuses the search."""
    from qdrant_edge import Query, QueryRequest, SearchParams, SparseVector

    vector = query["vector"]
    if isinstance(vector, dict):
        vector = SparseVector(indices=vector["indices"], values=vector["values"])
    nearest = Query.Nearest(vector, using=query["using"] or None)
    request = QueryRequest(limit=query["limit"], query=nearest, params=SearchParams(exact=True))
    try:
        found = [[str(_id(point.id)), point.score] for shard in shards for point in shard.query(request)]
    except Exception as refused:  # noqa: BLE001 - the engine's own; no answer is the finding: another size, say
        say("query refused", reason=str(refused))
        return []
    sign = 1 if query["lower_is_better"] else -1
    return sorted(found, key=lambda row: sign * row[1])[: query["limit"]]


if __name__ == "__main__":
    main()
