"""A cluster: each shard from one active replica, each node its own shards back. Needs QDRANT_CLUSTER_URLS."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_ops.errors import Refused, Unreachable
from synapse_ops.operations.backup_kinds import SNAPSHOTS
from synapse_ops.operations.stack import Stack
from synapse_ops.operations.vectors.restore import apply_vector_restore
from synapse_ops.operations.vectors.restore_plan import plan_vector_restore
from synapse_ops.operations.vectors.snapshot import snapshot_collection
from synapse_ops.systems.qdrant.server import QdrantServer
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.vectors.collections import (
    fill,
    make_vector_stack,
    plain_config,
    plain_points,
    rich_config,
    rich_points,
)
from tests.operations.vectors.test_proof import writer

URLS = tuple(os.environ.get("QDRANT_CLUSTER_URLS", "").split(",")) if os.environ.get("QDRANT_CLUSTER_URLS") else ()
NOBODY = "http://127.0.0.1:1"
TIMEOUT_S = 60.0
pytestmark = pytest.mark.skipif(len(URLS) < 3, reason="QDRANT_CLUSTER_URLS names no cluster")


@pytest.fixture
def nodes() -> list[QdrantServer]:
    return [QdrantServer(url) for url in URLS]


@pytest.fixture
def name(nodes: list[QdrantServer]) -> Iterator[str]:
    found = f"test_{secrets.token_hex(4)}"
    yield found
    nodes[0].delete_collection(found)
    nodes[0].delete_collection(f"{found}_new")


@pytest.fixture
def cluster(tmp_path: Path, bucket_url: str, object_store_access: StoreAccess) -> Stack:
    return make_vector_stack(tmp_path, URLS, bucket_url, object_store_access)


@pytest.mark.parametrize("replicas", [1, 2])
def test_every_shard_is_proven_and_restored_to_its_nodes_with_equal_counts_on_each(
    cluster: Stack, nodes: list[QdrantServer], name: str, replicas: int
) -> None:
    fill(nodes[0], name, rich_config(shard_number=3, replication_factor=replicas), rich_points(600))
    repository, work = cluster.vector_repository(), cluster.state_dir / "proof"

    report = snapshot_collection(cluster, name)
    proof = SNAPSHOTS.prove(repository, place=report.place, work_dir=work, timeout_s=TIMEOUT_S)
    plan = plan_vector_restore(repository, report.place, nodes, f"{name}_new")
    done = apply_vector_restore(repository, plan, nodes, work_dir=work, timeout_s=TIMEOUT_S)

    assert len({shard.peer_id for shard in report.record.shards}) > 1
    assert proof is not None
    assert (proof.is_proven, proof.record.differences) == (True, ())
    assert done.counts == dict.fromkeys(URLS, 600)
    assert list(nodes[1].scroll_all(f"{name}_new")) == list(nodes[2].scroll_all(name))


@pytest.mark.parametrize("replicas", [1, 3])
def test_what_was_cut_under_writes_on_three_nodes_is_proven_and_restored_to_equal_counts(
    cluster: Stack, nodes: list[QdrantServer], name: str, replicas: int
) -> None:
    """Writes and deletes go through one node, readings through another; every replica ends with its shard's points."""
    fill(nodes[0], name, plain_config(shard_number=4, replication_factor=replicas), plain_points(1500))
    repository, work = cluster.vector_repository(), cluster.state_dir / "proof"

    with writer(nodes[1], name, beside=1500):
        report = snapshot_collection(cluster, name)
    proof = SNAPSHOTS.prove(repository, place=report.place, work_dir=work, timeout_s=TIMEOUT_S)
    plan = plan_vector_restore(repository, report.place, nodes, f"{name}_new")
    done = apply_vector_restore(repository, plan, nodes, work_dir=work, timeout_s=TIMEOUT_S)

    assert report.record.window.changed
    assert proof is not None
    assert (proof.is_proven, proof.record.differences) == (True, ())
    assert proof.record.snapshot is not None
    assert done.counts == dict.fromkeys(URLS, sum(proof.record.snapshot.shard_points.values()))


def test_a_silent_node_voids_only_the_shards_that_have_no_other_replica(
    tmp_path: Path, nodes: list[QdrantServer], name: str, bucket_url: str, object_store_access: StoreAccess
) -> None:
    stack = make_vector_stack(tmp_path, (URLS[0], URLS[1], NOBODY), bucket_url, object_store_access)
    fill(nodes[0], name, plain_config(shard_number=3, replication_factor=2), plain_points(300))
    assert any(NOBODY in warning for warning in snapshot_collection(stack, name).warnings)

    fill(nodes[0], name, plain_config(shard_number=3), plain_points(300))
    with pytest.raises(Unreachable, match="void") as raised:
        snapshot_collection(stack, name)
    assert "no active replica on a node that answers" in raised.value.detail


def test_a_restore_is_refused_while_a_node_is_not_named(cluster: Stack, nodes: list[QdrantServer], name: str) -> None:
    """It would get no shards, and nobody would compare its counts."""
    fill(nodes[0], name, plain_config(shard_number=3), plain_points(30))
    report = snapshot_collection(cluster, name)

    with pytest.raises(Refused, match="not named"):
        plan_vector_restore(cluster.vector_repository(), report.place, nodes[:2], f"{name}_new")
