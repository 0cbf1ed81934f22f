"""A node whose disk is short: its shards are streamed, and the backup is as good as any.

The server's disk is a tmpfs of its own in a mount namespace of its own, which ends with the server: needs root.
A real server is tried as well where QDRANT_BINARY names its program.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from synapse_ops.errors import Unreachable
from synapse_ops.operations.backup_kinds import SNAPSHOTS
from synapse_ops.operations.vectors.snapshot import snapshot_collection
from synapse_ops.systems.host.processes import free_ports
from synapse_ops.systems.qdrant.server import QdrantRefused, QdrantServer
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.vectors.collections import fill, make_vector_stack, plain_config, plain_points

READY_TIMEOUT_S = 30.0
BINARY = os.environ.get("QDRANT_BINARY", "")
LEFT_BYTES = 256 * 1024  # less than a snapshot of the points below


@dataclass
class ShortOfRoom:
    """A server, and its small disk as seen from outside its namespace."""

    server: QdrantServer
    disk: Path

    def leave_no_room(self) -> None:
        """Fill the disk up to a rest that no snapshot fits in."""
        found = os.statvfs(self.disk)
        (self.disk / "ballast").write_bytes(b"\0" * max(0, found.f_bavail * found.f_frsize - LEFT_BYTES))


def embedded(folder: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "synapse_ops.local.qdrant_server", "--data", f"{folder}/data", "--port", str(port)]


def real(folder: Path, port: int) -> list[str]:
    if not BINARY:
        pytest.skip("QDRANT_BINARY names no program of a real server")
    config = folder.parent / "qdrant.yaml"
    config.write_text(
        f"storage: {{storage_path: {folder.parent}/storage, snapshots_path: {folder}}}\n"
        f"service: {{host: 127.0.0.1, http_port: {port}, grpc_port: null}}\ntelemetry_disabled: true\n"
    )
    return [BINARY, "--config-path", str(config)]


@contextmanager
def on_a_small_disk(folder: Path, program: Callable[[Path, int], list[str]]) -> Iterator[ShortOfRoom]:
    disk, [port] = folder / "disk", free_ports(1)
    disk.mkdir()
    argv = program(disk, port)
    mount = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    script = 'mount -t tmpfs -o size=24m tmpfs "$1" && cd "$2" && shift 2 && exec "$@"'
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*mount, script, "sh", str(disk), str(folder), *argv],
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        )
    try:
        with QdrantServer(f"http://127.0.0.1:{port}") as server:
            deadline = time.monotonic() + READY_TIMEOUT_S
            while True:
                try:
                    server.version()
                    break
                except Unreachable:
                    if process.poll() is not None or time.monotonic() > deadline:
                        pytest.fail((folder / "log").read_text()[-2000:])
                    time.sleep(0.05)
            yield ShortOfRoom(server, Path(f"/proc/{process.pid}/root{disk}"))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("program", [embedded, real])
def test_a_shard_that_finds_no_room_on_its_node_is_streamed_and_proven(
    tmp_path: Path, bucket_url: str, object_store_access: StoreAccess, program: Callable[[Path, int], list[str]]
) -> None:
    """`auto` asks for a stored one first; the node says that its disk is full, and nothing is left there."""
    if os.geteuid() != 0:
        pytest.skip("a small disk of its own needs root")
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"no mount namespace here: {tried.stderr.strip()}")
    with on_a_small_disk(tmp_path, program) as short:
        fill(short.server, "documents", plain_config(), plain_points(4000))
        short.leave_no_room()
        with pytest.raises(QdrantRefused, match="answered 500"):
            short.server.create_shard_snapshot("documents", 0)
        stack = make_vector_stack(tmp_path, (short.server.url,), bucket_url, object_store_access)

        report = snapshot_collection(stack, "documents")
        left = short.server.list_shard_snapshots("documents", 0)
    proof = SNAPSHOTS.prove(stack.vector_repository(), place=report.place, work_dir=tmp_path / "proof")

    assert [shard.method for shard in report.record.shards] == ["streamed"]
    assert any("has not enough space" in warning for warning in report.warnings)
    assert left == ()
    assert proof is not None
    assert (proof.is_proven, proof.record.differences) == (True, ())
