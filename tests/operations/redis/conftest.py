"""Fixtures of the Redis tests: a real redis-server of this worker's own, and the stack over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_ops.operations.stack import Stack
from synapse_ops.systems.s3.store import StoreAccess
from tests.redis_servers import RealRedis, make_redis_stack, running_redis


@pytest.fixture(scope="session")
def redis_of_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRedis]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(redis_of_worker: RealRedis) -> RealRedis:
    """The worker's server, empty."""
    redis_of_worker.client().flushall()
    redis_of_worker.client().execute_command("FUNCTION", "FLUSH")
    return redis_of_worker


@pytest.fixture
def stack(tmp_path: Path, server: RealRedis, bucket_url: str, object_store_access: StoreAccess) -> Stack:
    return make_redis_stack(tmp_path, server, bucket_url, object_store_access)
