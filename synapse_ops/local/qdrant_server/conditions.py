"""Filters: Qdrant's JSON to the engine's objects."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from synapse_ops.local.qdrant_server.answers import BadBody, NotSpoken

_MATCHES = {
    "value": "MatchValue",
    "text": "MatchText",
    "text_any": "MatchTextAny",
    "phrase": "MatchPhrase",
    "any": "MatchAny",
    "except": "MatchExcept",
}


def parse_id(value: Any) -> int | str:
    """Return a point's id as the engine takes it. Raises BadBody for what is neither a number nor a UUID."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64:
        return value
    if isinstance(value, str):
        try:
            return str(uuid.UUID(value))
        except ValueError:
            pass
    raise BadBody(f"value {value} is not a valid point ID, valid values are either an unsigned integer or a UUID")


def parse_filter(given: Any) -> Any:
    """Return the engine's filter, or None where there is none."""
    import qdrant_edge as engine

    if not given:
        return None
    if not isinstance(given, Mapping):
        raise BadBody("a filter is an object")
    strange = set(given) - {"must", "should", "must_not", "min_should"}
    if strange:
        raise BadBody(f"unknown field `{min(strange)}`, expected one of `should`, `min_should`, `must`, `must_not`")
    least = given.get("min_should")
    return engine.Filter(
        must=_conditions(given.get("must")),
        should=_conditions(given.get("should")),
        must_not=_conditions(given.get("must_not")),
        min_should=engine.MinShould(_conditions(least["conditions"]) or [], least["min_count"]) if least else None,
    )


def _conditions(given: Any) -> list[Any] | None:
    if given is None:
        return None
    return [_condition(entry) for entry in (given if isinstance(given, list) else [given])]


def _condition(given: Mapping[str, Any]) -> Any:
    import qdrant_edge as engine

    if not isinstance(given, Mapping):
        raise BadBody("a condition is an object")
    if "has_id" in given:
        return engine.HasIdCondition({parse_id(value) for value in given["has_id"]})
    if "has_vector" in given:
        return engine.HasVectorCondition(given["has_vector"])
    if "nested" in given:
        return engine.NestedCondition(given["nested"]["key"], parse_filter(given["nested"]["filter"]))
    if "is_empty" in given and "key" not in given:
        return engine.IsEmptyCondition(given["is_empty"]["key"])
    if "is_null" in given and "key" not in given:
        return engine.IsNullCondition(given["is_null"]["key"])
    if "key" in given:
        return _field(given)
    if set(given) <= {"must", "should", "must_not", "min_should"}:
        return parse_filter(given)
    raise BadBody("data did not match any variant of untagged enum Condition")


def _field(given: Mapping[str, Any]) -> Any:
    import qdrant_edge as engine

    for name in ("geo_bounding_box", "geo_radius", "geo_polygon"):
        if given.get(name) is not None:
            raise NotSpoken(f"a filter by {name}")
    values = given.get("values_count")
    return engine.FieldCondition(
        given["key"],
        match=_match(given["match"]) if given.get("match") else None,
        range=_range(given["range"]) if given.get("range") else None,
        values_count=engine.ValuesCount(**values) if values else None,
        is_empty=given.get("is_empty"),
        is_null=given.get("is_null"),
    )


def _match(given: Mapping[str, Any]) -> Any:
    import qdrant_edge as engine

    for key, name in _MATCHES.items():
        if key in given:
            return getattr(engine, name)(given[key])
    raise BadBody("data did not match any variant of untagged enum Match")


def _range(given: Mapping[str, Any]) -> Any:
    import qdrant_edge as engine

    bounds = {key: given[key] for key in ("gte", "gt", "lte", "lt") if given.get(key) is not None}
    kind = engine.RangeDateTime if any(isinstance(value, str) for value in bounds.values()) else engine.RangeFloat
    return kind(**bounds)
