"""What a restored database must equal in content: rows, sequences, large objects, extensions.

A table's fingerprint is its number of rows and the sum of a 64-bit hash of every row: independent of order, and a sum
rather than an exclusive or, because two equal rows would cancel out. Hashes are comparable between servers of one
major version and byte order only, which `compare` checks first.
What has no snapshot is bracketed: a sequence is read before and after the dump, and the restored one must lie between.
A materialized view is recorded as populated or not: a dump carries its definition and fills it again, so that its rows
after a restore are those of a refresh, not the stale ones of the source.
`compare` ignores collation versions: a logical restore builds every index anew. `environment_notes` names them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from synapse_ops.domain.canonical_json import canonical_json, reading
from synapse_ops.errors import counted

METHOD = 3  # how rows are hashed, and the version of the document; systems/postgres/row_hash.py knows method 2, too


@dataclass(frozen=True, slots=True)
class TableContent:
    """Rows of one table, partitions and inheriting tables not included. row_hash: decimal sum of the row hashes.

    given_hash: the same without generated columns, None where there are none: no dump carries their values.
    """

    rows: int
    row_hash: str
    given_hash: str | None = None


@dataclass(frozen=True, slots=True)
class SequencePosition:
    """`last_value` as the sequence's own relation says; `is_called`: whether nextval has already given it out."""

    last_value: int
    is_called: bool


@dataclass(frozen=True, slots=True)
class SequenceBracket:
    """A sequence before and after the dump; equal when it was idle."""

    before: SequencePosition
    after: SequencePosition

    def allows(self, restored: SequencePosition) -> bool:
        """Whether a dump taken between the two reads can have restored this position.

        A sequence set back and forward again between the reads can end outside: that is reported, never passed over.
        """
        if self.before == self.after:
            return restored == self.before
        low, high = sorted((self.before.last_value, self.after.last_value))
        return low <= restored.last_value <= high

    def __str__(self) -> str:
        if self.before == self.after:
            return _position(self.before)
        return f"between {_position(self.before)} and {_position(self.after)}"


def _position(position: SequencePosition) -> str:
    return f"{position.last_value}{'' if position.is_called else ' (not called)'}"


@dataclass(frozen=True, slots=True)
class LargeObjects:
    """The large objects of one range of oids.

    content_hash: sum over pages, holes counting as zeros; access_hash: over oid, owner and privileges.
    """

    objects: int
    size_bytes: int
    content_hash: str
    access_hash: str


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The content of one database at one snapshot. All names are qualified and quoted as PostgreSQL writes them.

    hash_probe: the server's hash of a fixed text; servers that differ in it cannot be compared.
    large_objects: by first oid of a range of `large_object_span` oids; the span is 1 until there are very many.
    skipped: what was not counted and why (foreign tables; unlogged tables of a standby). method: of the row hashes.
    """

    server_major: int
    hash_probe: str = ""
    tables: Mapping[str, TableContent] = field(default_factory=dict)
    materialized_views: Mapping[str, bool] = field(default_factory=dict)
    sequences: Mapping[str, SequenceBracket] = field(default_factory=dict)
    large_object_span: int = 1
    large_objects: Mapping[int, LargeObjects] = field(default_factory=dict)
    extensions: Mapping[str, str] = field(default_factory=dict)
    collation_versions: Mapping[str, str | None] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    method: int = METHOD

    @property
    def row_count(self) -> int:
        return sum(table.rows for table in self.tables.values())

    def with_brackets(
        self, before: Mapping[str, SequencePosition], after: Mapping[str, SequencePosition]
    ) -> Fingerprint:
        """Return the fingerprint with wider brackets: read before a dump began and after it ended.

        A sequence that is missing in a reading keeps its own.
        """
        wider = {
            name: SequenceBracket(before.get(name, bracket.before), after.get(name, bracket.after))
            for name, bracket in self.sequences.items()
        }
        return replace(self, sequences=wider)

    def with_sequences(self, sequences: Mapping[str, SequenceBracket]) -> Fingerprint:
        """Return the fingerprint with brackets that somebody else has read."""
        return replace(self, sequences=sequences)

    def to_json(self) -> bytes:
        """Return the canonical bytes: sorted keys, UTF-8, one final newline."""
        fields = asdict(self)
        fields["large_objects"] = {str(oid): value for oid, value in fields["large_objects"].items()}
        for table in fields["tables"].values():
            if table["given_hash"] is None:
                del table["given_hash"]
        return canonical_json(fields.pop("method"), fields)

    def digest(self) -> str:
        """Return the sha256 (hex) of the canonical bytes."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def from_json(cls, data: bytes) -> Fingerprint:
        """Return what `to_json` wrote; raises DocumentUnreadable for anything else."""
        with reading(data, "a fingerprint", METHOD, 2) as body:
            body["method"] = body.pop("format_version")
            body["tables"] = {name: TableContent(**value) for name, value in body["tables"].items()}
            body["sequences"] = {name: _bracket(value) for name, value in body["sequences"].items()}
            body["large_objects"] = {int(oid): LargeObjects(**value) for oid, value in body["large_objects"].items()}
            return cls(**body)


