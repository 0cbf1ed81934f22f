"""A collection's backup is whole or not there, says what is in it, and leaves nothing on the server."""

from __future__ import annotations

import hashlib
import json

import zstandard

from synapse_ops.domain.vector_fingerprint import VectorFingerprint, canaries_from_json
from synapse_ops.operations.backup_catalog import read_catalog
from synapse_ops.operations.stack import Stack
from synapse_ops.operations.vector_snapshot import snapshot_collection
from synapse_ops.systems.qdrant import QdrantServer
from tests.vectors.collections import fill, plain_config, plain_points


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
