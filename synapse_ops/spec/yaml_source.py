"""Reads YAML into plain values, and remembers where each stood.

A spec is untrusted until it is read: its size, its depth and the number of its values after expanding aliases are
bounded, so that a hostile or damaged file costs one message and no time. Tags other than YAML's own are refused; a key
that stands twice is a fault, because the later one would win in silence; so is an empty value, because a block whose
lines are commented out would differ from one left out. YAML 1.2: `off` and `yes` are text.
Source: yaml.org/spec/1.2.2; ruamel.yaml scans and composes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING, Any

from synapse_ops.errors import ConfigError
from synapse_ops.spec.faults import Fault, FieldPath, Place

if TYPE_CHECKING:
    from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

LARGEST_FILE = 128 * 1024  # bytes; the complete example has 7 kB, and the scanner reads 100 kB a second at worst
MOST_VALUES = 20_000  # after expansion of aliases
DEEPEST = 40

_EMPTY = "a value; leave the key out to get its default, or write null"

_TAG = "tag:yaml.org,2002:"
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass
class Source:
    """One file's values: mappings as dict, lists as tuple, scalars as str, int, float, bool or None."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[FieldPath, Place] = field(default_factory=dict)  # of the value; in a mapping, of its key
    faults: list[Fault] = field(default_factory=list)

    def place_of(self, path: FieldPath) -> Place:
        """Return where the field stands, or the nearest block around it that was written."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, Place(1, 1))


def read_source(path: Path) -> Source:
    """Return the file's values and the faults of its form. Raises ConfigError when it cannot be read as text at all."""
    return parse_source(_read_text(path))


def _read_text(path: Path) -> str:
    hint = "Give the path of a YAML file; `synapse-ops spec schema` and docs/configuration.md describe its content."
    try:
        status = path.stat()
        if S_ISDIR(status.st_mode):
            raise ConfigError(f'spec "{path}" is a directory', hint=hint)
        if not S_ISREG(status.st_mode):
            raise ConfigError(f'spec "{path}" is not a regular file', hint=hint)
        if status.st_size > LARGEST_FILE:
            raise ConfigError(f'spec "{path}" has {status.st_size} bytes; at most {LARGEST_FILE} are read', hint=hint)
        content = path.read_bytes()
    except OSError as fault:
        raise ConfigError(
            f'could not read spec "{path}": {(fault.strerror or "unreadable").lower()}', hint=hint
        ) from None
    except ValueError:  # a NUL in the path
        raise ConfigError("spec path holds a NUL character", hint=hint) from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = content.count(b"\n", 0, fault.start) + 1
        raise ConfigError(
            f'spec "{path}" is not UTF-8 text: line {line} holds the byte 0x{content[fault.start]:02x}', hint=hint
        ) from None


def parse_source(text: str) -> Source:
    """Return the values of one YAML text. Several documents are merged; a block may be in one of them only."""
    source = Source()
    unprintable = _UNPRINTABLE.search(text)
    if unprintable is not None:
        found = f"the control character 0x{ord(unprintable[0]):02x}"
        source.faults.append(Fault((), _place_at(text, unprintable.start()), found, "printable text"))
        return source
    reader = _Reader(source)
    try:
        for node in _compose(text):
            reader.read_document(node)
    except _Stop as stop:
        source.faults.append(stop.fault)
    if not source.values and not source.faults:
        source.faults.append(
            Fault(
                (), Place(1, 1), "an empty file", "at least one key, such as `name: synapse`; all others have defaults"
            )
        )
    return source


def _place_at(text: str, offset: int) -> Place:
    return Place(text.count("\n", 0, offset) + 1, offset - (text.rfind("\n", 0, offset) + 1) + 1)


class _Stop(Exception):
    """The rest of the file cannot be read: a syntax error or a limit."""

    def __init__(self, place: Place, found: str, allowed: str) -> None:
        super().__init__(found)
        self.fault = Fault((), place, found, allowed)


