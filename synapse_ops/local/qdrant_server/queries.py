"""Queries and points: Qdrant's JSON to the engine's objects, and the engine's records back to JSON."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from synapse_ops.local.qdrant_server.answers import BadBody, NotSpoken, WrongInput
from synapse_ops.local.qdrant_server.conditions import parse_filter, parse_id

FindVector = Callable[[int | str, str], Any]  # id, name of the vector -> the stored vector

DEFAULT_LIMIT = 10


def parse_vector(given: Any) -> Any:
    """Return one vector: dense, several dense ones, or sparse."""
    import qdrant_edge as engine

    if isinstance(given, Mapping):
        if "indices" in given and "values" in given:
            return engine.SparseVector(given["indices"], given["values"])
        raise NotSpoken("vectors made by the server from documents or images")
    if isinstance(given, list):
        return given
    raise BadBody("data did not match any variant of untagged enum Vector")


def parse_vectors(given: Any) -> Any:
    """Return the vectors of a point: one unnamed, or by name."""
    if isinstance(given, Mapping) and not ("indices" in given and "values" in given):
        return {str(name): parse_vector(vector) for name, vector in given.items()}
    return parse_vector(given)


def parse_points(body: Mapping[str, Any]) -> list[Any]:
    """Return the points of an upsert, given one by one or as columns."""
    import qdrant_edge as engine

    if "batch" in body:
        return _points_of_columns(body["batch"])
    if not isinstance(body.get("points"), list):
        raise BadBody("data did not match any variant of untagged enum PointInsertOperations")
    points = []
    for given in body["points"]:
        if not isinstance(given, Mapping) or "id" not in given or "vector" not in given:
            raise BadBody(
                "missing field `vector`" if isinstance(given, Mapping) and "id" in given else "missing field `id`"
            )
        points.append(engine.Point(parse_id(given["id"]), parse_vectors(given["vector"]), given.get("payload") or None))
    return points


def _points_of_columns(batch: Mapping[str, Any]) -> list[Any]:
    import qdrant_edge as engine

    ids, vectors = batch["ids"], batch["vectors"]
    rows = (
        [dict(zip(vectors, row, strict=True)) for row in zip(*vectors.values(), strict=True)]
        if isinstance(vectors, Mapping)
        else vectors
    )
    payloads = batch.get("payloads") or [None] * len(ids)
    if not len(ids) == len(rows) == len(payloads):
        raise WrongInput(f"number of ids and vectors must be equal ({len(ids)} != {len(rows)})")
    return [
        engine.Point(parse_id(number), parse_vectors(row), payload or None)
        for number, row, payload in zip(ids, rows, payloads, strict=True)
    ]


def parse_payload_choice(given: Any, default: bool) -> Any:
    """Return what `with_payload` asks for."""
    import qdrant_edge as engine

    if given is None:
        return default
    if isinstance(given, Mapping):
        if "include" in given:
            return engine.PayloadSelector.Include(given["include"])
        return engine.PayloadSelector.Exclude(given["exclude"])
    return given


def parse_query(body: Mapping[str, Any], find: FindVector) -> Any:
    """Return the engine's request for the body of points/query."""
    import qdrant_edge as engine

    limit = body.get("limit", DEFAULT_LIMIT)
    return engine.QueryRequest(
        limit,
        offset=body.get("offset"),
        query=_scoring(body.get("query"), body.get("using") or "", find),
        prefetches=_prefetches(body.get("prefetch"), find),
        with_vector=body.get("with_vector", False),
        with_payload=parse_payload_choice(body.get("with_payload"), False),
        filter=parse_filter(body.get("filter")),
        score_threshold=body.get("score_threshold"),
        params=_params(body.get("params")),
    )


