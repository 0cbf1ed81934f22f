"""Fixtures of the vector tests: a Qdrant server by URL, and the stack over it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_ops.operations.stack import Stack
from synapse_ops.systems.object_store import StoreAccess
from synapse_ops.systems.qdrant import QdrantServer
from tests.vectors.collections import make_vector_stack


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    if "QDRANT_URL" not in os.environ:
        pytest.skip("QDRANT_URL names no server")
    with QdrantServer(os.environ["QDRANT_URL"]) as found:
        yield found


@pytest.fixture
def collection(server: QdrantServer) -> Iterator[str]:
    """A name that no other test has; the collection is removed after the test."""
    name = f"test_{secrets.token_hex(4)}"
    yield name
    server.delete_collection(name)


@pytest.fixture
def stack(tmp_path: Path, server: QdrantServer, bucket_url: str, object_store_access: StoreAccess) -> Stack:
    return make_vector_stack(tmp_path, (server.url,), bucket_url, object_store_access)
