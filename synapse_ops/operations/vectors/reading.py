"""Reads a live collection for comparison: a hash per point, and exact searches with their answers.

All points up to a limit; above it every id, and the points of a sample that the ids alone decide, so that the copy's
sample is the same. Memory holds one page of points and a hash of each that is compared.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from synapse_ops.domain.progress import Progress, ReportProgress
from synapse_ops.domain.vectors.fingerprint import ALL_POINTS_LIMIT, TOP, CanaryQuery, Reading
from synapse_ops.domain.vectors.points import PointId, PointsDigest, canonical_point, parse_id, point_hash, sample_rank
from synapse_ops.systems.qdrant.server import ID_PAGE, CollectionInfo, QdrantRefused, QdrantServer

PAGE = 250  # points with vectors: 2.5 MB of JSON at 768 dimensions
QUERIES_PER_VECTOR = 3
QUERIES_LIMIT = 12
_LOWER_IS_BETTER = {"Euclid", "Manhattan"}

Scope = Literal["all", "sample"]
Point = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Readout:
    """One reading, with a few whole points of it: those of the lowest ranks, for searches."""

    reading: Reading
    examples: tuple[Point, ...]


def scope_of(count: int) -> Scope:
    return "all" if count <= ALL_POINTS_LIMIT else "sample"


def read_points(
    server: QdrantServer,
    info: CollectionInfo,
    *,
    scope: Scope,
    seed: str,
    sample_points: int,
    ids: Sequence[str] | None = None,
    progress: ReportProgress,
) -> Readout:
    """Read a collection. ids: of an earlier sample (as text), to read the same again; None draws one by `seed`."""
    page = info.page_limit or ID_PAGE
    return (
        _read_all(server, info.name, seed, min(PAGE, page), progress)
        if scope == "all"
        else _read_sample(server, info.name, seed, sample_points, ids, page, progress)
    )


def _read_all(server: QdrantServer, name: str, seed: str, page: int, progress: ReportProgress) -> Readout:
    digest, hashes = PointsDigest(), {}
    lowest: list[tuple[bytes, Point]] = []
    for point in server.scroll_all(name, limit=page):
        canonical = canonical_point(point["id"], point.get("vector"), point.get("payload"))
        digest.add(point["id"], canonical)
        hashes[str(point["id"])] = point_hash(canonical)
        rank = sample_rank(seed, point["id"])
        if len(lowest) < QUERIES_PER_VECTOR or rank < lowest[-1][0]:
            lowest = sorted([*lowest, (rank, point)], key=lambda row: row[0])[:QUERIES_PER_VECTOR]
        if digest.count % 1000 == 0:
            progress(Progress(f"reading points of {name}", digest.count, unit="points"))
    reading = Reading(digest.count, digest.ids, digest.points, hashes)
    return Readout(reading, tuple(point for _, point in lowest))


def _read_sample(
    server: QdrantServer,
    name: str,
    seed: str,
    size: int,
    ids: Sequence[str] | None,
    page: int,
    progress: ReportProgress,
) -> Readout:
    digest = PointsDigest()
    drawn = heapq.nsmallest(size, _ranked(server, name, seed, min(ID_PAGE, page), digest, progress))
    chosen = [parse_id(one) for one in ids] if ids is not None else [point_id for _, _, point_id in drawn]
    hashes: dict[str, str] = {}
    examples: dict[str, Point] = {}
    wanted, size = {str(one) for one in chosen[:QUERIES_PER_VECTOR]}, min(PAGE, page)
    for start in range(0, len(chosen), size):
        for point in server.retrieve(name, chosen[start : start + size]):
            hashes[str(point["id"])] = point_hash(
                canonical_point(point["id"], point.get("vector"), point.get("payload"))
            )
            if str(point["id"]) in wanted:
                examples[str(point["id"])] = point
        progress(Progress(f"reading a sample of {name}", len(hashes), len(chosen), unit="points"))
    return Readout(Reading(digest.count, digest.ids, None, hashes), tuple(examples.values()))


def _ranked(
    server: QdrantServer, name: str, seed: str, page: int, digest: PointsDigest, progress: ReportProgress
) -> Iterator[tuple[bytes, int, PointId]]:
    """Yield every id with its rank and number (so that ids of two kinds are never compared); counts them on the way."""
    for point in server.scroll_all(name, limit=page, with_payload=False, with_vectors=False):
        digest.add(point["id"])
        yield sample_rank(seed, point["id"]), digest.count, point["id"]
        if digest.count % ID_PAGE == 0:
            progress(Progress(f"reading ids of {name}", digest.count, unit="points"))


def canary_queries(info: CollectionInfo, examples: Iterable[Point]) -> tuple[CanaryQuery, ...]:
    """Return searches by the vectors of a few points, for each vector of the collection; not yet answered."""
    points = list(examples)
    found = []
    for using, lower_is_better in _searchable(info).items():
        for point in points:
            vectors = point.get("vector")
            vector = vectors.get(using) if isinstance(vectors, Mapping) else (vectors if using == "" else None)
            if vector:
                found.append(CanaryQuery(using=using, vector=vector, lower_is_better=lower_is_better))
    return tuple(found[:QUERIES_LIMIT])


def _searchable(info: CollectionInfo) -> dict[str, bool]:
    """Return whether the best score is the lowest, by vector name. Multivectors by distance are left out."""
    params = info.config["params"]
    vectors = params.get("vectors") or {}
    dense = {"": vectors} if "size" in vectors else vectors
    names = {
        name: one["distance"] in _LOWER_IS_BETTER
        for name, one in dense.items()
        if not (one.get("multivector_config") and one["distance"] in _LOWER_IS_BETTER)
    }
    return names | dict.fromkeys(params.get("sparse_vectors") or {}, False)


def answer_queries(
    server: QdrantServer, name: str, queries: Sequence[CanaryQuery]
) -> tuple[tuple[tuple[str, float], ...], ...] | None:
    """Return the best points of each search, exactly; None when the collection's strict mode refuses exact searches."""
    answers = []
    for query in queries:
        options: dict[str, Any] = {"params": {"exact": True}, "with_payload": False}
        if query.using:
            options["using"] = query.using
        try:
            points = server.query(name, query.vector, limit=TOP, **options)
        except QdrantRefused as refused:
            if refused.status == 400:
                return None
            raise
        answers.append(tuple((str(point["id"]), float(point["score"])) for point in points))
    return tuple(answers)
