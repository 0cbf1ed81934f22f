"""What a restored database must equal in structure: every object by name, with what the catalogs say of it.

An entry is `<kind>: <qualified name>` -> attributes. Attributes are what a dump carries; what it does not carry by
design is left out by the reader (systems/postgres/structure.py lists it), so that a difference is a loss or a change.
Roles and what else belongs to the whole server are entries of the kinds in SHARED_KINDS: pg_dumpall carries those.
Invariant: nothing secret is in an entry, and differences quote only short attributes, because they are shown and kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from synapse_ops.domain.canonical_json import canonical_json, reading

FORMAT_VERSION = 1

SHARED_KINDS = frozenset({"role", "tablespace", "parameter privileges"})
SHOWN_CHARACTERS = 120  # of a value in a difference; more hides the name it belongs to
IsSame = Callable[[str, str, Any, Any], bool]  # entry, attribute, expected, actual
_QUIET = frozenset({"definition"})  # bodies of functions may hold what must not be shown


@dataclass(frozen=True, slots=True)
class Structure:
    """The structure of one database, and the roles it was dumped with."""

    server_major: int
    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def with_shared(self, shared: Mapping[str, Mapping[str, Any]]) -> Structure:
        """Return the structure with its server-wide entries replaced by those read around pg_dumpall."""
        own = {name: entry for name, entry in self.entries.items() if kind_of(name) not in SHARED_KINDS}
        return Structure(self.server_major, {**own, **shared})

    def to_json(self) -> bytes:
        """Return the canonical bytes: sorted keys, UTF-8, one final newline."""
        return canonical_json(FORMAT_VERSION, {"server_major": self.server_major, "entries": dict(self.entries)})

    def digest(self) -> str:
        """Return the sha256 (hex) of the canonical bytes."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def from_json(cls, data: bytes) -> Structure:
        """Return what `to_json` wrote; raises DocumentUnreadable for anything else."""
        with reading(data, "a structure", FORMAT_VERSION) as body:
            return cls(int(body["server_major"]), {name: dict(entry) for name, entry in body["entries"].items()})


def kind_of(name: str) -> str:
    """Return the kind of an entry's name: `index: public.x` gives `index`."""
    return name.partition(": ")[0]


def _never(*_: Any) -> bool:
    return False


def compare(
    expected: Structure,
    actual: Structure,
    *,
    is_same: IsSame = _never,
    without_kinds: Collection[str] = (),
    without_tablespaces: bool = False,
) -> tuple[str, ...]:
    """Return every named difference of structure, sorted by name; empty means equal.

    is_same: whether two values that are not equal mean the same; asked for those alone.
    without_kinds: kinds that the restore left out on purpose ("subscription", say).
    without_tablespaces: the restore put everything into the default tablespace.
    """
    if expected.server_major != actual.server_major:
        return (f"structures are not comparable: PostgreSQL {expected.server_major} and {actual.server_major}",)
    ignored = {*without_kinds, *({"tablespace"} if without_tablespaces else ())}
    found: list[str] = []
    for name in sorted(expected.entries.keys() | actual.entries.keys()):
        if kind_of(name) in ignored:
            continue
        ours, theirs = expected.entries.get(name), actual.entries.get(name)
        if theirs is None:
            found.append(f"{name}: missing")
        elif ours is None:
            found.append(f"{name}: not in the backup")
        else:
            skip = {"tablespace"} if without_tablespaces else set()
            found += [f"{name}: {words}" for words in _attribute_differences(name, ours, theirs, skip, is_same)]
    return tuple(found)


def _attribute_differences(
    name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], skip: set[str], is_same: IsSame
) -> Iterator[str]:
    for attribute in sorted(ours.keys() | theirs.keys()):
        if attribute in skip:
            continue
        left, right = ours.get(attribute), theirs.get(attribute)
        if left == right or is_same(name, attribute, left, right):
            continue
        if attribute in _QUIET:
            yield f"{attribute} differs"
        else:
            yield f"{attribute} is {_shown(right)}, expected {_shown(left)}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
