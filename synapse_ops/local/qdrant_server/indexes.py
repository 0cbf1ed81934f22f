"""Payload indexes: Qdrant's JSON to the engine's operation."""

from __future__ import annotations

from typing import Any

from synapse_ops.local.qdrant_server.answers import BadBody, NotSpoken

_PARAMS = {
    "keyword": ("KeywordIndexParams", ("is_tenant", "on_disk")),
    "integer": ("IntegerIndexParams", ("lookup", "range", "is_principal", "on_disk")),
    "float": ("FloatIndexParams", ("is_principal", "on_disk")),
    "bool": ("BoolIndexParams", ("on_disk",)),
    "geo": ("GeoIndexParams", ("on_disk",)),
    "datetime": ("DatetimeIndexParams", ("is_principal", "on_disk")),
    "uuid": ("UuidIndexParams", ("is_tenant", "on_disk")),
    "text": ("TextIndexParams", ("min_token_len", "max_token_len", "lowercase", "phrase_matching", "on_disk")),
}


def index_operation(operation: Any, field: str, schema: Any) -> Any:
    """Return the engine's operation that makes an index. Raises BadBody for a type that there is not."""
    import qdrant_edge as engine

    kind = schema if isinstance(schema, str) else (schema or {}).get("type")
    if kind not in _PARAMS:
        raise BadBody("data did not match any variant of untagged enum PayloadFieldSchema")
    if isinstance(schema, str):
        return operation.create_field_index(field, getattr(engine.PayloadSchemaType, kind.capitalize()))
    name, known = _PARAMS[kind]
    given = {key: value for key, value in schema.items() if key != "type" and value is not None}
    chosen = {key: given.pop(key) for key in known if key in given}
    if kind == "text" and "tokenizer" in given:
        chosen["tokenizer"] = getattr(engine.TokenizerType, given.pop("tokenizer").capitalize())
    if given:
        raise NotSpoken(f"an index of type {kind} with {', '.join(sorted(given))}")
    return operation.create_field_index(field, getattr(engine, name)(**chosen))
