"""Only a copy that was opened and is equal to what the live collection said is proven."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyrage
import pytest
import zstandard

from synapse_ops.domain.backup.proof_record import Verdict
from synapse_ops.domain.backup.snapshot_record import SnapshotRecord
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup.proving import ProofReport
from synapse_ops.operations.backup_kinds import SNAPSHOTS
from synapse_ops.operations.stack import Stack
from synapse_ops.operations.vectors.snapshot import SnapshotReport, snapshot_collection
from synapse_ops.systems.qdrant.server import QdrantServer
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.vectors.collections import (
    fill,
    make_vector_stack,
    plain_config,
    plain_points,
    rich_config,
    rich_points,
    skip_unless_it_shards,
)

TIMEOUT_S = 60.0


def prove(stack: Stack, report: SnapshotReport, **more: Any) -> ProofReport:
    found = SNAPSHOTS.prove(
        stack.vector_repository(),
        place=report.place,
        work_dir=stack.state_dir / "proof",
        timeout_s=TIMEOUT_S,
        **more,
    )
    assert found is not None
    return found


def forge(stack: Stack, report: SnapshotReport, archive: bytes) -> None:
    """Put another archive in place of the only shard's, and have every document agree with its bytes."""
    store, record = stack.vector_repository().store, report.record
    name = record.shards[0].object_name
    packed = zstandard.ZstdCompressor(1).compress(archive)
    written = store.put_bytes(report.place.key(name), packed)
    sha256, size = hashlib.sha256(packed).hexdigest(), len(packed)
    changes = {"etag": written.etag, "sha256": sha256, "size_bytes": size, "plain_size_bytes": size}
    objects = tuple(one if one.name != name else one.model_copy(update=changes) for one in record.objects)
    plain = {"snapshot_sha256": hashlib.sha256(archive).hexdigest(), "snapshot_bytes": len(archive)}
    forged: SnapshotRecord = record.model_copy(
        update={
            "shards": (record.shards[0].model_copy(update=plain),),
            "objects": objects,
            "stored_bytes": sum(one.size_bytes for one in objects),
            "dumped_bytes": len(archive),
        }
    )
    store.put_bytes(report.place.key("backup.json"), forged.to_json())


@contextmanager
def writer(server: QdrantServer, collection: str, *, beside: int) -> Iterator[list[int]]:
    """Upsert new points and delete old ones, as fast as the server takes it, while the block runs."""
    stop, written = threading.Event(), list[int]()

    def write() -> None:
        with QdrantServer(server.url) as mine:
            number = beside
            while not stop.is_set():
                mine.upsert(collection, plain_points(5, first=number, seed=number))
                mine.upsert(collection, plain_points(2, first=number % 100, seed=number))
                mine.delete_points(collection, [number - 20])
                number += 5
                written.append(number)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield written
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("shards", [1, 3])
def test_a_collection_of_every_kind_of_vector_is_proven_with_the_digest_of_all_points(
    stack: Stack, server: QdrantServer, collection: str, shards: int
) -> None:
    """Named, sparse, multi and quantised vectors, several shards, payload indexes, and every search found again."""
    skip_unless_it_shards(server, collection, shards)
    fill(server, collection, rich_config(shard_number=shards), rich_points(400))
    server.create_payload_index(collection, "n", "integer")
    report = snapshot_collection(stack, collection)

    found = prove(stack, report)

    assert (found.record.verdict, found.record.reason) == (Verdict.PROVEN, "")
    assert found.record.snapshot is not None
    assert sum(found.record.snapshot.shard_points.values()) == 400
    assert found.record.snapshot.points_digest == report.record.points_digest
    assert found.record.snapshot.recall_at_10 == 1.0
    assert read_catalog(stack.vector_repository()).backups[0].proven_at is not None


def test_a_snapshot_cut_under_a_stream_of_writes_and_deletes_is_proven_and_its_window_counted(
    stack: Stack, server: QdrantServer, collection: str
) -> None:
    """Points that stood still must be equal; those that moved are named as the window."""
    fill(server, collection, plain_config(), plain_points(2000))

    with writer(server, collection, beside=2000) as written:
        report = snapshot_collection(stack, collection)
    found = prove(stack, report)

    assert written
    assert report.record.window.changed
    assert report.record.window.moved_points > 0
    assert (found.record.verdict, found.record.differences) == (Verdict.PROVEN, ())
    assert found.record.snapshot is not None
    assert found.record.snapshot.still_points >= 1800


