"""A backup is restored into a new collection, compared on every node, and made live by one step of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from synapse_ops.errors import ConfigError, IntegrityError, Refused, TargetNotEmpty
from synapse_ops.operations.stack import Stack
from synapse_ops.operations.vector_alias import switch_alias
from synapse_ops.operations.vector_restore import VectorRestoreReport, apply_vector_restore
from synapse_ops.operations.vector_restore_plan import plan_vector_restore
from synapse_ops.operations.vector_snapshot import SnapshotReport, snapshot_collection
from synapse_ops.systems.qdrant import QdrantServer
from tests.vectors.collections import (
    fill,
    plain_config,
    plain_points,
    rich_config,
    rich_points,
    skip_unless_it_shards,
)

TIMEOUT_S = 60.0


def restore(stack: Stack, server: QdrantServer, report: SnapshotReport, to: str) -> VectorRestoreReport:
    repository = stack.vector_repository()
    plan = plan_vector_restore(repository, report.place, [server], to)
    return apply_vector_restore(repository, plan, [server], work_dir=stack.state_dir / "proof", timeout_s=TIMEOUT_S)


def content(server: QdrantServer, collection: str) -> list[dict[str, Any]]:
    return list(server.scroll_all(collection))


@pytest.mark.parametrize("shards", [1, 3])
def test_a_restored_collection_equals_the_one_that_was_backed_up_and_nothing_stays_behind(
    stack: Stack, server: QdrantServer, collection: str, shards: int
) -> None:
    """Configuration, payload indexes and every point; no upload is left in the server's snapshot folder."""
    skip_unless_it_shards(server, collection, shards)
    fill(server, collection, rich_config(shard_number=shards), rich_points(300))
    server.create_payload_index(collection, "n", "integer")
    report = snapshot_collection(stack, collection)
    new = f"{collection}_restored"
    try:
        done = restore(stack, server, report, new)

        assert set(done.counts.values()) == {300}
        assert content(server, new) == content(server, collection)
        old, restored = server.collection(collection), server.collection(new)
        assert restored.config["params"] == old.config["params"]
        assert restored.payload_schema.keys() == {"n"}
        assert "synapse_ops" not in restored.metadata
        assert [server.list_shard_snapshots(new, shard) for shard in range(shards)] == [()] * shards
    finally:
        server.delete_collection(new)


def test_an_existing_name_is_never_restored_over(stack: Stack, server: QdrantServer, collection: str) -> None:
    """Neither a collection nor an alias."""
    fill(server, collection, plain_config(), plain_points(20))
    server.switch_alias(f"{collection}-live", collection)
    report = snapshot_collection(stack, collection)

    for name in (collection, f"{collection}-live"):
        with pytest.raises(TargetNotEmpty):
            plan_vector_restore(stack.vector_repository(), report.place, [server], name)


def test_a_restore_that_fails_takes_its_new_collection_with_it(
    stack: Stack, server: QdrantServer, collection: str
) -> None:
    """A byte of the stored snapshot was changed: nothing is made on the server."""
    fill(server, collection, plain_config(), plain_points(20))
    report = snapshot_collection(stack, collection)
    store = stack.vector_repository().store
    key = report.place.key(report.record.shards[0].object_name)
    data = bytearray(store.read_bytes(key))
    data[100] ^= 1
    store.put_bytes(key, bytes(data))

    with pytest.raises(IntegrityError):
        restore(stack, server, report, f"{collection}_restored")
    assert f"{collection}_restored" not in server.collections()


def test_an_alias_is_switched_in_one_step_and_says_what_it_stood_for(server: QdrantServer, collection: str) -> None:
    fill(server, collection, plain_config(), plain_points(20))
    other = f"{collection}_other"
    fill(server, other, plain_config(), plain_points(30))
    try:
        alias = f"{collection}-live"

        assert switch_alias([server], alias, collection) is None
        assert switch_alias([server], alias, other) == collection
        assert server.aliases()[alias] == other
        with pytest.raises(ConfigError):
            switch_alias([server], alias, "nowhere")
        with pytest.raises(ConfigError):
            switch_alias([server], collection, other)
    finally:
        server.delete_collection(other)


def test_a_newer_segment_is_refused_before_it_is_sent(
    stack: Stack, server: QdrantServer, collection: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Fact 29: a segment of a newer version destroys the shard that it is put into."""
    from synapse_ops.operations import vector_restore_checks

    fill(server, collection, plain_config(), plain_points(20))
    report = snapshot_collection(stack, collection)
    monkeypatch.setattr(vector_restore_checks, "segment_versions", lambda _: ("0.5.9",))

    with pytest.raises(Refused, match="segments of version"):
        restore(stack, server, report, f"{collection}_restored")
    assert f"{collection}_restored" not in server.collections()
