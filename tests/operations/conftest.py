"""A repository in memory, for tests that set the store's clock or cut a run."""

from __future__ import annotations

import pytest

from synapse_ops.operations.repository import Repository
from tests.memory_store import MemoryStore
from tests.operations.expiry import NOW


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(NOW)


@pytest.fixture
def repository(store: MemoryStore) -> Repository:
    return Repository(store)
