"""What a loaded copy of a Redis server must equal, when nothing stopped writing while its snapshot was taken.

An RDB snapshot is one instant, the fork of the server, which no client can read. So keys are read before it
and again after it. Where the server's stream of writes stood still from the fork to the end of the second reading, the
copy must hold exactly what that one found, key for key and count for count. Otherwise what was equal in both readings
must be found equal in the copy; what moved is the window, is counted, and is held to nothing.

A key is compared by type, time to live and value: a digest over its elements in an order of ours, because a server
orders sets and hashes by its own seed, so that the bytes of DUMP differ between two servers of equal content.
Not compared by value, only by type: types of modules, hashes whose fields expire one by one, and values over a limit.
Of streams the entries and groups are compared, not which consumer holds which pending entry.
Frequency and idle time are not. Keys may be secrets (sessions), so that they stand here, and in proofs, as digests.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, Self

from synapse_ops.domain.canonical_json import canonical_json, reading
from synapse_ops.domain.two_readings import count_bounds

FORMAT_VERSION = 1
ALL_KEYS_LIMIT = 50_000  # read whole twice: some seconds a reading for small values
EXPIRY_TOLERANCE_MS = 2_000  # servers before 7.0 report only the time left, which is added to our clock
_NAMED = 20

Digest = str  # 32 hex digits


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key as it was read. digest: of its value; None where that is not compared. expires_at_ms: Unix time."""

    type: str
    digest: Digest | None
    expires_at_ms: int | None = None

    def equals(self, other: KeyRow | None) -> bool:
        return other is not None and (self.type, self.digest) == (other.type, other.digest) and self.expires_like(other)

    def expires_like(self, other: KeyRow) -> bool:
        if self.expires_at_ms is None or other.expires_at_ms is None:
            return self.expires_at_ms == other.expires_at_ms
        return abs(self.expires_at_ms - other.expires_at_ms) <= EXPIRY_TOLERANCE_MS


@dataclass(frozen=True, slots=True)
class KeyReading:
    """One pass over a server. counts: keys by logical database. rows: by `key_name`; of all keys, or of the sample.

    functions: digest of its libraries of functions; None where the server has none, or does not let us ask.
    """

    counts: Mapping[int, int]
    rows: Mapping[str, KeyRow]
    functions: Digest | None = None


def key_name(database: int, key: bytes) -> str:
    """Return what stands for a key: its logical database and a digest of its bytes."""
    return f"{database}:{digest_of([key])}"


def digest_of(parts: Iterable[bytes]) -> Digest:
    """Return the digest of a sequence of byte strings; where one ends and the next begins is part of it."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(struct.pack(">Q", len(part)))
        state.update(part)
    return state.hexdigest()


def unordered(elements: Iterable[Sequence[bytes]]) -> list[bytes]:
    """Return the parts of elements (members; field and value) whose order means nothing, in an order that we chose."""
    return [part for element in sorted(tuple(element) for element in elements) for part in element]


@dataclass(frozen=True, slots=True)
class KeyFingerprint:
    """Two readings, one before the snapshot and one after, as the copy will be compared with them.

    is_idle: nothing was written from the cut to the second reading; then `still` is all that this one found.
    moved: names of keys that were not equal in both. functions: None where they moved, or could not be read.
    """

    scope: Literal["all", "sample"]
    is_idle: bool
    counts_before: Mapping[int, int]
    counts_after: Mapping[int, int]
    still: Mapping[str, KeyRow]
    moved: tuple[str, ...] = ()
    functions: Digest | None = None

    @classmethod
    def of(cls, scope: Literal["all", "sample"], before: KeyReading, after: KeyReading, *, is_idle: bool) -> Self:
        """Return the fingerprint of two readings of the same keys; of a sample, of those that the first one drew."""
        if is_idle:
            rows = dict(sorted(after.rows.items()))
            return cls(scope, is_idle, after.counts, after.counts, rows, functions=after.functions)
        names = before.rows.keys() | (after.rows.keys() if scope == "all" else set())
        still = {name: row for name, row in sorted(before.rows.items()) if row.equals(after.rows.get(name))}
        functions = before.functions if before.functions == after.functions else None
        moved = tuple(sorted(names - still.keys()))
        return cls(scope, is_idle, before.counts, after.counts, still, moved, functions)

    @property
    def has_window(self) -> bool:
        return not self.is_idle

    @property
    def count_before(self) -> int:
        return sum(self.counts_before.values())

    @property
    def count_after(self) -> int:
        return sum(self.counts_after.values())

    @property
    def names(self) -> frozenset[str]:
        """Every key that is known: what is read in the copy."""
        return frozenset(self.still).union(self.moved)

    def to_json(self) -> bytes:
        """Return the canonical bytes: sorted keys, UTF-8, one final newline."""
        rows = {name: [row.type, row.digest, row.expires_at_ms] for name, row in self.still.items()}
        return canonical_json(FORMAT_VERSION, {**asdict(self), "still": rows}, is_compact=True)

    def digest(self) -> str:
        """Return the sha256 (hex) of the canonical bytes."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Return what `to_json` wrote; raises DocumentUnreadable for anything else."""
        with reading(data, "a fingerprint", FORMAT_VERSION) as body:
            counts = {
                name: {int(number): int(count) for number, count in body[name].items()}
                for name in ("counts_before", "counts_after")
            }
            still = {name: KeyRow(*row) for name, row in body["still"].items()}
            return cls(**{**body, **counts, "still": still, "moved": tuple(body["moved"])})


