"""Fixtures of the vector tests: a Qdrant server by URL, and the stack over it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_ops.errors import Unreachable
from synapse_ops.operations.stack import Stack
from synapse_ops.systems.host.processes import free_ports
from synapse_ops.systems.qdrant.server import QdrantServer
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.vectors.collections import make_vector_stack

READY_TIMEOUT_S, STOP_TIMEOUT_S = 30.0, 20.0


@pytest.fixture(scope="session")
def qdrant_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of QDRANT_URL, a real server; else of an embedded one of this worker's own."""
    if "QDRANT_URL" in os.environ:
        yield os.environ["QDRANT_URL"]
        return
    folder = tmp_path_factory.mktemp("qdrant")
    [port] = free_ports(1)
    argv = [
        sys.executable,
        "-m",
        "synapse_ops.local.qdrant_server",
        "--data",
        str(folder / "data"),
        "--port",
        str(port),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        _await_ready(url, process, folder / "log")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=STOP_TIMEOUT_S)


def _await_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    with QdrantServer(url) as server:
        while True:
            try:
                server.version()
            except Unreachable:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail("Qdrant did not start:\n" + log.read_text()[-2000:])
                time.sleep(0.05)
            else:
                return


@pytest.fixture
def server(qdrant_url: str) -> Iterator[QdrantServer]:
    with QdrantServer(qdrant_url, os.environ.get("QDRANT_API_KEY")) as found:
        yield found


@pytest.fixture
def collection(server: QdrantServer) -> Iterator[str]:
    """A name that no other test has; the collection is removed after the test."""
    name = f"test_{secrets.token_hex(4)}"
    yield name
    server.delete_collection(name)


@pytest.fixture
def stack(tmp_path: Path, server: QdrantServer, bucket_url: str, object_store_access: StoreAccess) -> Stack:
    key = os.environ.get("QDRANT_API_KEY")
    return make_vector_stack(tmp_path, (server.url,), bucket_url, object_store_access, api_key=key)
