"""What a Qdrant server answers: statuses, bodies and the texts of errors, as recorded from a real 1.18.3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.contract.collection_snapshots import ContractClient

UUID = "6f9619ff-8b86-d011-b42d-00cf4fc964ff"
COSINE = {"vectors": {"size": 4, "distance": "Cosine"}}


def ask(server: ContractClient, method: str, path: str, **more: Any) -> httpx.Response:
    headers = {"api-key": server._api_key or ""} | more.pop("headers", {})
    return httpx.request(method, server.url + path, headers=headers, trust_env=False, timeout=20, **more)


def error_of(answer: httpx.Response) -> str:
    return str(answer.json()["status"]["error"])


def assert_like(expected: Any, found: Any, where: str = "") -> None:
    """Every key expected is there, with the expected value; a type stands for any value of it."""
    if isinstance(expected, type):
        assert isinstance(found, expected), f"{where}: {found!r}"
    elif isinstance(expected, dict):
        for key, value in expected.items():
            assert key in found, f"{where}: no {key} in {sorted(found)}"
            assert_like(value, found[key], f"{where}.{key}")
    else:
        assert found == expected, where


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/healthz", "healthz check passed"),
        ("/livez", "healthz check passed"),
        ("/readyz", "all shards are ready"),
    ],
)
def test_health_is_text_and_asks_for_no_key(server: ContractClient, path: str, said: str) -> None:
    """Probes have no key."""
    answer = httpx.get(server.url + path, trust_env=False)

    assert (answer.status_code, answer.text) == (200, said)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_the_title_asks_for_no_key(server: ContractClient) -> None:
    """The version of a server is public."""
    assert_like(
        {"title": "qdrant - vector search engine", "version": str}, httpx.get(server.url, trust_env=False).json()
    )


@pytest.mark.parametrize("path", ["/collections", "/metrics", "/telemetry", "/cluster", "/collections/x/snapshots"])
def test_without_a_key_and_with_a_wrong_one_the_answer_is_401_in_text(server: ContractClient, path: str) -> None:
    """Texts as recorded; a bearer token is a key, too."""
    if httpx.get(server.url + "/collections", trust_env=False).status_code == 200:
        pytest.skip(f"{server.url} asks for no key: start it with one, and name it in QDRANT_API_KEY")
    without = httpx.get(server.url + path, trust_env=False)
    wrong = ask(server, "GET", path, headers={"api-key": "wrong"})
    bearer = httpx.get(server.url + "/collections", headers={"authorization": f"Bearer {server._api_key}"})

    assert (without.status_code, without.text) == (401, "Must provide an API key or an Authorization bearer token")
    assert (wrong.status_code, wrong.text) == (401, "Invalid API key or JWT")
    assert bearer.status_code == 200


def test_a_collection_is_described_with_every_default(server: ContractClient, documents: str) -> None:
    """What GET /collections/<name> says is what a backup keeps and a restore compares."""
    answer = ask(server, "GET", f"/collections/{documents}")

    expected = {
        "status": "green",
        "optimizer_status": "ok",
        "indexed_vectors_count": int,
        "points_count": 6,
        "segments_count": int,
        "config": {
            "params": {
                **COSINE,
                "shard_number": 1,
                "replication_factor": 1,
                "write_consistency_factor": 1,
                "on_disk_payload": True,
            },
            "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000, "on_disk": False},
            "optimizer_config": {"deleted_threshold": 0.2, "vacuum_min_vector_number": 1000},
            "wal_config": {"wal_capacity_mb": int, "wal_segments_ahead": 0},
            "quantization_config": None,
        },
        "payload_schema": {
            "tenant": {"data_type": "keyword", "params": {"type": "keyword", "is_tenant": True}, "points": 5},
            "n": {"data_type": "integer", "points": 5},
        },
        "update_queue": {"length": int},
    }
    assert_like({"result": expected, "status": "ok", "time": float}, answer.json())
    assert "params" not in answer.json()["result"]["payload_schema"]["n"]


def test_the_shards_of_a_collection_name_the_peer(server: ContractClient, documents: str) -> None:
    """A single node has a peer id as well."""
    shard = {"shard_id": 0, "points_count": 6, "state": "Active"}
    result = ask(server, "GET", f"/collections/{documents}/cluster").json()["result"]

    assert_like({"peer_id": int, "shard_count": 1, "remote_shards": [], "shard_transfers": []}, result)
    assert result["local_shards"] == [shard]
    assert ask(server, "GET", "/cluster").json()["result"] == {"status": "disabled"}


REFUSED = [
    ("GET", "/collections/{none}", None, 404, "Not found: Collection `{none}` doesn't exist!"),
    ("PUT", "/collections/{name}", COSINE, 409, "Wrong input: Collection `{name}` already exists!"),
    ("PUT", "/collections/{none}", {"vectors": {"size": 0, "distance": "Dot"}}, 400, "Format error in JSON body: *"),
    ("PUT", "/collections/{none}", {"vectors": {"size": 4, "distance": "Cos"}}, 400, "Format error in JSON body: *"),
    (
        "PUT",
        "/collections/a%2Fb",
        COSINE,
        422,
        'Validation error in path parameters: [collection_name: collection name cannot contain "/" char]',
    ),
    ("PUT", "/collections/{name}/points?wait=true", {"points": [{"id": 1, "vector": [1, 2]}]}, 400,
     "Wrong input: Vector dimension error: expected dim: 4, got 2"),
    ("PUT", "/collections/{name}/points?wait=true", {"points": [{"id": "x", "vector": [1, 2, 3, 4]}]}, 400,
     ("Format error in JSON body: value x is not a valid point ID, "
      "valid values are either an unsigned integer or a UUID")),
    ("PUT", "/collections/{name}/points?wait=true", None, 400,
     "Format error in JSON body: EOF while parsing a value at line 1 column 0"),
    ("PUT", "/collections/{none}/points?wait=true", {"points": [{"id": 1, "vector": [1]}]}, 404,
     "Not found: Collection `{none}` doesn't exist!"),
    ("POST", "/collections/{name}/points/scroll", {"limit": 0}, 422,
     "Validation error in JSON body: [scroll_request.limit: value 0 invalid, must be 1 or larger]"),
    ("POST", "/collections/aliases",
     {"actions": [{"create_alias": {"collection_name": "contract_none", "alias_name": "contract_x"}}]}, 404,
     "Not found: Collection `contract_none` doesn't exist!"),
    ("POST", "/collections/{none}/snapshots", None, 404, "Not found: Collection `{none}` doesn't exist!"),
    ("POST", "/collections/{name}/shards/9/snapshots", None, 404, "Not found: shard 9 not found"),
    ("DELETE", "/collections/{name}/snapshots/nope.snapshot", None, 404, "Not found: Snapshot *"),
    ("PUT", "/collections/{none}/snapshots/recover", {"location": "ftp://x/y"}, 400,
     "Bad request: URL ftp://x/y with scheme ftp is not supported"),
    ("PUT", "/collections/{none}/snapshots/recover", {"location": "file:///nope.snapshot"}, 400,
     'Bad request: Snapshot file "/nope.snapshot" does not exist'),
    ("GET", "/collections/{name}/points/77", None, 404, "Not found: Point with id 77 does not exists!"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "status", "text"), REFUSED)
def test_a_refusal_has_the_recorded_status_and_text(
    server: ContractClient, documents: str, method: str, path: str, body: Any, status: int, text: str
) -> None:
    """Clients compare these; {none} is a collection that is not there. A * stands for the rest of a text."""
    names = {"name": documents, "none": "contract_none"}

    answer = ask(server, method, path.format(**names), json=body) if body else ask(server, method, path.format(**names))

    assert answer.status_code == status, answer.text
    wanted = text.format(**names) if "[" not in text else text
    if wanted.endswith("*"):
        assert error_of(answer).startswith(wanted[:-1])
    else:
        assert error_of(answer) == wanted


def test_a_download_refuses_in_plain_text(server: ContractClient, documents: str) -> None:
    """Also when the name climbs out of the folder."""
    server.create_collection_snapshot(documents)
    missing = ask(server, "GET", f"/collections/{documents}/snapshots/nope.snapshot")
    climbing = ask(server, "GET", f"/collections/{documents}/snapshots/..%2f..%2faliases.json")

    assert (missing.status_code, missing.text) == (404, "Not found: Snapshot nope.snapshot not found")
    assert climbing.status_code == 404
    assert ask(server, "HEAD", f"/collections/{documents}/snapshots/nope.snapshot").status_code == 404


def test_writes_without_wait_are_acknowledged_and_with_it_completed(server: ContractClient, documents: str) -> None:
    """The two words that clients tell apart."""
    point = {"points": [{"id": 9, "vector": [1, 2, 3, 4]}]}

    without = ask(server, "PUT", f"/collections/{documents}/points", json=point).json()["result"]
    waited = ask(server, "PUT", f"/collections/{documents}/points?wait=true", json=point).json()["result"]

    assert_like({"operation_id": int, "status": "acknowledged"}, without)
    assert_like({"operation_id": int, "status": "completed"}, waited)


def test_scroll_goes_by_numbers_then_uuids_and_tells_where_it_goes_on(server: ContractClient, documents: str) -> None:
    """The order that every digest of a collection rests on."""
    first, offset = server.scroll(documents, limit=4)
    second, end = server.scroll(documents, limit=4, offset=offset)

    assert [point["id"] for point in first + second] == [0, 1, 2, 3, 4, UUID]
    assert (offset, end) == (4, None)
    assert first[1]["payload"] == {"n": 1, "tenant": "t1", "x": {"y": [1, None]}}
    assert sum(value * value for value in first[1]["vector"]) == pytest.approx(1.0, abs=1e-6)
    assert second[-1]["payload"] == {}


def test_columns_are_written_as_points_are(server: ContractClient, documents: str) -> None:
    """The second form of an upsert."""
    batch = {"ids": [20, 21], "vectors": [[1, 0, 0, 0], [0, 1, 0, 0]], "payloads": [{"n": 20}, None]}

    server.call("PUT", f"/collections/{documents}/points", {"batch": batch}, params={"wait": "true"})

    found = {point["id"]: point for point in server.retrieve(documents, [20, 21, 404])}
    assert {number: point["payload"] for number, point in found.items()} == {20: {"n": 20}, 21: {}}
    assert found[21]["vector"] == [0, 1, 0, 0]


def test_filters_count_and_delete(server: ContractClient, documents: str) -> None:
    """must, should and must_not over match, range and ids."""
    odd = {"must": [{"key": "tenant", "match": {"value": "t1"}}]}
    late = {"must": [{"key": "n", "range": {"gte": 2}}], "must_not": [{"has_id": [4]}]}
    either = {"should": [{"key": "n", "match": {"any": [0, 1]}}, {"is_empty": {"key": "tenant"}}]}

    counts = [server.count(documents, filter=chosen) for chosen in (odd, late, either)]
    server.delete_points(documents, odd)
    server.delete_points(documents, [0, UUID])

    assert counts == [2, 2, 3]
    assert [point["id"] for point in server.scroll_all(documents)] == [2, 4]


def test_payload_is_set_replaced_and_removed(server: ContractClient, documents: str) -> None:
    """Setting keeps other keys, replacing does not."""
    place = f"/collections/{documents}/points/payload"

    server.set_payload(documents, {"new": 1}, [1])
    server.call("PUT", place, {"payload": {"only": True}, "points": [2]}, params={"wait": "true"})
    server.call("POST", f"{place}/delete", {"keys": ["n", "x"], "points": [3]}, params={"wait": "true"})

    found = {point["id"]: point["payload"] for point in server.retrieve(documents, [1, 2, 3])}
    assert found == {
        1: {"n": 1, "tenant": "t1", "x": {"y": [1, None]}, "new": 1},
        2: {"only": True},
        3: {"tenant": "t1"},
    }


def test_a_query_finds_the_nearest_with_version_and_score(server: ContractClient, documents: str) -> None:
    """By a vector, by a point's id (which is not its own neighbour), and with a filter."""
    near = server.query(documents, [1.0, 3.0, 0.5, -1.0], limit=2, with_payload=True)
    by_id = server.query(documents, 3, limit=2)
    filtered = server.query(documents, [1.0, 3.0, 0.5, -1.0], filter={"must": [{"key": "n", "range": {"lt": 2}}]})

    assert [point["id"] for point in near] == [3, 4]
    assert near[0]["score"] == pytest.approx(1.0, abs=1e-6)
    assert near[0]["payload"]["n"] == 3
    assert_like({"id": 3, "version": int, "score": float}, near[0])
    assert [point["id"] for point in by_id] == [4, 2]
    assert [point["id"] for point in filtered] == [1, 0]


