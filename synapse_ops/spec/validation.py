"""Judges the fields of a spec: first each by itself, then together, without stopping at the first fault.

A field at fault is set aside and the rest is judged as if it had its default. A list item at fault is set aside whole,
so positions in lists shift; `_Kept` remembers the original ones. What would follow from a value set aside is not
reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from synapse_ops.spec.document import Spec
from synapse_ops.spec.faults import Fault, FieldPath, format_path
from synapse_ops.spec.rules import find_conflicts
from synapse_ops.spec.yaml_source import Source

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_ROUNDS = 4  # of setting aside: a list that becomes too short is set aside in the second


def validate(source: Source) -> tuple[Spec | None, list[Fault]]:
    """Return the spec made of the fields without a fault (None if none can be made), and all faults, unsorted."""
    values: dict[str, Any] = source.values
    faults: list[Fault] = []
    kept = _Kept()
    for round_ in range(_ROUNDS):
        try:
            spec = Spec.model_validate(values)
        except ValidationError as problem:
            from synapse_ops.spec.field_faults import fault_of

            cuts = set()
            errors = problem.errors(include_url=False)
            for error in errors:
                path = tuple(part for part in error["loc"] if part != "[key]")
                if _only_follows(error, errors):
                    continue
                if round_ == 0:  # later ones only follow from what was set aside
                    faults.append(replace(fault_of(error, path), place=source.place_of(path)))
                cuts.add(_cut(path, whole=error["type"] != "extra_forbidden"))
            values = kept.set_aside(values, cuts)
            continue
        return spec, faults + _conflicts(spec, source, kept, faults)
    return None, faults


def _only_follows(error: ErrorDetails, errors: list[ErrorDetails]) -> bool:
    """Return whether an error only says that another one is there: a default that waits, a list short of bad items."""
    if error["type"] == "default_factory_not_called":
        return True
    length = len(error["loc"])
    return error["type"] == "too_short" and any(
        len(other["loc"]) > length and other["loc"][:length] == error["loc"] for other in errors
    )


def _cut(path: FieldPath, *, whole: bool) -> FieldPath:
    """Return what is set aside for a fault at `path`: the field, or the whole list item that holds it."""
    for index, part in enumerate(path):
        if whole and isinstance(part, int):
            return path[: index + 1]
    return path


@dataclass
class _Kept:
    """Which original indexes the items of each shortened list have."""

    indexes: dict[FieldPath, list[int]] = field(default_factory=dict)

    def set_aside(self, value: Any, cuts: set[FieldPath], path: FieldPath = ()) -> Any:
        """Return the value without what lies at `cuts` (paths as they are now)."""
        if isinstance(value, dict):
            return {k: self.set_aside(v, cuts, (*path, k)) for k, v in value.items() if (*path, k) not in cuts}
        if isinstance(value, tuple):
            kept = [index for index in range(len(value)) if (*path, index) not in cuts]
            before = self.indexes.get(path, list(range(len(value))))
            self.indexes[path] = [before[index] for index in kept]
            return tuple(self.set_aside(value[index], cuts, (*path, index)) for index in kept)
        return value

    def original(self, path: FieldPath) -> FieldPath:
        """Return the path as it is in the file. A default list has no original: its indexes stay."""
        for position, part in enumerate(path):
            indexes = self.indexes.get(path[:position])
            if isinstance(part, int) and indexes is not None and part < len(indexes):
                return (*path[:position], indexes[part], *path[position + 1 :])
        return path


def _conflicts(spec: Spec, source: Source, kept: _Kept, faults: list[Fault]) -> list[Fault]:
    """Return the faults of fields together, at the line of the first of them that was written."""
    at_fault = {fault.path for fault in faults}
    found = []
    for conflict in find_conflicts(spec):
        paths = [kept.original(path) for path in (conflict.path, *conflict.others)]
        if any(path[: len(wrong)] == wrong for path in paths for wrong in at_fault):
            continue
        written = next((path for path in paths if path in source.places), paths[0])
        other = format_path(paths[1]) if len(paths) > 1 else ""
        texts = (text.replace("{other}", other) for text in (conflict.found, conflict.allowed))
        found.append(Fault(paths[0], source.place_of(written), *texts))
    return found
