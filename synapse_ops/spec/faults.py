"""One fault of a spec: where it is, what was found, what is allowed. All faults of a file are reported together.

A fault never repeats a secret: what looks like one, and every value of a field that takes a reference, is not shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from synapse_ops.errors import ConfigError, counted
from synapse_ops.spec.secrets import NOT_SHOWN, holds_literal_secret

FieldPath = tuple[str | int, ...]

_LONGEST_SHOWN = 80


class Place(NamedTuple):
    """A position in the file, both counted from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `path` is empty for one of the file as a whole; `suggestion` is the nearest known word, or empty."""

    path: FieldPath
    place: Place | None
    found: str
    allowed: str
    suggestion: str = ""

    def render(self, file: Path) -> str:
        """Return `file:line:column: field: found ...; allowed: ...`, on one line, without secrets."""
        where = f"{file}:{self.place.line}:{self.place.column}" if self.place else str(file)
        field = f"{format_path(self.path)}: " if self.path else ""
        suggestion = f'; did you mean "{self.suggestion}"?' if self.suggestion else ""
        return f"{where}: {field}found {_masked(self.found)}; allowed: {self.allowed}{suggestion}"

    def as_json(self, file: Path) -> dict[str, Any]:
        """Return the fault with one key per fact; part of the JSON promise of `spec check --json`."""
        return {
            "file": str(file),
            "line": self.place.line if self.place else None,
            "column": self.place.column if self.place else None,
            "field": format_path(self.path) or None,
            "found": _masked(self.found),
            "allowed": self.allowed,
            "suggestion": self.suggestion or None,
        }


def format_path(path: FieldPath) -> str:
    """Return `health[1].url`: what a field is called in messages, in `spec show` and in the docs."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + _masked(printable(part))
    return text


def describe_value(value: object) -> str:
    """Return a value as it was written, shortened; a mapping or list by its kind; never a secret."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, tuple | list):
        return "a list" if value else "an empty list"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return str(value)
    if holds_literal_secret(value):
        return NOT_SHOWN
    shown = value if len(value) <= _LONGEST_SHOWN else value[: _LONGEST_SHOWN - 3] + "..."
    return f'"{printable(shown)}"'


def printable(text: str) -> str:
    """Return the text with what a terminal would obey, a line break included, as escapes; a fault is one line."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _masked(text: str) -> str:
    return NOT_SHOWN if holds_literal_secret(text) else text


def spec_error(file: Path, faults: list[Fault]) -> ConfigError:
    """Return the one error that lists all faults, in the order of their lines."""
    count = counted(len(faults), "fault")
    return ConfigError(
        f'spec "{file}" has {count}',
        detail="\n".join(fault.render(file) for fault in faults),
        hint="Correct the lines named above; docs/configuration.md lists every field and its allowed values.",
    )
