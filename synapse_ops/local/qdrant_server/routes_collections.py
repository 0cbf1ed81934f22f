"""Collections, aliases, payload indexes, and what the server reports of itself."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response

from synapse_ops.local.qdrant_server.answers import JsonAnswer
from synapse_ops.local.qdrant_server.endpoint import Call, route
from synapse_ops.local.qdrant_server.metrics import metrics_text


def _title(call: Call) -> Response:
    return JSONResponse({"title": "qdrant - vector search engine", "version": call.server.version})


def _healthy(call: Call) -> Response:
    del call
    return PlainTextResponse("healthz check passed")


def _ready(call: Call) -> Response:
    del call
    return PlainTextResponse("all shards are ready")


def _metrics(call: Call) -> Response:
    return PlainTextResponse(metrics_text(call.server))


def _telemetry(call: Call) -> dict[str, Any]:
    return {
        "id": str(call.store.peer_id),
        "app": {"name": "qdrant", "version": call.server.version},
        "collections": {"number_of_collections": len(call.store.names())},
        "cluster": {"enabled": False},
    }


def _list(call: Call) -> dict[str, Any]:
    return {"collections": [{"name": name} for name in call.store.names()]}


def _get(call: Call) -> dict[str, Any]:
    return call.store.get(call.path["name"]).info()


def _create(call: Call) -> bool:
    return call.store.create(call.path["name"], call.fields())


def _change(call: Call) -> bool:
    return call.store.change(call.path["name"], call.fields())


def _delete(call: Call) -> bool:
    return call.store.delete(call.path["name"])


def _exists(call: Call) -> dict[str, bool]:
    return {"exists": call.store.find(call.path["name"]) is not None}


def _shards(call: Call) -> dict[str, Any]:
    collection = call.store.get(call.path["name"])
    return {
        "peer_id": call.store.peer_id,
        "shard_count": 1,
        "local_shards": [{"shard_id": 0, "points_count": collection.count(), "state": "Active"}],
        "remote_shards": [],
        "shard_transfers": [],
    }


def _all_aliases(call: Call) -> dict[str, Any]:
    return {"aliases": call.store.aliases()}


def _aliases(call: Call) -> dict[str, Any]:
    return {"aliases": call.store.aliases(call.store.get(call.path["name"]).name)}


def _change_aliases(call: Call) -> bool:
    return call.store.change_aliases(call.fields()["actions"])


def _make_index(call: Call) -> dict[str, Any]:
    fields = call.fields()
    return call.store.get(call.path["name"]).set_index(fields["field_name"], fields.get("field_schema") or "keyword")


def _delete_index(call: Call) -> dict[str, Any]:
    return call.store.get(call.path["name"]).delete_index(call.path["field"])


def _cluster(call: Call) -> Response:
    return JsonAnswer({"result": {"status": "disabled"}, "status": "ok", "time": 0.0})


ROUTES = [
    route("/", "GET", _title),
    route("/healthz", "GET", _healthy),
    route("/livez", "GET", _healthy),
    route("/readyz", "GET", _ready),
    route("/metrics", "GET", _metrics),
    route("/telemetry", "GET", _telemetry),
    route("/cluster", "GET", _cluster),
    route("/aliases", "GET", _all_aliases),
    route("/collections", "GET", _list),
    route("/collections/aliases", "POST", _change_aliases),
    route("/collections/{name}", "GET", _get),
    route("/collections/{name}", "PUT", _create),
    route("/collections/{name}", "PATCH", _change),
    route("/collections/{name}", "DELETE", _delete),
    route("/collections/{name}/exists", "GET", _exists),
    route("/collections/{name}/cluster", "GET", _shards),
    route("/collections/{name}/aliases", "GET", _aliases),
    route("/collections/{name}/index", "PUT", _make_index),
    route("/collections/{name}/index/{field}", "DELETE", _delete_index),
]
