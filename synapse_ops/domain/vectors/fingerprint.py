"""What a copy of a collection must equal, when nothing stopped writing while it was taken.

A snapshot holds every write acknowledged before it was asked for and some of those made during it: a window, not an
instant. So each point is hashed before and again after. What stood still must be found equal in the copy; what moved is
the window, is counted and named so, and is not compared. Without any write there is no window: then the digest over
all points, and every id, must be equal. Up to a limit all points are read; above it a seeded sample, and all ids.
Canary queries are exact searches with the ten best points, asked before and after; the copy must give the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from synapse_ops.domain.canonical_json import canonical_json, reading
from synapse_ops.domain.two_readings import count_bounds
from synapse_ops.domain.vectors.config import ShardSchema

FORMAT_VERSION = 1
ALL_POINTS_LIMIT = 50_000  # read whole twice: about 45 s a reading at 768 dimensions
TOP = 10
SCORE_TOLERANCE = 1e-5  # relative; engine and server differ by 1.2e-7 at most
_NAMED = 20


@dataclass(frozen=True, slots=True)
class Reading:
    """One pass over a live collection. hashes: by id as text; of all points, or of the sample.

    points_digest: over all points, None for a sample. ids_digest: over all ids.
    """

    count: int
    ids_digest: str
    points_digest: str | None
    hashes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class VectorFingerprint:
    """Two readings, one before the snapshot and one after, as the copy will be compared with them.

    seed: of the sample. still: hash by id of the points that were equal in both. moved: ids that were not.
    points_digest: over all points, where all were read and none moved; else None.
    """

    scope: Literal["all", "sample"]
    seed: str
    count_before: int
    count_after: int
    ids_before: str
    ids_after: str
    points_digest: str | None
    still: Mapping[str, str]
    moved: tuple[str, ...] = ()

    @classmethod
    def of(cls, scope: Literal["all", "sample"], seed: str, before: Reading, after: Reading) -> Self:
        """Return the fingerprint of two readings of the same points; of a sample, what the first one drew."""
        ids = before.hashes.keys() | (after.hashes.keys() if scope == "all" else before.hashes.keys())
        still = {one: before.hashes[one] for one in ids if before.hashes.get(one) == after.hashes.get(one)}
        return cls(
            scope=scope,
            seed=seed,
            count_before=before.count,
            count_after=after.count,
            ids_before=before.ids_digest,
            ids_after=after.ids_digest,
            points_digest=before.points_digest if before.points_digest == after.points_digest else None,
            still=dict(sorted(still.items())),
            moved=tuple(sorted(ids - still.keys())),
        )

    @property
    def has_window(self) -> bool:
        """Whether anything was seen to change while the snapshot was taken."""
        return bool(self.moved) or self.ids_before != self.ids_after or self.count_before != self.count_after

    @property
    def ids(self) -> tuple[str, ...]:
        """Every id that is known: what is asked of the copy."""
        return (*self.still, *self.moved)

    def to_json(self) -> bytes:
        """Return the canonical bytes: sorted keys, UTF-8, one final newline."""
        return canonical_json(FORMAT_VERSION, asdict(self), is_compact=True)

    def digest(self) -> str:
        """Return the sha256 (hex) of the canonical bytes."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Return what `to_json` wrote; raises DocumentUnreadable for anything else."""
        with reading(data, "a fingerprint", FORMAT_VERSION) as body:
            return cls(**{**body, "moved": tuple(body["moved"])})


@dataclass(frozen=True, slots=True)
class CanaryQuery:
    """An exact search with its answer. using: name of the vector, "" for the unnamed one. top: (id, score), best first.

    is_steady: the answer was the same before and after the snapshot, so the copy is held to it.
    """

    using: str
    vector: Any
    lower_is_better: bool
    top: tuple[tuple[str, float], ...] = ()
    is_steady: bool = True
    limit: int = TOP

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def canaries_to_json(queries: Sequence[CanaryQuery]) -> bytes:
    """Return the canonical bytes of stored queries."""
    return canonical_json(FORMAT_VERSION, {"queries": [query.as_json() for query in queries]}, is_compact=True)


def canaries_from_json(data: bytes) -> tuple[CanaryQuery, ...]:
    """Return what `canaries_to_json` wrote; raises DocumentUnreadable for anything else."""
    with reading(data, "stored queries", FORMAT_VERSION) as body:
        rows = [{**row, "top": tuple((str(one), float(score)) for one, score in row["top"])} for row in body["queries"]]
        return tuple(CanaryQuery(**row) for row in rows)


