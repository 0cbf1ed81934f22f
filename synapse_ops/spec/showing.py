"""A loaded spec as text: every value with its default filled in, where it came from, and why it has no effect.

The text is a valid spec again, with the same digest. References to secrets are shown, secrets are never read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from synapse_ops.spec.faults import FieldPath, format_path
from synapse_ops.spec.loaded import LoadedSpec

_COMMENT_COLUMN = 52
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./@%+-]*(?::[A-Za-z0-9_./@%+-]+)*|(?:\d+(?:ms|[smhdw]))+|\d+[KMGTP]i")
_RESERVED = {"null", "true", "false"}


def format_spec(loaded: LoadedSpec) -> str:
    """Return the whole spec as YAML with a comment on every value."""
    lines = [f"# {loaded.path}, sha256 {loaded.digest}"]
    lines += [f"# note: {note}" for note in loaded.notes]
    lines += _mapping(loaded.spec.model_dump(mode="json"), (), loaded, "")
    return "\n".join(lines) + "\n"


def values_of(loaded: LoadedSpec) -> list[dict[str, Any]]:
    """Return one entry per value, in the order of the docs: field, value, origin, ignored (a reason or None)."""
    return [
        {"field": format_path(path), "value": value, "origin": _origin(path, loaded), "ignored": _ignored(path, loaded)}
        for path, value in _leaves(loaded.spec.model_dump(mode="json"), ())
    ]


def _leaves(value: Any, path: FieldPath) -> Iterator[tuple[FieldPath, Any]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _leaves(below, (*path, key))
    elif isinstance(value, list) and value:
        for index, below in enumerate(value):
            yield from _leaves(below, (*path, index))
    else:
        yield path, value


def _mapping(value: dict[str, Any], path: FieldPath, loaded: LoadedSpec, indent: str) -> Iterator[str]:
    for key, below in value.items():
        yield from _entry(f"{indent}{_scalar(key)}:", below, (*path, key), loaded, indent)


def _entry(start: str, value: Any, path: FieldPath, loaded: LoadedSpec, indent: str) -> Iterator[str]:
    if isinstance(value, dict) and value:
        yield start
        yield from _mapping(value, path, loaded, indent + "  ")
    elif isinstance(value, list) and value:
        yield start
        for index, item in enumerate(value):
            yield from _item(item, (*path, index), loaded, indent + "  ")
    else:
        yield _commented(f"{start} {_scalar(value)}", path, loaded)


def _item(item: Any, path: FieldPath, loaded: LoadedSpec, indent: str) -> Iterator[str]:
    if isinstance(item, dict):
        lines = list(_mapping(item, path, loaded, indent + "  "))
        yield f"{indent}- {lines[0].lstrip()}"
        yield from lines[1:]
    else:
        yield _commented(f"{indent}- {_scalar(item)}", path, loaded)


def _scalar(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
        return value
    return json.dumps(value, ensure_ascii=False)  # a JSON string is a YAML string


def _commented(line: str, path: FieldPath, loaded: LoadedSpec) -> str:
    reason = _ignored(path, loaded)
    because = f"; ignored because {reason}" if reason else ""
    return f"{line:<{_COMMENT_COLUMN}}  # {_origin(path, loaded)}{because}"


def _origin(path: FieldPath, loaded: LoadedSpec) -> str:
    """Return `file:line` of the value; a field that was not written has its default, even in a block that was."""
    return loaded.origins.get(format_path(path), "default")


def _ignored(path: FieldPath, loaded: LoadedSpec) -> str | None:
    return loaded.ignored.get(format_path(path))
