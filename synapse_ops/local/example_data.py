"""Realistic seeded data for the embedded stack: the loaders of examples/synapse, called with our own progress."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.errors import ConfigError, Unreachable
from synapse_ops.spec import Spec
from synapse_ops.spec.blocks.stores import Qdrant
from synapse_ops.systems.postgres.connection import postgres_errors
from synapse_ops.systems.qdrant.server import open_qdrant

EXAMPLES = Path(__file__).parents[2] / "examples" / "synapse"
VECTORS = 2000  # points of the demo


def load_example_data(
    conninfo: str, size: int | str = "20MB", seed: int = 1, progress: ReportProgress = ignore_progress
) -> Any:
    """Fill the database that a superuser's conninfo names, unless it was filled before.

    size: stored bytes, or text such as "100MB". Returns the loader's report: did_load, size_bytes, documents, took_s.
    Raises ConfigError when the examples are not installed beside the package.
    """

    def report(stage: str, done: int, total: int) -> None:
        progress(Progress(stage, done, total, "rows"))

    with postgres_errors("the example data"):
        return _module("load").load_example_data(conninfo, size, seed, report)


def load_example_vectors(
    conninfo: str, qdrant: Qdrant, most: int = VECTORS, progress: ReportProgress = ignore_progress
) -> Any:
    """Write vectors of the documents that load_example_data made into `qdrant.collection`, unless they are there.

    The collection gets payload indexes and an alias, `<collection>-live`. Returns did_load, points, took_s.
    """
    module = _module("vectors")
    server = open_qdrant(qdrant)
    key = qdrant.api_key.resolve() if qdrant.api_key else None
    store = module.VectorStore(server.url, key, qdrant.collection, qdrant.vector_size, qdrant.distance)

    def report(stage: str, done: int, total: int) -> None:
        progress(Progress(stage, done, total, "points"))

    with _reaching(f"Qdrant at {server.url}"):
        return module.load_example_vectors(conninfo, store, most, report)


def load_example_left_behind(spec: Spec, now: datetime) -> Any:
    """Make aged files in the spec's log and temporary roots and idle keys in Redis. Returns how many of each.

    Raises ConfigError when the spec names no root.
    """
    from redis import Redis

    if not spec.cleanup.log_roots or not spec.cleanup.temp_roots:
        raise ConfigError("no cleanup.log_roots or cleanup.temp_roots: no place for the example files")
    redis = spec.redis
    password = redis.password.resolve() if redis.password else None
    with (
        _reaching(f"Redis at {redis.host}:{redis.port}"),
        Redis(redis.host, redis.port, redis.db, password=password, socket_timeout=10) as cache,
    ):
        return _module("left_behind").leave_behind(
            Path(spec.cleanup.log_roots[0]), Path(spec.cleanup.temp_roots[0]), cache, now
        )


@contextmanager
def _reaching(server: str) -> Iterator[None]:
    """Turn what the loaders' clients raise into our Unreachable."""
    from httpx import HTTPError
    from redis import RedisError

    try:
        yield
    except (HTTPError, RedisError) as error:
        raise Unreachable(
            f"could not write example data to {server}", detail=str(error), hint="Is it up? `synapse-ops local status`"
        ) from error


def _module(name: str) -> Any:
    path = EXAMPLES / f"{name}.py"
    if not path.is_file():
        raise ConfigError(f"the example data's loader {path} is not installed", hint="Use a checkout of the project.")
    full_name = f"synapse_ops_example_{name}"
    spec = importlib.util.spec_from_file_location(full_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
