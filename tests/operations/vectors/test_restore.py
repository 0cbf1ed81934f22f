"""A backup is restored into a new collection, compared on every node, and made live by one step of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from synapse_ops.errors import ConfigError, IntegrityError, Refused, TargetNotEmpty, Unreachable
from synapse_ops.operations.stack import Stack
from synapse_ops.operations.vectors.alias import switch_alias
from synapse_ops.operations.vectors.restore import VectorRestoreReport, apply_vector_restore
from synapse_ops.operations.vectors.restore_plan import plan_vector_restore
from synapse_ops.operations.vectors.snapshot import SnapshotReport, snapshot_collection
from synapse_ops.systems.qdrant.server import QdrantRefused, QdrantServer
from tests.operations.vectors.collections import (
    fill,
    plain_config,
    plain_points,
    rich_config,
    rich_points,
    skip_unless_it_shards,
)

TIMEOUT_S = 60.0
SWITCHED_WHILE_ASKED = 200  # answers


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
        assert restored.metadata == {}
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
    """The server refuses a shard: the empty collection that was made for it goes."""
    fill(server, collection, plain_config(), plain_points(20))
    report = snapshot_collection(stack, collection)
    new = f"{collection}_restored"
    existed = []

    class RefusesShards(QdrantServer):
        def recover_shard(self, collection: str, *_: Any, **__: Any) -> None:
            existed.append(self.exists(collection))
            raise QdrantRefused("POST", collection, status=500, said="this shard is not taken")

    with RefusesShards(server.url) as refusing, pytest.raises(QdrantRefused, match="500"):
        restore(stack, refusing, report, new)
    assert existed == [True]
    assert new not in server.collections()


@pytest.mark.parametrize("by", ["the application", "another restore"])
def test_a_collection_that_took_the_name_meanwhile_is_not_deleted(
    stack: Stack, server: QdrantServer, collection: str, by: str
) -> None:
    """The name was free when the restore was planned; what was made there since belongs to whoever made it."""
    fill(server, collection, plain_config(), plain_points(20))
    report = snapshot_collection(stack, collection)
    new = f"{collection}_restored"

    class IsLate(QdrantServer):
        def create_collection(self, name: str, config: Mapping[str, Any]) -> None:
            if by == "the application":
                fill(server, name, plain_config(), plain_points(7))
            else:
                restore(stack, server, report, name)
            super().create_collection(name, config)

    try:
        with IsLate(server.url) as late, pytest.raises(QdrantRefused, match="409"):
            restore(stack, late, report, new)
        assert server.count(new) == (7 if by == "the application" else 20)
    finally:
        server.delete_collection(new)


def test_a_new_collection_whose_creation_was_never_answered_goes_too(
    stack: Stack, server: QdrantServer, collection: str
) -> None:
    """The token in its metadata shows that this restore made it, although no answer said so."""
    fill(server, collection, plain_config(), plain_points(20))
    report = snapshot_collection(stack, collection)

    class LosesTheAnswer(QdrantServer):
        def create_collection(self, name: str, config: Mapping[str, Any]) -> None:
            super().create_collection(name, config)
            raise Unreachable("the answer was lost")

    with LosesTheAnswer(server.url) as losing, pytest.raises(Unreachable):
        restore(stack, losing, report, f"{collection}_restored")
    assert f"{collection}_restored" not in server.collections()


def test_a_damaged_copy_is_refused_before_a_collection_is_made(
    stack: Stack, server: QdrantServer, collection: str
) -> None:
    """A byte of the stored snapshot was changed."""
    fill(server, collection, plain_config(), plain_points(20))
    report = snapshot_collection(stack, collection)
    store = stack.vector_repository().store
    key = report.place.key(report.record.shards[0].object_name)
    data = bytearray(store.read_bytes(key))
    data[100] ^= 1
    store.put_bytes(key, bytes(data))

    class MakesNothing(QdrantServer):
        def create_collection(self, name: str, config: Mapping[str, Any]) -> None:
            raise AssertionError(f"{name} was made")

    with MakesNothing(server.url) as unchanged, pytest.raises(IntegrityError):
        restore(stack, unchanged, report, f"{collection}_restored")


def test_an_alias_is_switched_in_one_step_and_says_what_it_stood_for(server: QdrantServer, collection: str) -> None:
    """A client that asks by the alias all the time finds one collection or the other, never none."""
    fill(server, collection, plain_config(), plain_points(20))
    other, alias = f"{collection}_other", f"{collection}-live"
    fill(server, other, plain_config(), plain_points(30))
    found: list[int] = []
    ends = threading.Event()

    def ask() -> None:
        with QdrantServer(server.url) as client:
            while not ends.is_set():
                found.append(client.count(alias))

    try:
        assert switch_alias([server], alias, collection) is None
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask)
            try:
                give_up_at = time.monotonic() + TIMEOUT_S
                live, next_one = collection, other
                while len(found) < SWITCHED_WHILE_ASKED and not asking.done() and time.monotonic() < give_up_at:
                    assert switch_alias([server], alias, next_one) == live
                    live, next_one = next_one, live
            finally:
                ends.set()
            asking.result(timeout=TIMEOUT_S)
        assert set(found) == {20, 30}
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
    from synapse_ops.operations.vectors import restore_checks as vector_restore_checks

    fill(server, collection, plain_config(), plain_points(20))
    report = snapshot_collection(stack, collection)
    monkeypatch.setattr(vector_restore_checks, "segment_versions", lambda _: ("0.5.9",))

    with pytest.raises(Refused, match="segments of version"):
        restore(stack, server, report, f"{collection}_restored")
    assert f"{collection}_restored" not in server.collections()
