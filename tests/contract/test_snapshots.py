"""Snapshots as a real server makes, lists, sends and recovers them, and real ones recovered here."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from synapse_ops.domain.vectors.points import PointsDigest, canonical_point
from synapse_ops.errors import ChecksumMismatch
from synapse_ops.systems.qdrant.server import QdrantRefused
from tests.contract.collection_snapshots import ContractClient
from tests.contract.embedded import EmbeddedQdrant
from tests.contract.test_rest import COSINE, ask, error_of


def digest_of(server: ContractClient, collection: str) -> tuple[int, str]:
    digest, count = PointsDigest(), 0
    for point in server.scroll_all(collection):
        digest.add(point["id"], canonical_point(point["id"], point["vector"], point["payload"]))
        count += 1
    return count, digest.points


def collection_archive(server: ContractClient, name: str) -> bytes:
    made = server.create_collection_snapshot(name)
    assert made is not None
    with server.download_collection_snapshot(name, made.name) as download:
        data = b"".join(download.pieces)
    assert (len(data), hashlib.sha256(data).hexdigest()) == (made.size_bytes, made.checksum)
    return data


def shard_archive(server: ContractClient, name: str) -> bytes:
    with server.stream_shard_snapshot(name, 0) as download:
        assert download.size_bytes is None
        return b"".join(download.pieces)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_snapshot_is_named_listed_downloaded_and_deleted(server: ContractClient, documents: str) -> None:
    """Name, size and sha256 of the listing are those of the file; ranges work; the checksum is a file of its own."""
    made = server.create_collection_snapshot(documents)
    assert made is not None
    peer = server.peer_id(documents)
    assert re.fullmatch(rf"{documents}-{peer}-\d{{4}}(-\d\d){{5}}\.snapshot", made.name)
    assert server.list_collection_snapshots(documents) == (made,)
    place = f"/collections/{documents}/snapshots/{made.name}"

    part = ask(server, "GET", place, headers={"range": "bytes=100-199", "accept-encoding": "identity"})
    checksum = ask(server, "GET", f"{place}.checksum")

    assert (part.status_code, len(part.content)) == (206, 100)
    assert part.headers["content-range"] == f"bytes 100-199/{made.size_bytes}"
    assert checksum.text == made.checksum
    assert server.delete_collection_snapshot(documents, made.name)
    assert not server.delete_collection_snapshot(documents, made.name)
    assert server.list_collection_snapshots(documents) == ()


def test_a_shard_snapshot_is_not_among_those_of_the_collection(server: ContractClient, documents: str) -> None:
    """Two listings."""
    made = server.create_shard_snapshot(documents, 0)

    assert made is not None
    assert made.name.startswith(f"{documents}-shard-0-")
    assert server.list_shard_snapshots(documents, 0) == (made,)
    assert server.list_collection_snapshots(documents) == ()


def test_a_creation_that_is_not_waited_for_is_accepted(server: ContractClient, documents: str) -> None:
    """202 without a name; it appears in the listing."""
    answer = ask(server, "POST", f"/collections/{documents}/snapshots?wait=false")

    assert (answer.status_code, answer.json()["status"]) == (202, "accepted")


def test_the_archive_has_the_real_layout(server: ContractClient, documents: str) -> None:
    """Segments are tars in a tar, the WAL and the configuration lie beside them."""
    with tarfile.open(fileobj=io.BytesIO(collection_archive(server, documents))) as archive:
        names = set(archive.getnames())
        config = json.load(archive.extractfile("config.json"))  # type: ignore[arg-type]
        indexes = json.load(archive.extractfile("payload_index.json"))  # type: ignore[arg-type]
        segment = next(name for name in names if re.fullmatch(r"0/segments/[0-9a-f-]{36}\.tar", name))
        with tarfile.open(fileobj=archive.extractfile(segment)) as inner:
            files = inner.getnames()

    needed = {"version.info", "config.json", "shard_key_mapping.json", "payload_index.json"}
    assert needed | {"0/replica_state.json", "0/shard_config.json"} <= names
    assert any(name.startswith("0/wal/") for name in names)
    assert {"snapshot/files/segment.json", "snapshot/files/version.info"} <= set(files)
    assert config["params"]["vectors"] == COSINE["vectors"]
    assert indexes == {"schema": {"tenant": {"type": "keyword", "is_tenant": True}, "n": "integer"}}


def test_a_snapshot_recovered_into_a_new_name_holds_the_same_points(
    server: ContractClient, documents: str, new_name: Callable[[], str]
) -> None:
    """With configuration and payload indexes, without aliases; the upload stays listed; it can be written to."""
    data, name, alias = collection_archive(server, documents), new_name(), new_name()
    server.switch_alias(alias, documents)

    server.recover_collection(name, io.BytesIO(data), checksum=sha256(data), name="up.snapshot")

    assert digest_of(server, name) == digest_of(server, documents)
    assert server.collection(name).payload_schema == server.collection(documents).payload_schema
    assert server.aliases()[alias] == documents
    assert [(made.name, made.checksum) for made in server.list_collection_snapshots(name)] == [("up.snapshot", None)]
    server.upsert(name, [{"id": 0, "vector": [4, 3, 2, 1], "payload": {"n": -1}}, {"id": 99, "vector": [1, 1, 1, 1]}])
    server.delete_points(name, [1])
    assert (server.count(name), server.retrieve(name, [0])[0]["payload"]) == (6, {"n": -1})


def test_a_streamed_shard_is_recovered_into_a_collection_that_is_there(
    server: ContractClient, documents: str, new_name: Callable[[], str]
) -> None:
    """A shard brings points, the collection keeps its own configuration."""
    data, name = shard_archive(server, documents), new_name()
    server.create_collection(name, COSINE)

    server.recover_shard(name, 0, io.BytesIO(data), checksum=sha256(data))

    assert digest_of(server, name) == digest_of(server, documents)


def test_a_wrong_checksum_changes_nothing(server: ContractClient, documents: str, new_name: Callable[[], str]) -> None:
    """400 with both sums, 422 for what is none."""
    data, missing = collection_archive(server, documents), new_name()

    for name in (documents, missing):
        with pytest.raises(ChecksumMismatch):
            server.recover_collection(name, io.BytesIO(data), checksum="0" * 64)

    assert (server.count(documents), server.exists(missing)) == (6, False)
    malformed = ask(
        server,
        "POST",
        f"/collections/{missing}/snapshots/upload?checksum=abc",
        files={"snapshot": ("a.snapshot", data)},
    )
    assert malformed.status_code == 422
    assert error_of(malformed).startswith("Validation error in query parameters: [checksum: ")


@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_torn_archive_is_refused_and_leaves_no_collection(
    server: ContractClient, documents: str, new_name: Callable[[], str], damage: str
) -> None:
    """500; an existing collection stays as it was."""
    data, missing = collection_archive(server, documents), new_name()
    torn = {"cut": data[: len(data) // 3], "noise": b"\x07" * 4096, "empty": b""}[damage]
    before = digest_of(server, documents)

    for name in (missing, documents):
        with pytest.raises(QdrantRefused) as refused:
            server.recover_collection(name, io.BytesIO(torn), checksum=sha256(torn))
        assert refused.value.status == 500
        assert refused.value.stderr_tail.startswith("Service internal error: ")

    assert not server.exists(missing)
    assert digest_of(server, documents) == before


@pytest.mark.parametrize("vectors", [{"size": 5, "distance": "Cosine"}, {"size": 4, "distance": "Dot"}])
def test_data_of_another_shape_is_refused_by_a_collection(
    server: ContractClient, documents: str, new_name: Callable[[], str], vectors: dict[str, object]
) -> None:
    """Another size or distance is 400, and the collection is unharmed."""
    data, name = collection_archive(server, documents), new_name()
    server.create_collection(name, {"vectors": vectors})

    with pytest.raises(QdrantRefused, match="answered 400") as refused:
        server.recover_collection(name, io.BytesIO(data), checksum=sha256(data))

    assert "Snapshot is not compatible with existing collection: " in refused.value.stderr_tail
    assert server.count(name) == 0


@pytest.mark.parametrize("name", ["plain", "rich", "quantized"])
def test_a_real_snapshot_is_recovered_with_every_point(
    embedded: EmbeddedQdrant, snapshots_dir: Path, name: str
) -> None:
    """Taken from a real 1.18.3: deleted and twice written points, named, sparse and multivectors, int8 with HNSW."""
    expected = json.loads((snapshots_dir / "expected.json").read_text())[name]
    packed = (snapshots_dir / f"{name}.snapshot.zst").read_bytes()
    data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed)).read()

    with embedded.client() as server:
        server.recover_collection(f"real_{name}", io.BytesIO(data), checksum=sha256(data))

        assert digest_of(server, f"real_{name}") == (expected["count"], expected["sha256_points"])
        schema = server.collection(f"real_{name}").payload_schema
        assert {field: entry["data_type"] for field, entry in schema.items()} == {
            field: entry["data_type"] for field, entry in expected["payload_schema"].items()
        }


def test_damaged_data_that_would_end_the_process_ends_another_one(
    embedded: EmbeddedQdrant,
) -> None:
    """Data is opened in a process of its own first; the server lives, and nothing of it stays."""
    with embedded.client() as server:
        server.create_collection("whole", COSINE)
        server.upsert("whole", [{"id": number, "vector": [1, 2, 3, number]} for number in range(6)])
        data = bytearray(collection_archive(server, "whole"))
        at = data.find(b"mutable_id_tracker.mappings")
        begin = at - at % 512 + 512
        data[begin : begin + 40] = b"\xff" * 40

        with pytest.raises(QdrantRefused):
            server.recover_collection("damaged", io.BytesIO(data), checksum=sha256(bytes(data)))

        assert (server.is_ready(), server.exists("damaged"), server.count("whole")) == (True, False, 6)


def test_our_shard_is_opened_by_the_engine_alone(embedded: EmbeddedQdrant, tmp_path: Path) -> None:
    """As a proof opens it: unpacked, loaded, counted."""
    import qdrant_edge

    with embedded.client() as server:
        server.create_collection("opened", COSINE)
        server.upsert("opened", [{"id": number, "vector": [1, 2, 3, number]} for number in range(6)])
        (tmp_path / "shard.snapshot").write_bytes(shard_archive(server, "opened"))

    qdrant_edge.EdgeShard.unpack_snapshot(str(tmp_path / "shard.snapshot"), str(tmp_path / "shard"))
    shard = qdrant_edge.EdgeShard.load(str(tmp_path / "shard"))

    assert shard.count(qdrant_edge.CountRequest(exact=True)) == 6
