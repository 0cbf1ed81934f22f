"""Whatever a collection is called and holds, it is snapshotted, proven and restored equal, on one node or a cluster.

On the servers of QDRANT_CLUSTER_URLS with three shards of two replicas, else on the one server of the other tests.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from synapse_ops.domain.vectors.points import canonical_point
from synapse_ops.operations.backup_kinds import SNAPSHOTS
from synapse_ops.operations.stack import Stack
from synapse_ops.operations.vectors.restore import apply_vector_restore
from synapse_ops.operations.vectors.restore_plan import plan_vector_restore
from synapse_ops.operations.vectors.snapshot import snapshot_collection
from synapse_ops.systems.qdrant.server import QdrantRefused, QdrantServer
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.vectors.collections import make_vector_stack, plain_config, plain_points, rich_config, rich_points

CLUSTER = tuple(os.environ.get("QDRANT_CLUSTER_URLS", "").split(",")) if os.environ.get("QDRANT_CLUSTER_URLS") else ()
TIMEOUT_S = 90.0
CHANCE = random.Random(3)

Points = list[dict[str, Any]]
PAYLOADS: list[dict[str, Any]] = [
    {"most": 2**63 - 1, "least": -(2**63), "unsigned": 2**64 - 1, "beyond": 10**25, "double": 9007199254740993.0},
    {"large": 1.7976931348623157e308, "small": 5e-324, "minus": -0.0, "one": 1.0, "third": 0.1 + 0.2},
    {"none": None, "deep": {"list": [None, {"empty": [[], {}, ""]}], "yes": True}},
    {"Ünï ☃ 🎉": '\x00\x1f\u2028\U0001f600"\\/', "": "no name", "a.b": 1, "a[0]": 2},
    {"mixed": [1, 1.0, "1", True, None]},
    {},
]


def some_vector(size: int = 16) -> list[float]:
    return [CHANCE.gauss(0, 1) for _ in range(size)]


def payload_points() -> Points:
    """Every kind of payload under both kinds of ids, with the largest of each."""
    ids: list[int | str] = [*range(12), *(str(UUID(int=(n + 1) * 7919**9)) for n in range(12))]
    ids += [2**64 - 1, str(UUID(int=2**128 - 1))]
    return [{"id": one, "vector": some_vector(), "payload": PAYLOADS[n % 6]} for n, one in enumerate(ids)]


def points_with_missing_vectors() -> Points:
    points = rich_points(120)
    for number, point in enumerate(points):
        if number % 3 == 0:
            point["vector"] = {"text": point["vector"]["text"]} if number % 2 else {}
    return points


def multivectors() -> Points:
    return [{"id": n, "vector": [some_vector(4) for _ in range(1 + n % 4)]} for n in range(100)]


def sparse_points() -> Points:
    return [{"id": n, "vector": {"s": {"indices": [n, 2**32 - 1], "values": [1.5, -2.0]}}} for n in range(1, 50)]


STRICT = {"enabled": True, "max_query_limit": 7, "search_allow_exact": False}
KINDS: dict[str, tuple[dict[str, Any], Points]] = {
    "no point": (plain_config(), []),
    "every payload": (plain_config(), payload_points()),
    "a vector missing here and there": (rich_config(), points_with_missing_vectors()),
    "by distance": ({"vectors": {"size": 16, "distance": "Euclid"}}, plain_points(100)),
    "multivectors by distance": (
        {"vectors": {"size": 4, "distance": "Euclid", "multivector_config": {"comparator": "max_sim"}}},
        multivectors(),
    ),
    "sparse alone": ({"sparse_vectors": {"s": {}}}, sparse_points()),
    "half precision": ({"vectors": {"size": 16, "distance": "Cosine", "datatype": "float16"}}, plain_points(100)),
    "binary quantised": (plain_config(quantization_config={"binary": {"always_ram": True}}), plain_points(100)),
    "strict mode": (plain_config(strict_mode_config=STRICT), plain_points(60)),
}


@pytest.fixture
def nodes(request: pytest.FixtureRequest) -> Iterator[list[QdrantServer]]:
    if not CLUSTER:
        yield [request.getfixturevalue("server")]
        return
    found = [QdrantServer(url) for url in CLUSTER]
    yield found
    for node in found:
        node.close()


@pytest.fixture
def stack_of_nodes(
    tmp_path: Path, nodes: list[QdrantServer], bucket_url: str, object_store_access: StoreAccess
) -> Stack:
    key = os.environ.get("QDRANT_API_KEY")
    return make_vector_stack(
        tmp_path, tuple(node.url for node in nodes), bucket_url, object_store_access, api_key=None if CLUSTER else key
    )


def make(nodes: list[QdrantServer], name: str, config: dict[str, Any], points: Points) -> None:
    more = {"shard_number": 3, "replication_factor": 2} if CLUSTER else {}
    try:
        nodes[0].create_collection(name, {**config, **more})
    except QdrantRefused as refused:
        if "Not part of the embedded server" not in refused.stderr_tail:
            raise
        pytest.skip(refused.stderr_tail)
    for start in range(0, len(points), 200):
        nodes[0].upsert(name, points[start : start + 200])


def content(node: QdrantServer, name: str) -> list[bytes]:
    page = node.collection(name).page_limit or 1000
    return [
        canonical_point(point["id"], point.get("vector"), point.get("payload"))
        for point in node.scroll_all(name, limit=page)
    ]


def prove_and_restore(stack: Stack, nodes: list[QdrantServer], name: str, count: int) -> None:
    """Take the whole way, and compare what the last node says of the new collection with what the first said."""
    repository, work, new = stack.vector_repository(), stack.state_dir / "proof", f"{name} again"
    try:
        report = snapshot_collection(stack, name)
        proof = SNAPSHOTS.prove(repository, place=report.place, work_dir=work, timeout_s=TIMEOUT_S)
        plan = plan_vector_restore(repository, report.place, nodes, new)
        done = apply_vector_restore(repository, plan, nodes, work_dir=work, timeout_s=TIMEOUT_S)

        assert proof is not None
        assert (proof.is_proven, proof.record.differences) == (True, ())
        assert done.counts == {node.url: count for node in nodes}
        assert content(nodes[-1], new) == content(nodes[0], name)
        before, after = nodes[0].collection(name).config, nodes[-1].collection(new).config
        assert {**after, "metadata": None} == {**before, "metadata": None}
    finally:
        nodes[0].delete_collection(name)
        nodes[0].delete_collection(new)


@pytest.mark.parametrize("kind", KINDS)
def test_a_collection_of_any_kind_comes_back_equal(stack_of_nodes: Stack, nodes: list[QdrantServer], kind: str) -> None:
    """Null, floats, numbers beyond int64, any Unicode, both kinds of ids, no points, a strict mode that forbids."""
    config, points = KINDS[kind]
    name = f"test_{secrets.token_hex(4)}"
    make(nodes, name, config, points)

    prove_and_restore(stack_of_nodes, nodes, name, len(points))


@pytest.mark.parametrize("word", ["with a space", "ünïcödé ☃", "a+b&c=d%20#e", "-dash", "x" * 180])
def test_a_collection_of_any_name_comes_back_equal(stack_of_nodes: Stack, nodes: list[QdrantServer], word: str) -> None:
    """A name is one part of a URL, of a key in S3 and of a file on the server."""
    name = f"{word} {secrets.token_hex(4)}"
    make(nodes, name, plain_config(), plain_points(20))

    prove_and_restore(stack_of_nodes, nodes, name, 20)