def _compose(text: str) -> Iterator[Node]:
    """Yield the node graph of each document. Problems are reported without the line's text, which may hold a secret."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        yield from YAML(typ="safe", pure=True).compose_all(text)
    except MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark is not None else Place(1, 1)
        problem = " ".join((fault.problem or fault.context or "a syntax error").split()).removeprefix("found ")
        allowed = "spaces; YAML does not indent with tabs" if r"'\t'" in problem else "valid YAML"
        raise _Stop(place, problem, allowed) from None
    except YAMLError as fault:
        raise _Stop(Place(1, 1), type(fault).__name__, "valid YAML") from None
    except RecursionError:
        raise _Stop(Place(1, 1), "values nested too deeply", f"at most {DEEPEST} levels") from None


class _Reader:
    """Turns nodes into values, depth first, and counts them."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.count = 0

    def read_document(self, node: Node | None) -> None:
        if node is None or _is_empty(node):
            return
        if node.tag != f"{_TAG}map":
            self._fault((), node, _kind_of(node), "a mapping of blocks, such as `name: synapse`")
            return
        for key, value in self._mapping(node, ()).items():  # type: ignore[arg-type]
            if key in self.source.values:
                self._fault((key,), node, f'"{key}" a second time, in another document', "each block once")
            else:
                self.source.values[key] = value

    def _fault(self, path: FieldPath, node: Node, found: str, allowed: str) -> None:
        self.source.faults.append(Fault(path, _start(node), found, allowed))

    def _value(self, node: Node, path: FieldPath) -> Any:
        self.count += 1
        if self.count > MOST_VALUES:
            raise _Stop(_start(node), "too many values, aliases expanded", f"at most {MOST_VALUES}")
        if len(path) > DEEPEST:
            raise _Stop(_start(node), "values nested too deeply", f"at most {DEEPEST} levels")
        if node.tag == f"{_TAG}map":
            return self._mapping(node, path)  # type: ignore[arg-type]
        if node.tag == f"{_TAG}seq":
            items = []
            for index, item in enumerate(node.value):
                self.source.places[(*path, index)] = _start(item)
                items.append(self._value(item, (*path, index)))
            return tuple(items)
        return self._scalar(node, path)  # type: ignore[arg-type]

    def _scalar(self, node: ScalarNode, path: FieldPath) -> Any:
        if _is_empty(node):
            place = self.source.place_of(path)
            self.source.faults.append(Fault(path, place, "no value", _EMPTY))
            return None
        text = self._text(node, path)
        kind = str(node.tag).removeprefix(_TAG)
        if kind not in ("str", "int", "float", "bool", "null", "timestamp", "value"):
            self._fault(path, node, f"the tag {node.tag}", "plain values without a tag")
            return None
        try:
            return _SCALARS.get(kind, str)(text)
        except ValueError:
            return text

    def _text(self, node: ScalarNode, path: FieldPath) -> str:
        """Return the text, with what JSON writes as two escapes (above U+FFFF) joined to the one character it is."""
        try:
            return str(node.value).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self._fault(path, node, "half of an escaped character", r"whole characters; \ud800 to \udfff come in pairs")
            return ""

    def _mapping(self, node: MappingNode, path: FieldPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:  # first, so that the keys written here keep their own places
            if key_node.tag == f"{_TAG}merge":
                merged = self._merged(value_node, path) | merged
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                continue
            if key_node.tag != f"{_TAG}str":
                self._fault(path, key_node, f"{_kind_of(key_node)} as a key", "keys that are text")
                continue
            key = self._text(key_node, path)
            if key in first:
                again = f'the key "{key}" a second time (first in line {first[key]})'
                self._fault((*path, key), key_node, again, "each key once")
                continue
            first[key] = _start(key_node).line
            self.source.places[(*path, key)] = _start(key_node)
            values[key] = self._value(value_node, (*path, key))
        return merged | values

    def _merged(self, node: Node, path: FieldPath) -> dict[str, Any]:
        """Return the mapping of a `<<:` merge key; in a list of mappings, earlier ones win."""
        parts = node.value if node.tag == f"{_TAG}seq" else [node]
        merged: dict[str, Any] = {}
        for part in reversed(parts):
            if part.tag != f"{_TAG}map":
                self._fault(path, part, _kind_of(part), "a mapping after <<")
                continue
            value = self._value(part, path)
            merged |= value
        return merged


def _start(node: Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


def _is_empty(node: Node) -> bool:
    return node.tag == f"{_TAG}null" and node.value == ""


def _kind_of(node: Node) -> str:
    return {"map": "a mapping", "seq": "a list", "null": "null"}.get(str(node.tag).removeprefix(_TAG), "a single value")


def _whole_number(text: str) -> int:
    return int(text, 0) if text.lstrip("+-")[:2] in ("0x", "0o") else int(text, 10)


_SCALARS: dict[str, Any] = {
    "int": _whole_number,
    "float": float,
    "bool": lambda text: text.lower() == "true",
    "null": lambda text: None,
}