def _prefetches(given: Any, find: FindVector) -> list[Any] | None:
    import qdrant_edge as engine

    if not given:
        return None
    return [
        engine.Prefetch(
            entry.get("limit", DEFAULT_LIMIT),
            query=_scoring(entry.get("query"), entry.get("using") or "", find),
            prefetches=_prefetches(entry.get("prefetch"), find),
            params=_params(entry.get("params")),
            filter=parse_filter(entry.get("filter")),
            score_threshold=entry.get("score_threshold"),
        )
        for entry in (given if isinstance(given, list) else [given])
    ]


def _scoring(given: Any, using: str, find: FindVector) -> Any:
    import qdrant_edge as engine

    if given is None:
        return None
    if not isinstance(given, Mapping) or "indices" in given:
        return engine.Query.Nearest(_example(given, using, find), using)
    if "nearest" in given:
        return engine.Query.Nearest(_example(given["nearest"], using, find), using)
    if "recommend" in given:
        return _recommend(given["recommend"], using, find)
    if "fusion" in given:
        return engine.Fusion.Rrf(2) if given["fusion"] == "rrf" else engine.Fusion.Dbsf()
    if "rrf" in given:
        return engine.Fusion.Rrf(given["rrf"].get("k") or 2, given["rrf"].get("weights"))
    if "order_by" in given:
        return parse_order(given["order_by"])
    if "sample" in given:
        return engine.Sample.Random
    raise NotSpoken(f"a query by {', '.join(sorted(given))}")


def _recommend(given: Mapping[str, Any], using: str, find: FindVector) -> Any:
    import qdrant_edge as engine

    examples = engine.RecommendQuery(
        [_example(entry, using, find) for entry in given.get("positive") or []],
        [_example(entry, using, find) for entry in given.get("negative") or []],
    )
    strategy = given.get("strategy") or "average_vector"
    if strategy == "best_score":
        return engine.Query.RecommendBestScore(examples, using)
    if strategy == "sum_scores":
        return engine.Query.RecommendSumScores(examples, using)
    raise NotSpoken(f"the recommend strategy {strategy}")


def _example(given: Any, using: str, find: FindVector) -> Any:
    if isinstance(given, int | str):
        return find(parse_id(given), using)
    return parse_vector(given)


def parse_order(given: Any) -> Any:
    import qdrant_edge as engine

    if isinstance(given, str):
        return engine.OrderBy(given)
    direction = {"desc": engine.Direction.Desc, "asc": engine.Direction.Asc}.get(given.get("direction") or "asc")
    return engine.OrderBy(given["key"], direction, given.get("start_from"))


def _params(given: Any) -> Any:
    import qdrant_edge as engine

    if not given:
        return None
    quantization = given.get("quantization")
    chosen = (
        {key: quantization[key] for key in ("ignore", "rescore", "oversampling") if key in quantization}
        if quantization
        else None
    )
    return engine.SearchParams(
        hnsw_ef=given.get("hnsw_ef"),
        exact=bool(given.get("exact")),
        quantization=engine.QuantizationSearchParams(**chosen) if chosen else None,
        indexed_only=bool(given.get("indexed_only")),
    )


def record_json(record: Any, has_payload: bool = True, has_vector: bool = True) -> dict[str, Any]:
    """Return a record or a scored point as Qdrant writes it."""
    made: dict[str, Any] = {"id": id_json(record.id)}
    for name in ("version", "score"):
        if hasattr(record, name):
            made[name] = getattr(record, name)
    if has_payload and record.payload is not None:
        made["payload"] = record.payload
    if has_vector and (vector := record.vector) is not None:
        made["vector"] = _vectors_json(vector)
    if getattr(record, "order_value", None) is not None:
        made["order_value"] = record.order_value
    return made


def id_json(number: Any) -> Any:
    return str(number) if isinstance(number, uuid.UUID) else number


def _vectors_json(vector: Any) -> Any:
    if isinstance(vector, Mapping):
        return {name: _vector_json(entry) for name, entry in vector.items()}
    return _vector_json(vector)


def _vector_json(vector: Any) -> Any:
    if isinstance(vector, Sequence):
        return vector
    return {"indices": list(vector.indices), "values": list(vector.values)}