def test_an_encrypted_backup_is_proven_with_its_key_and_not_without(
    tmp_path: Path, server: QdrantServer, collection: str, bucket_url: str, object_store_access: StoreAccess
) -> None:
    key = pyrage.x25519.Identity.generate()
    stack = make_vector_stack(
        tmp_path, (server.url,), bucket_url, object_store_access, recipients=(str(key.to_public()),)
    )
    fill(server, collection, plain_config(), plain_points(50))
    report = snapshot_collection(stack, collection)

    assert prove(stack, report).record.verdict is Verdict.NOT_ATTEMPTED
    assert prove(stack, report, identities=(str(key),)).is_proven


def test_one_changed_byte_of_a_stored_snapshot_is_named_with_both_digests(
    stack: Stack, server: QdrantServer, collection: str
) -> None:
    fill(server, collection, plain_config(), plain_points(50))
    report = snapshot_collection(stack, collection)
    store = stack.vector_repository().store
    key = report.place.key(report.record.shards[0].object_name)
    data = bytearray(store.read_bytes(key))
    data[len(data) // 2] ^= 1
    store.put_bytes(key, bytes(data))

    found = prove(stack, report)

    assert found.record.verdict is Verdict.UNPROVEN
    assert "ChecksumMismatch" in found.record.reason
    assert found.exit_code == 13


@pytest.mark.parametrize(
    ("config", "points", "word"),
    [
        (plain_config(), plain_points(60, seed=2), "points differ"),
        ({"vectors": {"size": 4, "distance": "Dot"}}, [{"id": 1, "vector": [1, 2, 3, 4]}], "4 Dot, expected 16 Cosine"),
    ],
    ids=["another collection", "another dimension"],
)
def test_another_collections_snapshot_put_in_its_place_differs(
    stack: Stack,
    server: QdrantServer,
    collection: str,
    config: dict[str, Any],
    points: list[dict[str, Any]],
    word: str,
) -> None:
    """Even when every document was rewritten to agree with the bytes: the content is compared, not the checksum."""
    fill(server, collection, plain_config(), plain_points(50))
    good = snapshot_collection(stack, collection)
    fill(server, collection, config, points)
    other = snapshot_collection(stack, collection)
    store = stack.vector_repository().store
    name = other.record.shards[0].object_name
    forge(stack, good, zstandard.ZstdDecompressor().stream_reader(store.read_bytes(other.place.key(name))).read())

    found = prove(stack, good)

    assert found.record.verdict is Verdict.DIFFERS
    assert word in "\n".join(found.record.differences)


def test_a_proof_that_has_no_time_left_is_unproven(stack: Stack, server: QdrantServer, collection: str) -> None:
    fill(server, collection, plain_config(), plain_points(50))
    report = snapshot_collection(stack, collection)

    found = SNAPSHOTS.prove(
        stack.vector_repository(), place=report.place, work_dir=stack.state_dir / "proof", timeout_s=0.05
    )

    assert found is not None
    assert found.record.verdict is Verdict.UNPROVEN


def test_a_crash_of_the_engine_is_unproven_with_the_signal(stack: Stack, server: QdrantServer, collection: str) -> None:
    """Every checksum agrees; one part of the archive's id mapping ends the process that reads it."""
    fill(server, collection, plain_config(), plain_points(50))
    report = snapshot_collection(stack, collection)
    store = stack.vector_repository().store
    stored = store.read_bytes(report.place.key(report.record.shards[0].object_name))
    data = bytearray(zstandard.ZstdDecompressor().stream_reader(stored).read())
    at = data.find(b"mutable_id_tracker.mappings")
    begin = at - at % 512 + 512
    data[begin : begin + 40] = b"\xff" * 40
    forge(stack, report, bytes(data))

    found = prove(stack, report)

    assert (found.record.verdict, found.exit_code) == (Verdict.UNPROVEN, 14)
    assert "Qdrant's engine" in found.record.reason


def test_a_host_without_the_engine_or_the_room_does_not_judge(
    stack: Stack, server: QdrantServer, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the host lacks is named, says nothing of the backup and undoes no proof; a time-out is a doubt."""
    fill(server, collection, plain_config(), plain_points(20))
    report = snapshot_collection(stack, collection)
    assert prove(stack, report).is_proven

    with monkeypatch.context() as lacking:
        lacking.setitem(sys.modules, "qdrant_edge", None)  # Python's own way to say that a module cannot be imported
        without = prove(stack, report)
    proven_still = read_catalog(stack.vector_repository()).backups[0].proven_at
    huge = report.record.model_copy(update={"dumped_bytes": 1 << 60})
    stack.vector_repository().store.put_bytes(report.place.key("backup.json"), huge.to_json())
    no_room = prove(stack, report)

    assert (without.record.verdict, without.exit_code) == (Verdict.NOT_ATTEMPTED, 14)
    assert "engine is not installed" in without.record.reason
    assert proven_still is not None
    assert (no_room.record.verdict, no_room.exit_code) == (Verdict.NOT_ATTEMPTED, 14)
    assert "not enough space to restore" in no_room.record.reason
