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
from dataclasses import dataclass, field, replace
from typing import Any

from synapse_ops.domain.canonical_json import canonical_json, reading

FORMAT_VERSION = 2  # 1 looked neither at members of extensions nor at what pg_dump leaves out

SHARED_KINDS = frozenset({"role", "tablespace", "parameter privileges", "setting of all roles"})
_SINCE_2 = frozenset({"setting of all roles"})
_ATTRIBUTES_SINCE_2 = frozenset({"arguments", "local", "local_columns"})
SHOWN_CHARACTERS = 120  # of a value in a difference; more hides the name it belongs to
IsSame = Callable[[str, str, Any, Any], bool]  # entry, attribute, expected, actual
_QUIET = frozenset({"definition"})  # bodies of functions may hold what must not be shown


@dataclass(frozen=True, slots=True)
class Structure:
    """The structure of one database, and the roles it was dumped with.

    members: of extensions, by name: a digest of what an extension's script makes anew after a restore. left_out: names
    of what no dump carries. version: of the document; 1 has neither, and other kinds of entries.
    """

    server_major: int
    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    members: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    version: int = FORMAT_VERSION

    def with_shared(self, shared: Mapping[str, Mapping[str, Any]]) -> Structure:
        """Return the structure with its server-wide entries replaced by those read around pg_dumpall."""
        own = {name: entry for name, entry in self.entries.items() if kind_of(name) not in SHARED_KINDS}
        return replace(self, entries={**own, **shared})

    def to_json(self) -> bytes:
        """Return the canonical bytes: sorted keys, UTF-8, one final newline."""
        body: dict[str, Any] = {"server_major": self.server_major, "entries": dict(self.entries)}
        if self.version > 1:
            body |= {"members": dict(self.members), "left_out": list(self.left_out)}
        return canonical_json(self.version, body)

    def digest(self) -> str:
        """Return the sha256 (hex) of the canonical bytes."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def from_json(cls, data: bytes) -> Structure:
        """Return what `to_json` wrote; raises DocumentUnreadable for anything else."""
        with reading(data, "a structure", FORMAT_VERSION, 1) as body:
            version = body["format_version"]
            entries = {name: dict(entry) for name, entry in body["entries"].items()}
            more = (dict(body["members"]), tuple(body["left_out"])) if version > 1 else ({}, ())
            return cls(int(body["server_major"]), entries, *more, version)


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
    if expected.version == 1:
        ignored |= _SINCE_2
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
            skip |= _ATTRIBUTES_SINCE_2 if expected.version == 1 else set()
            found += [f"{name}: {words}" for words in _attribute_differences(name, ours, theirs, skip, is_same)]
    return tuple(found)


def changed_members(expected: Structure, actual: Structure) -> tuple[str, ...]:
    """Return the members of extensions that were changed by hand: a restore has them as the extension's script does."""
    found = []
    for name in sorted(expected.members.keys() | (actual.members.keys() if expected.version > 1 else set())):
        ours, theirs = expected.members.get(name), actual.members.get(name)
        if ours is None:
            found.append(f"{name}, which was taken out of an extension")
        elif theirs is None:
            found.append(f"{name}, which was added to an extension")
        elif ours != theirs:
            found.append(f"{name}, as it was changed in an extension")
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