@dataclass(frozen=True, slots=True)
class CopyFacts:
    """What the engine found in a copy. counts: exact, by shard. hashes: of the ids asked for that are there.

    unlisted: points that were not requested. tops: the answers to the queries, in their order. open_s: until every
    shard was unpacked and could answer.
    The digests are None when only counts were asked for.
    """

    counts: Mapping[int, int]
    engine_version: str
    segment_versions: tuple[str, ...]
    points_digest: str | None = None
    ids_digest: str | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    unlisted: int = 0
    unlisted_examples: tuple[str, ...] = ()
    tops: tuple[tuple[tuple[str, float], ...], ...] = ()
    schemas: tuple[ShardSchema, ...] = ()
    open_s: float = 0.0

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError for anything but the worker's own answer."""
        return cls(
            counts={int(shard): int(count) for shard, count in body["counts"].items()},
            engine_version=str(body["engine_version"]),
            segment_versions=tuple(body["segment_versions"]),
            points_digest=body.get("points_digest"),
            ids_digest=body.get("ids_digest"),
            hashes=dict(body.get("hashes", {})),
            unlisted=int(body.get("unlisted", 0)),
            unlisted_examples=tuple(body.get("unlisted_examples", ())),
            tops=tuple(tuple((str(one), float(score)) for one, score in top) for top in body["queries"]),
            schemas=tuple(_schema(row) for row in body["schemas"]),
            open_s=float(body["open_s"]),
        )


def _schema(row: Mapping[str, Any]) -> ShardSchema:
    vectors = {name: (int(size), str(distance)) for name, (size, distance) in row["vectors"].items()}
    return ShardSchema(int(row["shard_id"]), vectors, tuple(row["sparse"]), dict(row["indexes"]))


@dataclass(frozen=True, slots=True)
class Comparison:
    """differences: empty when the copy is what it must be. window_points: known points held to nothing.

    passing_points: points of the copy in neither reading: written and removed again while it was taken.
    recall: of the steady canary queries, 0 to 1; None when there are none.
    """

    differences: tuple[str, ...]
    still_points: int
    window_points: int
    passing_points: int
    recall: float | None


def compare_points(expected: VectorFingerprint, copy: CopyFacts, queries: Sequence[CanaryQuery]) -> Comparison:
    """Return how a copy differs from what was fingerprinted. copy: with the digests, and hashes of `expected.ids`."""
    found = [*_count_differences(expected, copy), *_point_differences(expected, copy)]
    if not expected.has_window:
        if copy.ids_digest != expected.ids_before:
            found.append(f"ids: digest {copy.ids_digest}, expected {expected.ids_before}")
        if expected.points_digest is not None and copy.points_digest != expected.points_digest:
            found.append(f"all points: digest {copy.points_digest}, expected {expected.points_digest}")
    recalls = []
    for number, (query, top) in enumerate(zip(queries, copy.tops, strict=True), 1):
        if query.is_steady and query.top:
            recalls.append(recall(query, top))
            if recalls[-1] < 1:
                using = query.using or "the unnamed vector"
                found.append(f"canary query {number} by {using}: recall@{query.limit} is {recalls[-1]:.2f}, expected 1")
    return Comparison(
        differences=tuple(found),
        still_points=len(expected.still),
        window_points=len(expected.moved),
        passing_points=copy.unlisted if expected.scope == "all" else 0,
        recall=round(sum(recalls) / len(recalls), 4) if recalls else None,
    )


def recall(query: CanaryQuery, top: Sequence[tuple[str, float]]) -> float:
    """Return the part (0 to 1) of the expected points that were found; one of an equal score at the end counts."""
    found = {one for one, _ in top}
    last = query.top[-1][1]
    tied = SCORE_TOLERANCE * max(1.0, abs(last))
    missing = [one for one, score in query.top if one not in found and abs(score - last) > tied]
    if len(top) < len(query.top):
        missing = [one for one, _ in query.top if one not in found]
    return 1 - len(missing) / len(query.top)


def _count_differences(expected: VectorFingerprint, copy: CopyFacts) -> list[str]:
    low, high = count_bounds(expected)
    count = copy.count - (copy.unlisted if expected.scope == "all" and expected.has_window else 0)
    if low <= count <= high:
        return []
    wanted = str(low) if low == high else f"between {low} and {high}"
    return [f"{copy.count} points, expected {wanted}"]


def _point_differences(expected: VectorFingerprint, copy: CopyFacts) -> list[str]:
    missing = [one for one in expected.still if one not in copy.hashes]
    changed = [one for one, wanted in expected.still.items() if copy.hashes.get(one, wanted) != wanted]
    found = [f"{len(missing)} points are missing: {_some(missing)}"] if missing else []
    if changed:
        found.append(f"{len(changed)} points differ in vectors or payload: {_some(changed)}")
    if expected.scope == "all" and not expected.has_window and copy.unlisted:
        found.append(f"{copy.unlisted} points are not in the collection: {_some(copy.unlisted_examples)}")
    return found


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_NAMED]) + (" ..." if len(ids) > _NAMED else "")