@dataclass(frozen=True, slots=True)
class CopyKeys:
    """What was found in a loaded copy. counts: keys by logical database. expired: keys that were loaded too late.

    rows: of the names asked for that are there. unlisted: how many keys were not requested. read_at_ms: when the last
    key was read, Unix time: what had to expire before may be gone.
    """

    counts: Mapping[int, int]
    expired: int
    rows: Mapping[str, KeyRow]
    unlisted: int
    read_at_ms: int
    functions: Digest | None = None


@dataclass(frozen=True, slots=True)
class KeyComparison:
    """differences: empty when the copy is what it must be; keys are named by their digests. by_value: of still_keys."""

    differences: tuple[str, ...]
    still_keys: int
    by_value: int
    window_keys: int
    passing_keys: int


@dataclass(slots=True)
class _Found:
    missing: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    expiries: list[str] = field(default_factory=list)


def compare_keys(expected: KeyFingerprint, copy: CopyKeys) -> KeyComparison:
    """Return how a copy differs from what was fingerprinted. copy: with the rows of `expected.names`."""
    found = _Found()
    for name, row in expected.still.items():
        _compare_row(name, row, copy, found)
    differences = [*_count_differences(expected, copy)]
    for what, names in (
        ("are missing", found.missing),
        ("are of another type", found.types),
        ("differ in their value", found.values),
        ("differ in their time to live", found.expiries),
    ):
        if names:
            differences.append(f"{len(names)} keys {what}: {_some(names)}")
    if expected.functions is not None and copy.functions != expected.functions:
        differences.append(f"functions: digest {copy.functions}, expected {expected.functions}")
    if expected.scope == "all" and expected.is_idle and copy.unlisted:
        differences.append(f"{copy.unlisted} keys are not on the server")
    return KeyComparison(
        differences=tuple(differences),
        still_keys=len(expected.still),
        by_value=sum(row.digest is not None for row in expected.still.values()),
        window_keys=len(expected.moved),
        passing_keys=copy.unlisted if expected.scope == "all" else 0,
    )


def _compare_row(name: str, row: KeyRow, copy: CopyKeys, found: _Found) -> None:
    there = copy.rows.get(name)
    if there is None:
        if row.expires_at_ms is None or row.expires_at_ms > copy.read_at_ms:
            found.missing.append(name)
    elif there.type != row.type:
        found.types.append(name)
    elif row.digest is not None and there.digest != row.digest:
        found.values.append(name)
    elif not row.expires_like(there):
        found.expiries.append(name)


def _count_differences(expected: KeyFingerprint, copy: CopyKeys) -> list[str]:
    """Hold the count of keys to the readings; what expired on loading has to be added, since RDB files keep it."""
    differences = []
    if expected.is_idle and not copy.expired and dict(copy.counts) != dict(expected.counts_after):
        differences.append(f"keys by database are {_counts(copy.counts)}, expected {_counts(expected.counts_after)}")
    low, high = count_bounds(expected)
    passing = copy.unlisted if expected.scope == "all" and expected.has_window else 0
    total = sum(copy.counts.values()) + copy.expired
    if not low <= total - passing <= high + copy.expired:
        wanted = str(low) if low == high else f"between {low} and {high}"
        differences.append(f"{total} keys with those that expired, expected {wanted}")
    return differences


def _counts(counts: Mapping[int, int]) -> str:
    return ", ".join(f"{count} in db {number}" for number, count in sorted(counts.items())) or "none"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (" ..." if len(names) > _NAMED else "")
