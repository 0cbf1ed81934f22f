"""A collection's backup is whole or not there, says what is in it, and leaves nothing on the server."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import zstandard
from psycopg.conninfo import conninfo_to_dict

from synapse_ops.domain.backup.layout import BackupPlace
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.vectors.fingerprint import VectorFingerprint, canaries_from_json
from synapse_ops.errors import ConfigError, LeaseHeld
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup.lease import hold_lease
from synapse_ops.operations.backup_kinds import SNAPSHOTS
from synapse_ops.operations.stack import Stack
from synapse_ops.operations.vectors.snapshot import snapshot_collection
from synapse_ops.systems.postgres.connection import connect
from synapse_ops.systems.postgres.identity import ServerMoment, read_moment
from synapse_ops.systems.qdrant.server import QdrantServer
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.vectors.collections import fill, make_vector_stack, plain_config, plain_points
from tests.servers import PostgresServer


def test_a_backup_names_the_servers_own_archive_and_what_it_must_hold(
    stack: Stack, server: QdrantServer, collection: str
) -> None:
    """Without a writer there is no window, and the digest over all points is known."""
    fill(server, collection, plain_config(), plain_points(300))
    server.switch_alias(f"{collection}-live", collection)

    report = snapshot_collection(stack, collection, set_id="tick")
    record, store = report.record, stack.vector_repository().store

    assert (record.window.points_before, record.window.points_after, record.window.changed) == (300, 300, False)
    assert record.points_digest is not None
    assert record.aliases == (f"{collection}-live",)
    [shard] = record.shards
    stored = store.read_bytes(report.place.key(shard.object_name))
    archive = zstandard.ZstdDecompressor().stream_reader(stored).read()
    assert shard.compression == "zstd:1"
    assert hashlib.sha256(archive).hexdigest() == shard.snapshot_sha256 == shard.server_checksum
    fingerprint = VectorFingerprint.from_json(store.read_bytes(report.place.key("fingerprint.json")))
    assert (len(fingerprint.still), fingerprint.moved) == (300, ())
    assert len(canaries_from_json(store.read_bytes(report.place.key("canaries.json")))[0].top) == 10
    config = json.loads(store.read_bytes(report.place.key("collection.json")))["config"]
    assert config["params"]["vectors"]["size"] == 16
    assert [entry.place for entry in read_catalog(stack.vector_repository()).backups] == [report.place]
    assert server.list_shard_snapshots(collection, 0) == ()


def test_a_streamed_shard_needs_no_file_on_the_server_and_is_proven_all_the_same(
    tmp_path: Path, server: QdrantServer, collection: str, bucket_url: str, object_store_access: StoreAccess
) -> None:
    """It has no checksum of the server's own: that it is whole is what the proof finds out."""
    stack = make_vector_stack(
        tmp_path, (server.url,), bucket_url, object_store_access, extra=", method: streamed, compression: false"
    )
    fill(server, collection, plain_config(), plain_points(100))

    report = snapshot_collection(stack, collection)
    proof = SNAPSHOTS.prove(stack.vector_repository(), place=report.place, work_dir=tmp_path / "proof")

    [shard] = report.record.shards
    assert (shard.method, shard.server_checksum, shard.compression) == ("streamed", None, "none")
    assert proof is not None
    assert proof.is_proven


def test_what_a_killed_run_left_on_a_node_is_named_by_the_next_one_and_not_touched(
    stack: Stack, server: QdrantServer, collection: str
) -> None:
    """Its heartbeat says what lies where; Qdrant's own names do not say whose they are."""
    fill(server, collection, plain_config(), plain_points(20))
    first = snapshot_collection(stack, collection)
    left = server.create_shard_snapshot(collection, 0)
    assert left is not None
    store = stack.vector_repository().store
    killed = BackupPlace(first.place.identity, "snapshot", collection, "20260101T000000Z-0a0b0c")
    on_nodes = [{"node": server.url, "shard_id": 0, "name": left.name}]
    store.put_bytes(killed.key("heartbeat.json"), json.dumps({"on_nodes": on_nodes}).encode())
    made_in = int(time.time())
    while int(time.time()) <= made_in:  # Qdrant's names tell seconds only: one cut in the same second is the same file
        threading.Event().wait(0.05)

    report = snapshot_collection(stack, collection)

    assert [url.rpartition("/")[2] for url in report.left_overs] == [left.name]
    assert [one.name for one in server.list_shard_snapshots(collection, 0)] == [left.name]
    server.delete_shard_snapshot(collection, 0, left.name)


def test_a_window_lies_between_two_positions_of_the_databases_own_wal(
    tmp_path: Path,
    server: QdrantServer,
    collection: str,
    bucket_url: str,
    object_store_access: StoreAccess,
    postgres_server: PostgresServer,
    fresh_database: Callable[..., str],
) -> None:
    """Both ends, by the database's clock: what was committed before is below the first, what came after is above."""
    conninfo = fresh_database()
    stack = make_vector_stack(tmp_path, (server.url,), bucket_url, object_store_access, conninfo=conninfo)
    fill(server, collection, plain_config(), plain_points(20))

    before = position(conninfo)
    postgres_server.execute("create table t as select 1", conninfo_to_dict(conninfo)["dbname"])
    window = snapshot_collection(stack, collection).record.window
    postgres_server.execute("create table u as select 1", conninfo_to_dict(conninfo)["dbname"])
    after = position(conninfo)

    assert window.start_lsn is not None
    assert window.stop_lsn is not None
    assert before.lsn < Lsn.parse(window.start_lsn) <= Lsn.parse(window.stop_lsn) < after.lsn
    assert before.database_time < window.opened_at <= window.closed_at < after.database_time
    assert (window.timeline, window.database_fault) == (1, None)


def test_a_database_that_is_down_is_named_and_the_collection_is_snapshotted_all_the_same(
    stack: Stack, server: QdrantServer, collection: str
) -> None:
    """The window has our own clock then, no LSN, and says why: in backup.json, and as a warning."""
    fill(server, collection, plain_config(), plain_points(20))
    begun = datetime.now(UTC)

    report = snapshot_collection(stack, collection)

    window = report.record.window
    assert (window.start_lsn, window.stop_lsn, window.timeline) == (None, None, None)
    assert window.database_fault is not None
    assert "could not reach PostgreSQL" in window.database_fault
    assert "127.0.0.1:1" in window.database_fault
    assert any(window.database_fault in warning for warning in report.warnings)
    assert begun <= window.opened_at <= window.closed_at <= datetime.now(UTC)


def position(conninfo: str) -> ServerMoment:
    with connect(conninfo) as connection:
        return read_moment(connection)


def test_an_alias_is_no_collection(stack: Stack, server: QdrantServer, collection: str) -> None:
    """Qdrant answers for it, but its backups would change their subject with the next switch."""
    fill(server, collection, plain_config(), plain_points(5))
    server.switch_alias(f"{collection}-live", collection)

    with pytest.raises(ConfigError, match="is an alias of"):
        snapshot_collection(stack, f"{collection}-live")


def test_one_collection_is_snapshotted_by_one_at_a_time(stack: Stack, server: QdrantServer, collection: str) -> None:
    """Two files of one second would have one name on the server."""
    fill(server, collection, plain_config(), plain_points(5))

    with (
        hold_lease(stack.vector_repository(), f"snapshot-{collection}", owner="somebody", ttl_s=3),
        pytest.raises(LeaseHeld, match="somebody"),
    ):
        snapshot_collection(stack, collection)
