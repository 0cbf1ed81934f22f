"""Snapshots of a real Qdrant 1.18.3, opened without a server, hold exactly what that server said of them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest
import zstandard

from synapse_ops.domain.vectors.fingerprint import CanaryQuery, CopyFacts, recall
from synapse_ops.errors import DeadlineExceeded, Unproven
from synapse_ops.systems.qdrant.edge import ShardFile, inspect_copy

TIMEOUT_S = 60.0
DATA = Path(os.environ.get("SYNAPSE_TEST_DATA", "tests/data")) / "qdrant-snapshots"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="SYNAPSE_TEST_DATA names no folder with qdrant-snapshots/")

EXPECTED = json.loads((DATA / "expected.json").read_text()) if DATA.is_dir() else {}


def unpacked(name: str, folder: Path) -> Path:
    target = folder / name.removesuffix(".zst")
    with (DATA / name).open("rb") as source, target.open("wb") as sink:
        zstandard.ZstdDecompressor().copy_stream(source, sink)
    return target


def shards_of(collection: str, folder: Path) -> list[ShardFile]:
    names = sorted(path.name for path in DATA.glob(f"{collection}-shard*.snapshot.zst"))
    return [ShardFile(number, unpacked(name, folder)) for number, name in enumerate(names)]


def canaries_of(collection: str) -> list[CanaryQuery]:
    return [
        CanaryQuery(
            using=row["using"] or "",
            vector=row["vector"],
            lower_is_better=False,
            top=tuple((str(one), score) for one, score in row["top"]),
        )
        for row in EXPECTED[collection]["exact_queries"]
    ]


def inspected(shards: list[ShardFile], folder: Path, collection: str) -> CopyFacts:
    return inspect_copy(shards, scratch_dir=folder, wanted=["0"], queries=canaries_of(collection), timeout_s=TIMEOUT_S)


@pytest.mark.parametrize("collection", ["plain", "sharded", "rich", "quantized"])
def test_a_shards_snapshots_give_the_servers_own_count_digest_and_exact_searches(
    collection: str, tmp_path: Path
) -> None:
    """Fact 4 and 5: through the engine as through the server's scroll."""
    copy = inspected(shards_of(collection, tmp_path), tmp_path, collection)

    assert copy.count == EXPECTED[collection]["count"]
    assert copy.points_digest == EXPECTED[collection]["sha256_points"]
    assert [recall(query, top) for query, top in zip(canaries_of(collection), copy.tops, strict=True)] == [1.0] * 3
    assert copy.unlisted == copy.count - 1


def test_a_file_that_is_no_snapshot_is_unproven(tmp_path: Path) -> None:
    """Unknown is never a pass."""
    (tmp_path / "x.snapshot").write_bytes(b"not a tar" * 1000)

    with pytest.raises(Unproven):
        inspected([ShardFile(0, tmp_path / "x.snapshot")], tmp_path, "plain")


def test_no_byte_of_an_id_mapping_can_be_changed_unnoticed_and_we_stay_alive(tmp_path: Path) -> None:
    """Fact 7: such a byte aborts the process that reads it, is refused by it, or changes the digest."""
    shards = shards_of("plain", tmp_path)
    data = bytearray(shards[0].path.read_bytes())
    data[data.index(b"mutable_id_tracker.mappings") + 552] ^= 0xFF
    shards[0].path.write_bytes(data)

    outcome = "read"
    with contextlib.suppress(Unproven):
        outcome = str(inspected(shards, tmp_path, "plain").points_digest)
    assert outcome != EXPECTED["plain"]["sha256_points"]


def test_an_engine_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    shards = shards_of("plain", tmp_path)

    with pytest.raises(DeadlineExceeded):
        inspect_copy(shards, scratch_dir=tmp_path, wanted=[], timeout_s=0.01)


def test_an_engine_that_asks_for_too_much_memory_is_unproven(tmp_path: Path) -> None:
    shards = shards_of("quantized", tmp_path)

    with pytest.raises(Unproven):
        inspect_copy(shards, scratch_dir=tmp_path, wanted=[], timeout_s=TIMEOUT_S, memory_bytes=8 * 2**20)
    shutil.rmtree(tmp_path)
