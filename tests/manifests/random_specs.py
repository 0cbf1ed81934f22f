"""Valid specs drawn at random, from the JSON Schema that editors get: whatever an operator may write, it draws.

Fields are drawn one by one, so that most drawings break a rule between fields. What `spec check` names is then left
out, and the rest asked again, until the spec is valid: rules are kept, and no rule is written here a second time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from synapse_ops.spec import Spec
from synapse_ops.spec.allowed import json_schema
from synapse_ops.spec.faults import FieldPath
from synapse_ops.spec.loading import check_text
from synapse_ops.spec.measures import MEASURES

Schema = dict[str, Any]

# What a JSON Schema says in words only, by the first words: values from both ends of what is legal.
_CONDITIONS = {"part": "> 50%", "time": ">= 1m", "size": "< 1Gi", "number": "> 3.5", "state": "== 0"}
_WRITTEN: dict[str, tuple[Any, ...]] = {
    "a duration": ("1ms", "700ms", "1s", "15s", "90s", "1h30m", "5h", "7d", "4w", 60, 0.5),
    "a retention": ("1h", "12h", "7d", "4w", 1, 400),
    "a size": ("1Ki", "64Mi", "4Gi", "1MiB", 1048576, "2T"),
    "a number of CPU cores": ("1m", "500m", 1, 2, 0.25, "64"),
    "a cron": ("0 0 * * *", "*/5 * * * *", "0 2 * * 0", "0 0 29 2 *"),
    "a network": ("0.0.0.0/0", "10.0.0.0/8", "192.0.2.7", "::/0", "2001:db8::/32", "fd00::1/128"),
    "a name of the IANA": ("UTC", "Europe/Berlin", "Asia/Kathmandu"),
    "a name:": ("service_down", "high_cpu", "Odd-name.7", "n" * 63),
    "a node name": ("db-primary", "db-standby", "pg.1"),
    "a condition": tuple(f"{name} {_CONDITIONS[measure.kind]}" for name, measure in MEASURES.items()),
}


def spec_texts() -> st.SearchStrategy[str]:
    """Draw the JSON text of a spec that may break rules between its fields."""
    schema = json_schema()
    return _values(schema, schema["$defs"]).map(json.dumps)


def made_valid(text: str) -> Spec:
    """Return the spec of a text, without the fields that `spec check` names, and those without which they mean nothing.

    Raises AssertionError when leaving out what is named does not lead to a valid spec.
    """
    document = json.loads(text)
    for _ in range(40):
        loaded, faults = check_text(json.dumps(document or {"name": "synapse"}), Path("random.yaml"))
        if loaded is not None:
            return loaded.spec
        paths = sorted((fault.path for fault in faults), key=str, reverse=True)
        if not sum(_leave_out(document, path) for path in paths):
            document.popitem()  # what is named is a default: something written contradicts it
    raise AssertionError(f"still not valid: {[fault.render(Path('random.yaml')) for fault in faults]}")


def _leave_out(document: Any, path: FieldPath) -> bool:
    """Remove what a path names, or the block that lacks it; tell whether there was anything to remove."""
    holders, holder = [], document
    for part in path:
        try:
            holder, above = holder[part], holder
        except LookupError:
            break
        holders.append((above, part))
    if not holders:
        return False
    above, part = holders[-1]
    del above[part]
    return True


def _values(schema: Schema, defs: Schema) -> st.SearchStrategy[Any]:
    if "$ref" in schema:
        return _values(defs[schema["$ref"].rsplit("/", 1)[1]], defs)
    if "anyOf" in schema:
        return st.one_of([_values(one, defs) for one in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    kind = schema.get("type")
    drawn: dict[Any, Callable[[], st.SearchStrategy[Any]]] = {
        "object": lambda: _objects(schema, defs),
        "array": lambda: _lists(schema, defs),
        "integer": lambda: st.integers(schema.get("minimum", 0), schema.get("maximum", 1 << 20)),
        "boolean": st.booleans,
        "null": st.none,
        "number": lambda: st.floats(
            schema.get("minimum", schema.get("exclusiveMinimum", 0)), schema.get("maximum", 1), exclude_min=True
        ),
    }
    if isinstance(kind, str) and kind in drawn:
        return drawn[kind]()
    return _texts(schema)


def _objects(schema: Schema, defs: Schema) -> st.SearchStrategy[Any]:
    if "properties" in schema:
        fields = {name: _values(one, defs) for name, one in schema["properties"].items()}
        required = set(schema.get("required", ()))
        return st.fixed_dictionaries(
            {name: one for name, one in fields.items() if name in required},
            optional={name: one for name, one in fields.items() if name not in required},
        )
    patterns = schema.get("patternProperties")
    if patterns:
        [(pattern, values)] = patterns.items()
        return st.dictionaries(_texts({"pattern": pattern}), _values(values, defs), max_size=4)
    return st.dictionaries(
        _texts(schema.get("propertyNames", {})), _values(schema["additionalProperties"], defs), max_size=4
    )


def _lists(schema: Schema, defs: Schema) -> st.SearchStrategy[Any]:
    items = _values(schema["items"], defs)
    return st.lists(items, min_size=schema.get("minItems", 0), max_size=schema.get("maxItems", 6))


def _texts(schema: Schema) -> st.SearchStrategy[Any]:
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("x-reference"):
        return st.sampled_from(["env:A_SECRET", "file:/etc/synapse/secret", "kubernetes:team/secret/key"])
    if "pattern" in schema and schema["pattern"] != "^s3://":
        drawn = st.from_regex(schema["pattern"].removeprefix("^").removesuffix("$"), fullmatch=True)
        return st.one_of(drawn, st.sampled_from(schema["examples"])) if schema.get("examples") else drawn
    for words, values in _WRITTEN.items():
        if schema.get("x-allowed", "").startswith(words):
            return st.sampled_from(values)
    return st.sampled_from(schema["examples"])
