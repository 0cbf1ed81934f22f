"""The servers that the contract is run against: the embedded one always, a real one where QDRANT_URL names it.

QDRANT_API_KEY is its key. Collections made there start with `contract_` and are deleted afterwards.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.collection_snapshots import ContractClient
from tests.contract.embedded import EmbeddedQdrant

REAL = os.environ.get("QDRANT_URL", "")


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedQdrant]:
    running = EmbeddedQdrant(tmp_path_factory.mktemp("qdrant")).start()
    yield running
    running.stop()


@pytest.fixture(params=["embedded", *(["real"] if REAL else [])])
def server(request: pytest.FixtureRequest) -> Iterator[ContractClient]:
    if request.param == "real":
        found = ContractClient(REAL, os.environ.get("QDRANT_API_KEY"))
    else:
        found = request.getfixturevalue("embedded").client()
    with found:
        yield found


@pytest.fixture
def new_name(server: ContractClient) -> Iterator[Callable[[], str]]:
    made: list[str] = []

    def make() -> str:
        made.append(f"contract_{secrets.token_hex(5)}")
        return made[-1]

    yield make
    for name in made:
        for snapshot in server.list_collection_snapshots(name) if server.exists(name) else ():
            server.delete_collection_snapshot(name, snapshot.name)
        server.delete_collection(name)


@pytest.fixture
def documents(server: ContractClient, new_name: Callable[[], str]) -> str:
    """A collection of 6 points: numbers 0 to 4 and a UUID, with a payload index on `tenant` and on `n`."""
    name = new_name()
    server.create_collection(name, {"vectors": {"size": 4, "distance": "Cosine"}})
    server.create_payload_index(name, "tenant", {"type": "keyword", "is_tenant": True})
    server.create_payload_index(name, "n", "integer")
    points: list[dict[str, Any]] = [
        {
            "id": n,
            "vector": [1.0, float(n), 0.5, -1.0],
            "payload": {"n": n, "tenant": f"t{n % 2}", "x": {"y": [n, None]}},
        }
        for n in range(5)
    ]
    server.upsert(name, [*points, {"id": "6f9619ff-8b86-d011-b42d-00cf4fc964ff", "vector": [0.0, 1.0, 0.0, 1.0]}])
    return name


@pytest.fixture
def snapshots_dir() -> Path:
    """Real snapshots with known content, where the run has them."""
    folder = Path(os.environ.get("SYNAPSE_TEST_DATA", "")) / "qdrant-snapshots"
    if not folder.is_dir():
        pytest.skip("SYNAPSE_TEST_DATA is not set: no real snapshots here")
    return folder
