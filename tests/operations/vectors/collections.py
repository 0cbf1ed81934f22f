"""Builders for tests of vectors: a stack over a Qdrant server, and collections with something in them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from synapse_ops.operations.stack import Stack, open_stack
from synapse_ops.systems.qdrant.server import QdrantRefused, QdrantServer
from synapse_ops.systems.s3.store import StoreAccess

DIMENSIONS = 16
NO_DATABASE = "host=127.0.0.1 port=1 dbname=nowhere user=nobody"


def make_vector_stack(
    folder: Path,
    urls: tuple[str, ...],
    bucket_url: str,
    access: StoreAccess,
    *,
    api_key: str | None = None,
    conninfo: str = NO_DATABASE,
    recipients: tuple[str, ...] = (),
    extra: str = "",
) -> Stack:
    """Return the stack of one Qdrant (one URL or a cluster's) and one bucket; its secrets lie in files of `folder`."""
    host, _, port = urls[0].removeprefix("http://").rpartition(":")
    database = conninfo_to_dict(conninfo)["dbname"]
    secrets = {
        "admin": conninfo,
        "store": f"[default]\naws_access_key_id = {access.access_key}\naws_secret_access_key = {access.secret_key}\n",
        "qdrant": api_key or "",
    }
    for name, text in secrets.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
    key = f", api_key: 'file:{folder}/qdrant'" if api_key else ""
    nodes = f", nodes: [{', '.join(urls)}]" if len(urls) > 1 else ""
    spec = folder / "infrastructure.yaml"
    spec.write_text(
        f"""
name: test
database: {{admin: "file:{folder}/admin", databases: [{database}], name: {database}}}
qdrant: {{host: {host}, port: {port}{key}{nodes}}}
object_store: {{endpoint: "{access.endpoint}", credentials: "file:{folder}/store"}}
encryption: {{recipients: [{", ".join(recipients)}]}}
backup:
  database: {{destination: "{bucket_url}database/"}}
  vectors: {{destination: "{bucket_url}vectors/"{extra}}}
""",
        encoding="utf-8",
    )
    return open_stack(spec, folder)


def plain_config(**more: Any) -> dict[str, Any]:
    return {"vectors": {"size": DIMENSIONS, "distance": "Cosine"}, **more}


def rich_config(**more: Any) -> dict[str, Any]:
    """Named, sparse, multi and quantised vectors in one collection."""
    return {
        "vectors": {
            "text": {"size": DIMENSIONS, "distance": "Cosine"},
            "image": {"size": 8, "distance": "Euclid", "quantization_config": {"scalar": {"type": "int8"}}},
            "tokens": {"size": 4, "distance": "Dot", "multivector_config": {"comparator": "max_sim"}},
        },
        "sparse_vectors": {"words": {"modifier": "idf"}},
        **more,
    }


def plain_points(count: int, *, first: int = 0, seed: int = 1) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    return [
        {"id": n, "vector": _vector(chance, DIMENSIONS), "payload": {"n": n, "text": f"Zoë {n}", "tags": [n % 3]}}
        for n in range(first, first + count)
    ]


def rich_points(count: int, *, first: int = 0, seed: int = 1) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    return [
        {
            "id": n,
            "vector": {
                "text": _vector(chance, DIMENSIONS),
                "image": _vector(chance, 8),
                "tokens": [_vector(chance, 4) for _ in range(1 + n % 3)],
                "words": {"indices": sorted(chance.sample(range(500), 5)), "values": _vector(chance, 5)},
            },
            "payload": {"n": n, "ratio": n / 7, "none": None},
        }
        for n in range(first, first + count)
    ]


def fill(server: QdrantServer, name: str, config: dict[str, Any], points: list[dict[str, Any]]) -> None:
    """Make a collection, anew where it exists, and write the points."""
    server.delete_collection(name)
    server.create_collection(name, config)
    for start in range(0, len(points), 500):
        server.upsert(name, points[start : start + 500])


def skip_unless_it_shards(server: QdrantServer, name: str, shards: int) -> None:
    """Skip the test, in the server's own words, where a collection cannot have so many shards."""
    try:
        server.create_collection(name, plain_config(shard_number=shards))
    except QdrantRefused as refused:
        pytest.skip(f"{shards} shards: {refused.stderr_tail}")
    server.delete_collection(name)


def _vector(chance: random.Random, size: int) -> list[float]:
    return [chance.gauss(0, 1) for _ in range(size)]