def _bracket(value: Mapping[str, Any]) -> SequenceBracket:
    return SequenceBracket(SequencePosition(**value["before"]), SequencePosition(**value["after"]))


def compare(expected: Fingerprint, actual: Fingerprint) -> tuple[str, ...]:
    """Return every named difference of content, in a stable order; empty means equal.

    expected: of the backup. actual: of the restored copy, at rest. Fingerprints of different major versions or byte
    orders are not comparable, which is itself the one difference returned.
    """
    if (expected.server_major, expected.hash_probe) != (actual.server_major, actual.hash_probe):
        ours, theirs = (f"PostgreSQL {side.server_major} (hash {side.hash_probe})" for side in (expected, actual))
        return (f"fingerprints are not comparable: {ours}, restored on {theirs}",)
    # What the backup left out by name, unlogged rows on a standby say, is not held against the copy.
    found: list[str] = []
    tables = {name: value for name, value in actual.tables.items() if name not in expected.skipped}
    sequences = {name: value for name, value in actual.sequences.items() if name not in expected.skipped}
    found += _compare_names("table", expected.tables, tables, _table_difference)
    found += _compare_names(
        "materialized view", expected.materialized_views, actual.materialized_views, _populated_difference
    )
    found += _compare_names("sequence", expected.sequences, sequences, _sequence_difference)
    found += _compare_large_objects(expected, actual)
    found += _compare_names("extension", expected.extensions, actual.extensions, _version_difference)
    return tuple(found)


def _compare_names(
    kind: str, expected: Mapping[str, Any], actual: Mapping[str, Any], difference: Callable[[Any, Any], str]
) -> Iterator[str]:
    for name in sorted(expected.keys() | actual.keys()):
        if name not in actual:
            yield f"{kind} {name}: missing"
        elif name not in expected:
            yield f"{kind} {name}: not in the backup"
        elif words := difference(expected[name], actual[name]):
            yield f"{kind} {name}: {words}"


def _table_difference(expected: TableContent, actual: TableContent) -> str:
    if expected.rows != actual.rows:
        return f"{actual.rows} rows, expected {expected.rows}"
    if expected.row_hash == actual.row_hash:
        return ""
    if expected.given_hash is not None and expected.given_hash == actual.given_hash:
        computed = "a restore computes them anew, perhaps by a function that was replaced since"
        return f"only its generated columns differ, in {counted(actual.rows, 'row')} at most: {computed}"
    return f"content of its {counted(actual.rows, 'row')} differs"


def _populated_difference(expected: bool, actual: bool) -> str:
    return "" if expected == actual else f"populated is {actual}, expected {expected}".lower()


def _sequence_difference(expected: SequenceBracket, actual: SequenceBracket) -> str:
    return "" if expected.allows(actual.after) else f"value {_position(actual.after)}, expected {expected}"


def _version_difference(expected: str, actual: str) -> str:
    return "" if expected == actual else f"version {actual}, expected {expected}"


def _compare_large_objects(expected: Fingerprint, actual: Fingerprint) -> Iterator[str]:
    if expected.large_object_span != actual.large_object_span:
        counts = [sum(part.objects for part in side.large_objects.values()) for side in (actual, expected)]
        yield f"large objects: {counts[0]}, expected {counts[1]}"
        return
    last = expected.large_object_span - 1
    for first in sorted(expected.large_objects.keys() | actual.large_objects.keys()):
        name = f"large objects {first} to {first + last}" if last else f"large object {first}"
        ours, theirs = expected.large_objects.get(first), actual.large_objects.get(first)
        if theirs is None:
            yield f"{name}: missing"
        elif ours is None:
            yield f"{name}: not in the backup"
        elif (ours.objects, ours.size_bytes) != (theirs.objects, theirs.size_bytes):
            yield (
                f"{name}: {theirs.size_bytes} bytes in {theirs.objects}, expected {ours.size_bytes} in {ours.objects}"
            )
        else:
            if ours.content_hash != theirs.content_hash:
                yield f"{name}: content differs"
            if ours.access_hash != theirs.access_hash:
                yield f"{name}: owner or privileges differ"


def environment_notes(expected: Fingerprint, actual: Fingerprint) -> tuple[str, ...]:
    """Return the collations whose library version differs: sort order may differ, the data does not."""
    both = expected.collation_versions.keys() & actual.collation_versions.keys()
    return tuple(
        f"collation {name}: version {actual.collation_versions[name]}, was {expected.collation_versions[name]}"
        for name in sorted(both)
        if expected.collation_versions[name] != actual.collation_versions[name]
    )