def test_an_alias_is_moved_in_one_step_and_stands_for_its_collection(
    server: ContractClient, documents: str, new_name: Callable[[], str]
) -> None:
    """Actions are done all together; an alias cannot have a collection's name, nor a collection an alias'."""
    other, alias = new_name(), new_name()
    server.create_collection(other, COSINE)

    server.switch_alias(alias, documents)
    counted = server.count(alias)
    server.switch_alias(alias, other)

    assert (counted, server.count(alias), server.aliases()[alias]) == (6, 0, other)
    taken = ask(server, "PUT", f"/collections/{alias}", json=COSINE)
    assert taken.status_code == 400
    assert error_of(taken).endswith(
        f"Can't create collection with name {alias}. Alias with the same name already exists"
    )
    server.delete_collection(other)
    assert alias not in server.aliases()


def test_named_sparse_and_multi_vectors_come_back_as_they_were(
    server: ContractClient, new_name: Callable[[], str]
) -> None:
    """Every kind of vector, read and searched."""
    name = new_name()
    vectors = {
        "text": {"size": 4, "distance": "Dot"},
        "many": {"size": 2, "distance": "Dot", "multivector_config": {"comparator": "max_sim"}},
    }
    server.create_collection(name, {"vectors": vectors, "sparse_vectors": {"bm25": {"modifier": "idf"}}})
    vector = {
        "text": [1.0, 2.0, 3.0, 4.0],
        "many": [[1.0, 0.0], [0.0, 1.0]],
        "bm25": {"indices": [3, 9], "values": [0.5, 1.5]},
    }

    server.upsert(name, [{"id": 1, "vector": vector}, {"id": 2, "vector": {"text": [0, 0, 0, 1]}}])

    assert server.retrieve(name, [1])[0]["vector"] == vector
    assert [point["id"] for point in server.query(name, [1, 1, 1, 1], using="text")] == [1, 2]
    assert [point["id"] for point in server.query(name, {"indices": [9], "values": [1.0]}, using="bm25")] == [1]
    assert [point["id"] for point in server.query(name, [[1.0, 1.0]], using="many")] == [1]


def test_metadata_is_kept_and_changed(server: ContractClient, new_name: Callable[[], str]) -> None:
    """What clients keep with a collection (1.16 and later)."""
    name = new_name()
    server.create_collection(name, {**COSINE, "metadata": {"generation": "a1"}})
    server.update_collection(name, {"metadata": {"more": 2}})

    assert server.collection(name).metadata == {"generation": "a1", "more": 2}


def test_metrics_have_the_names_that_alarms_are_written_for(server: ContractClient, documents: str) -> None:
    """Prometheus text with the real names and labels."""
    lines = server.metrics().splitlines()

    assert f'collection_points{{id="{documents}"}} 6' in lines
    assert f'snapshot_creation_running{{id="{documents}"}} 0' in lines
    assert f'snapshot_recovery_running{{id="{documents}"}} 0' in lines
    assert any(line.startswith('app_info{name="qdrant",version="') for line in lines)
    assert "# TYPE snapshot_created_total counter" in lines
    written = 'rest_responses_total{method="PUT",endpoint="/collections/{collection_name}/points",status="200"} '
    assert any(line.startswith(written) for line in lines)
    assert any(line.startswith("memory_resident_bytes ") for line in lines)
