"""The embedded server as a process: it loses nothing, has its folder alone, and is what qdrant-client expects."""

from __future__ import annotations

import signal
import subprocess
import threading
from pathlib import Path

import pytest

from synapse_ops.errors import SynapseOpsError
from tests.contract.embedded import KEY, READY_TIMEOUT_S, EmbeddedQdrant

COSINE = {"vectors": {"size": 4, "distance": "Cosine"}}
WRITES = 300


def test_a_kill_in_the_middle_of_writes_loses_no_acknowledged_one(tmp_path: Path) -> None:
    """What was answered is there after the next start, alias and payload index included."""
    qdrant, acknowledged = EmbeddedQdrant(tmp_path).start(), []
    with qdrant.client() as server:
        server.create_collection("docs", COSINE)
        server.create_payload_index("docs", "n", "integer")
        server.switch_alias("live", "docs")

        def write() -> None:
            with qdrant.client() as other:
                for number in range(100_000):
                    try:
                        other.upsert("live", [{"id": number, "vector": [1, 2, 3, number], "payload": {"n": number}}])
                    except SynapseOpsError:
                        return
                    acknowledged.append(number)
                    if number == WRITES:
                        enough.set()

        enough = threading.Event()
        writer = threading.Thread(target=write)
        writer.start()
        assert enough.wait(READY_TIMEOUT_S)
        qdrant.kill()
        writer.join()
    qdrant.start()

    with qdrant.client() as server:
        found = {point["id"]: point["payload"]["n"] for point in server.scroll_all("live")}
        assert set(acknowledged) - set(found) == set()
        assert all(number == value for number, value in found.items())
        assert server.collection("docs").payload_schema["n"]["data_type"] == "integer"
        assert server.count("live", filter={"must": [{"key": "n", "range": {"lt": 10}}]}) == 10
    assert qdrant.stop() in {0, -signal.SIGTERM}  # uvicorn ends by the signal that it has served


def test_a_second_process_is_refused_the_folder(embedded: EmbeddedQdrant) -> None:
    """Opened by one process only; the first goes on."""
    second = EmbeddedQdrant(embedded.folder)

    done = subprocess.run(second.argv(), capture_output=True, text=True, timeout=READY_TIMEOUT_S, check=False)

    assert done.returncode == 10
    assert "is in use by another process" in done.stderr
    with embedded.client() as server:
        assert server.is_ready()


def test_what_is_left_out_is_refused_by_name(embedded: EmbeddedQdrant) -> None:
    """A stand-in that answered something else would be worse than none."""
    with embedded.client() as server:
        for body, said in (
            ({**COSINE, "shard_number": 3}, "shard_number 3"),
            ({**COSINE, "replication_factor": 2}, "replication_factor 2"),
        ):
            with pytest.raises(SynapseOpsError) as refused:
                server.create_collection("contract_left_out", body)
            assert "Not part of the embedded server" in refused.value.detail
            assert said in refused.value.detail


def test_the_official_client_works_against_it(embedded: EmbeddedQdrant) -> None:
    """qdrant-client: collections, points, filters, queries, aliases and snapshots."""
    from qdrant_client import QdrantClient, models

    client = QdrantClient(url=embedded.url, api_key=KEY, check_compatibility=False)
    client.create_collection("lib", models.VectorParams(size=3, distance=models.Distance.EUCLID))
    client.create_payload_index("lib", "city", models.PayloadSchemaType.KEYWORD)
    points = [
        models.PointStruct(id=n, vector=[n, 0, 0], payload={"city": "Bern" if n % 2 else "Oslo"}) for n in range(10)
    ]
    client.upsert("lib", points)
    client.upload_points("lib", [models.PointStruct(id=100, vector=[9, 9, 9])], wait=True)
    bern = models.Filter(must=[models.FieldCondition(key="city", match=models.MatchValue(value="Bern"))])
    client.update_collection_aliases(
        [models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name="lib", alias_name="cities"))]
    )

    assert client.collection_exists("lib")
    assert client.count("cities").count == 11
    assert [hit.id for hit in client.query_points("lib", query=[4.1, 0, 0], query_filter=bern, limit=2).points] == [
        5,
        3,
    ]
    assert [record.id for record in client.scroll("lib", scroll_filter=bern, limit=3)[0]] == [1, 3, 5]
    assert client.retrieve("lib", [2], with_vectors=True)[0].vector == [2, 0, 0]
    client.set_payload("lib", {"seen": True}, points=[2])
    client.delete("lib", models.PointIdsList(points=[0]))
    assert client.retrieve("lib", [2])[0].payload == {"city": "Oslo", "seen": True}
    info = client.get_collection("lib")
    assert (info.status, info.points_count) == (models.CollectionStatus.GREEN, 10)
    snapshot = client.create_snapshot("lib")
    assert snapshot is not None
    assert [listed.name for listed in client.list_snapshots("lib")] == [snapshot.name]
    assert client.delete_snapshot("lib", snapshot.name)
    assert client.delete_collection("lib")
    client.close()
