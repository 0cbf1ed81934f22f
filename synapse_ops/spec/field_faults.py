"""Puts pydantic's findings into our words. Imported only when there is a fault, because it builds the JSON Schema."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from synapse_ops.spec.allowed import allowed_in_words, is_secret, known_keys, resolved, schema_at
from synapse_ops.spec.faults import Fault, FieldPath, describe_value, printable

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def fault_of(error: ErrorDetails, path: FieldPath) -> Fault:
    """Return the fault for one of pydantic's errors, without its place."""
    if error["type"] == "extra_forbidden":
        return _unknown_key(path)
    if error["type"] == "missing":
        return Fault(path, None, "nothing", allowed_in_words(schema_at(path) or {}))
    schema = schema_at(path) or {}
    allowed = allowed_in_words(schema)
    if error["loc"] and error["loc"][-1] == "[key]":
        allowed = allowed_in_words(resolved((schema_at(path[:-1]) or {}).get("propertyNames", {})))
    elif error["type"] == "value_error":
        nullable = ", or null" if schema.get("x-nullable") else ""
        allowed = f"{error['ctx']['error']}{nullable}"
    found = describe_value(error["input"])
    if is_secret(path):
        found = "a value that is not a reference (not shown)"
    return Fault(path, None, found, allowed, _nearest(str(error["input"]), schema.get("enum", ())))


def _unknown_key(path: FieldPath) -> Fault:
    known = known_keys(path[:-1])
    key = printable(str(path[-1]))
    if re.search(r"passw|secret|token|credential", key, re.IGNORECASE):
        allowed = f"{', '.join(known)}; a spec holds no secrets but refers to them"
        return Fault(path, None, f'the unknown key "{key}" (its value is not shown)', allowed, _nearest(key, known))
    return Fault(path, None, f'the unknown key "{key}"', ", ".join(known), _elsewhere(key) or _nearest(key, known))


def _nearest(word: str, known: Any) -> str:
    """Return the known word that is most like this one, or nothing; capitals count for nothing."""
    folded = {str(choice).casefold(): str(choice) for choice in known}
    near = get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
    return folded[near[0]] if near else ""


def _elsewhere(key: str) -> str:
    """Return the full path of a key that is in exactly one other block."""
    blocks = (schema_at(()) or {}).get("properties", {})
    homes = [f"{name}.{key}" for name, block in blocks.items() if key in resolved(block).get("properties", {})]
    return homes[0] if len(homes) == 1 else ""
