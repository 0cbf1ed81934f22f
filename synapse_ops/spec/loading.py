"""From a file to a valid spec, or to the list of all its faults at once.

    text -> values and places -> one backup block -> fields, each by itself -> fields together -> LoadedSpec

Faults are gathered over all steps. Only a file that is not YAML at all stops at its first fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from synapse_ops.spec.document import Spec
from synapse_ops.spec.effects import ignored_values, notes_on
from synapse_ops.spec.faults import Fault, FieldPath, Place, format_path, spec_error
from synapse_ops.spec.loaded import LoadedSpec, digests_of
from synapse_ops.spec.secrets import NOT_SHOWN, REFERENCE_FORM, holds_literal_secret
from synapse_ops.spec.validation import validate
from synapse_ops.spec.yaml_source import Source, parse_source, read_source

# the reference's flat block: the vector store's
_FLAT_BACKUP = ("schedule", "destination", "retention", "compression", "method")
_VECTORS: FieldPath = ("backup", "vectors")


def load_spec(path: Path) -> LoadedSpec:
    """Return the valid spec at `path`.

    Raises ConfigError for a file that cannot be read, and one that lists every fault of a file that can.
    """
    loaded, faults = check_spec(path)
    if loaded is None:
        raise spec_error(path, faults)
    return loaded


def check_spec(path: Path) -> tuple[LoadedSpec | None, list[Fault]]:
    """Return the spec and no faults, or None and all faults by line. Raises ConfigError if `path` cannot be read."""
    return _judge(read_source(path), path)


def check_text(text: str, path: Path) -> tuple[LoadedSpec | None, list[Fault]]:
    """Like `check_spec`, for text that is at hand; `path` is what messages call it."""
    return _judge(parse_source(text), path)


def value_faults(values: Mapping[str, Any]) -> list[Fault]:
    """Return the faults of a spec that was read already; their places are those of no file."""
    return _judge(Source({key: _read_only(value) for key, value in values.items()}), Path())[1]


def _read_only(value: Any) -> Any:
    """Return a value as `read_source` gives it: lists are tuples."""
    if isinstance(value, dict):
        return {key: _read_only(below) for key, below in value.items()}
    return tuple(map(_read_only, value)) if isinstance(value, list) else value


def _judge(source: Source, path: Path) -> tuple[LoadedSpec | None, list[Fault]]:
    faults = list(source.faults)
    faults += _literal_secrets(source.values, (), source)
    faults += _nest_flat_backup(source)
    spec, more = validate(source)
    faults += more
    if faults or spec is None:
        return None, _in_order(faults)
    return _loaded(spec, source, path), []


def _loaded(spec: Spec, source: Source, path: Path) -> LoadedSpec:
    digest, blocks = digests_of(spec)
    return LoadedSpec(
        spec=spec,
        path=path,
        digest=digest,
        block_digests=blocks,
        origins={format_path(field): f"{path}:{place.line}" for field, place in source.places.items()},
        ignored=ignored_values(spec),
        notes=notes_on(spec),
    )


def _in_order(faults: list[Fault]) -> list[Fault]:
    """Return the faults by place, the first of each field: form before secrets before types before combinations."""
    first: dict[object, Fault] = {}
    for fault in faults:
        first.setdefault(fault.path or fault, fault)
    return sorted(first.values(), key=lambda fault: fault.place or Place(0, 0))


def _literal_secrets(value: object, path: FieldPath, source: Source) -> Iterator[Fault]:
    if isinstance(value, dict):
        for key, below in value.items():
            if holds_literal_secret(key):
                yield Fault(path, source.place_of((*path, key)), f"{NOT_SHOWN} as a key", "the keys of this block")
            yield from _literal_secrets(below, (*path, key), source)
    elif isinstance(value, tuple):
        for index, below in enumerate(value):
            yield from _literal_secrets(below, (*path, index), source)
    elif isinstance(value, str) and holds_literal_secret(value):
        yield Fault(path, source.place_of(path), NOT_SHOWN, f"no secret in a spec; {REFERENCE_FORM}")


def _nest_flat_backup(source: Source) -> list[Fault]:
    """Move the keys of a flat `backup` block below `backup.vectors`, keeping their places. Returns keys given twice."""
    backup = source.values.get("backup")
    if not isinstance(backup, dict) or not any(key in backup for key in _FLAT_BACKUP):
        return []
    nested = backup.get("vectors", {})
    if not isinstance(nested, dict):
        return []
    faults = []
    rest = {key: value for key, value in backup.items() if key not in _FLAT_BACKUP}
    vectors = dict(nested)
    for key in _FLAT_BACKUP:
        if key not in backup:
            continue
        flat: FieldPath = ("backup", key)
        if key in nested:
            other = source.place_of((*_VECTORS, key))
            found = f"a value here and in backup.vectors.{key} (line {other.line if other else '?'})"
            faults.append(Fault(flat, source.places.get(flat), found, "one of the two"))
            continue
        vectors[key] = backup[key]
        source.places[(*_VECTORS, key)] = source.places.pop(flat, Place(1, 1))
    source.values["backup"] = rest | {"vectors": vectors}
    return faults
