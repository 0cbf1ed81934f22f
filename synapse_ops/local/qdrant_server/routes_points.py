"""Points: written, read, counted, scrolled, searched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synapse_ops.local.qdrant_server.answers import BadBody, Invalid, Missing
from synapse_ops.local.qdrant_server.collection import Collection
from synapse_ops.local.qdrant_server.conditions import parse_filter, parse_id
from synapse_ops.local.qdrant_server.endpoint import Call, route
from synapse_ops.local.qdrant_server.queries import (
    id_json,
    parse_order,
    parse_payload_choice,
    parse_points,
    parse_query,
    parse_vectors,
    record_json,
)


def _collection(call: Call) -> Collection:
    return call.store.get(call.path["name"])


def _limit(body: Mapping[str, Any], where: str, default: int = 10) -> int:
    limit = body.get("limit")
    if limit is None:
        return default
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise BadBody(f"invalid value: `{limit}`, expected usize")
    if limit == 0:
        raise Invalid("JSON body", f"{where}.limit", "value 0 invalid, must be 1 or larger")
    return limit


def _upsert(call: Call) -> dict[str, Any]:
    import qdrant_edge as engine

    collection, body = _collection(call), call.fields()
    options: dict[str, Any] = {}
    if body.get("update_filter"):
        options["condition"] = parse_filter(body["update_filter"])
    if body.get("update_mode"):
        modes = {"upsert": "Upsert", "insert_only": "InsertOnly", "update_only": "UpdateOnly"}
        options["update_mode"] = getattr(engine.UpdateMode, modes[body["update_mode"]])
    return _answered(call, collection.upsert(parse_points(body), **options))


def _answered(call: Call, update: dict[str, Any]) -> dict[str, Any]:
    """Without wait=true a real server answers before it applies; here it is applied in any case."""
    is_waited_for = call.query.get("wait") == "true"
    return update if is_waited_for else {**update, "status": "acknowledged"}


def _delete(call: Call) -> dict[str, Any]:
    return _answered(call, _by_points_or_filter(call, "delete_points", "delete_points_by_filter"))


def _by_points_or_filter(call: Call, by_ids: str, by_filter: str, *after: Any, body: Any = None) -> dict[str, Any]:
    fields = body if body is not None else call.fields()
    if fields.get("points") is not None:
        ids = [parse_id(value) for value in fields["points"]]
        return _collection(call).write(lambda operation: getattr(operation, by_ids)(ids, *after))
    if "filter" not in fields:
        raise BadBody("data did not match any variant of untagged enum PointsSelector")
    condition = parse_filter(fields["filter"] or {"must": []})
    return _collection(call).write(lambda operation: getattr(operation, by_filter)(condition, *after))


def _set_payload(call: Call) -> dict[str, Any]:
    fields = call.fields()
    after = (fields["payload"], fields.get("key"))
    return _answered(call, _by_points_or_filter(call, "set_payload", "set_payload_by_filter", *after))


def _overwrite_payload(call: Call) -> dict[str, Any]:
    after = (call.fields()["payload"],)
    return _answered(call, _by_points_or_filter(call, "overwrite_payload", "overwrite_payload_by_filter", *after))


def _delete_payload(call: Call) -> dict[str, Any]:
    after = (call.fields()["keys"],)
    return _answered(call, _by_points_or_filter(call, "delete_payload", "delete_payload_by_filter", *after))


def _clear_payload(call: Call) -> dict[str, Any]:
    return _answered(call, _by_points_or_filter(call, "clear_payload", "clear_payload_by_filter"))


def _update_vectors(call: Call) -> dict[str, Any]:
    import qdrant_edge as engine

    rows = [engine.PointVectors(parse_id(row["id"]), parse_vectors(row["vector"])) for row in call.fields()["points"]]
    return _answered(call, _collection(call).write(lambda operation: operation.update_vectors(rows)))


def _delete_vectors(call: Call) -> dict[str, Any]:
    after = (call.fields()["vector"],)
    return _answered(call, _by_points_or_filter(call, "delete_vectors", "delete_vectors_by_filter", *after))


def _count(call: Call) -> dict[str, int]:
    import qdrant_edge as engine

    body = call.body or {}
    asked = engine.CountRequest(exact=body.get("exact", True), filter=parse_filter(body.get("filter")))
    return {"count": _collection(call).read(lambda shard: shard.count(asked))}


def _retrieve(call: Call) -> list[dict[str, Any]]:
    body = call.fields()
    ids = [parse_id(value) for value in body["ids"]]
    choice, vectors = parse_payload_choice(body.get("with_payload"), True), body.get("with_vector") or False
    found = _collection(call).read(lambda shard: shard.retrieve(ids, choice, vectors))
    return [record_json(record, choice is not False) for record in found]


def _get(call: Call) -> dict[str, Any]:
    number = parse_id(int(call.path["id"]) if call.path["id"].isdigit() else call.path["id"])
    found = _collection(call).read(lambda shard: shard.retrieve([number], True, True))
    if not found:
        raise Missing(f"Point with id {number} does not exists!")
    return record_json(found[0])


def _scroll(call: Call) -> dict[str, Any]:
    import qdrant_edge as engine

    body = call.body or {}
    limit = _limit(body, "scroll_request")
    choice, order = parse_payload_choice(body.get("with_payload"), True), body.get("order_by")
    offset = body.get("offset")
    asked = engine.ScrollRequest(
        offset=parse_id(offset) if offset is not None else None,
        limit=limit,
        filter=parse_filter(body.get("filter")),
        with_payload=choice,
        with_vector=body.get("with_vector") or False,
        order_by=parse_order(order) if order else None,
    )
    records, following = _collection(call).read(lambda shard: shard.scroll(asked))
    points = [record_json(record, choice is not False) for record in records]
    return {"points": points, "next_page_offset": None if order else id_json(following)}


def _query(call: Call) -> dict[str, Any]:
    return {"points": _search(_collection(call), call.fields())}


def _query_batch(call: Call) -> list[dict[str, Any]]:
    collection = _collection(call)
    return [{"points": _search(collection, body)} for body in call.fields()["searches"]]


def _search(collection: Collection, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    _limit(body, "query_request")
    if isinstance(body.get("query"), int | str):  # a point is not its own neighbour
        own = {"has_id": [body["query"]]}
        body = {**body, "filter": {"must": body.get("filter") or [], "must_not": own}}
    asked = parse_query(body, collection.vector_of)
    found = collection.read(lambda shard: shard.query(asked))
    return [record_json(point, body.get("with_payload") not in (None, False)) for point in found]


def _old_search(call: Call) -> list[dict[str, Any]]:
    body = dict(call.fields())
    vector = body.pop("vector")
    if isinstance(vector, Mapping) and "vector" in vector:
        body["using"], vector = vector["name"], vector["vector"]
    return _search(_collection(call), {**body, "query": vector})


def _batch(call: Call) -> list[dict[str, Any]]:
    """Several updates in one request, one after the other."""
    kinds = {
        "upsert": _upsert,
        "delete": _delete,
        "set_payload": _set_payload,
        "overwrite_payload": _overwrite_payload,
        "delete_payload": _delete_payload,
        "clear_payload": _clear_payload,
        "update_vectors": _update_vectors,
        "delete_vectors": _delete_vectors,
    }
    answers = []
    for operation in call.fields()["operations"]:
        [(kind, body)] = operation.items()
        if kind not in kinds:
            raise BadBody(f"unknown variant `{kind}`")
        answers.append(kinds[kind](Call(call.server, call.path, call.query, body, call.began)))
    return answers


_POINTS = "/collections/{name}/points"
ROUTES = [
    route(_POINTS, "PUT", _upsert),
    route(_POINTS, "POST", _retrieve),
    route(f"{_POINTS}/delete", "POST", _delete),
    route(f"{_POINTS}/payload", "POST", _set_payload),
    route(f"{_POINTS}/payload", "PUT", _overwrite_payload),
    route(f"{_POINTS}/payload/delete", "POST", _delete_payload),
    route(f"{_POINTS}/payload/clear", "POST", _clear_payload),
    route(f"{_POINTS}/vectors", "PUT", _update_vectors),
    route(f"{_POINTS}/vectors/delete", "POST", _delete_vectors),
    route(f"{_POINTS}/batch", "POST", _batch),
    route(f"{_POINTS}/count", "POST", _count),
    route(f"{_POINTS}/scroll", "POST", _scroll),
    route(f"{_POINTS}/query", "POST", _query),
    route(f"{_POINTS}/query/batch", "POST", _query_batch),
    route(f"{_POINTS}/search", "POST", _old_search),
    route(f"{_POINTS}/{{id}}", "GET", _get),
]
