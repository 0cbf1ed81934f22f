"""A collection's snapshots into S3 against a bare stream of the same bytes to the same S3: rate, and our memory.

    python -m benchmarks.vectors --qdrant http://127.0.0.1:6333                     100,000 points of 768 dimensions
    python -m benchmarks.vectors --qdrant URL --points 10000 --rounds 1 --no-compression

Needs a Qdrant server of yours that may be written to: it makes the collection `synapse_benchmark`, and removes it.
Starts its own SeaweedFS. The bare stream is urllib's download of the server's archive into boto3's upload, with as many
parts in flight as ours; beside it stands the same upload from a file in memory, which no backup can do. Our figure is
the phase `send`: download, both sha256, compression, upload and read-back as the store allows. Memory is PSS of the
command `synapse-ops backup now vectors/NAME`, sampled in a run of its own, since sampling takes time.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import psutil

from synapse_ops.local.servers.s3 import LISTENERS, SeaweedServer, find_weed
from synapse_ops.operations.backup_kinds import SNAPSHOTS
from synapse_ops.operations.stack import open_stack
from synapse_ops.operations.vectors.snapshot import snapshot_collection
from synapse_ops.systems.host.processes import free_ports, make_private_dir, reachable_by, server_identity
from synapse_ops.systems.postgres.server import make_socket_dir
from synapse_ops.systems.qdrant.server import QdrantServer
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess

MIB = 1024 * 1024
NAME = "synapse_benchmark"
URL = "s3://benchmark/vectors/"
RATE_TARGET, MEMORY_TARGET_MIB = 0.9, 300
SAMPLE_S = 0.05


@contextmanager
def running_store() -> Iterator[tuple[StoreAccess, Path]]:
    """A SeaweedFS of its own, stopped and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="synapse-bench-", dir="/var/tmp"))  # /tmp may be in memory
    folder.chmod(0o755)
    identity, weed = server_identity(), find_weed()
    make_private_dir(folder / "servers", identity)
    data = folder / "servers" / "s3"
    weed_identity = identity if reachable_by(identity, weed) else None
    store = SeaweedServer(
        weed=weed,
        identity=weed_identity,
        data_dir=data,
        socket_dir=make_socket_dir(data, weed_identity),
        log_path=folder / "servers" / "s3.log",
        ports=dict(zip(LISTENERS, free_ports(len(LISTENERS)), strict=True)),
        access_key="benchmark",
        secret_key="benchmark-only",
    )
    try:
        store.begin_start()
        store.wait_ready()
        ObjectStore(URL, store.access).create_bucket()
        yield store.access, folder
    finally:
        store.stop(5)
        shutil.rmtree(store.socket_dir, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def fill(server: QdrantServer, points: int, dimensions: int) -> None:
    """Make the collection and write random vectors with a small payload."""
    server.delete_collection(NAME)
    config = {"vectors": {"size": dimensions, "distance": "Dot"}, "optimizers_config": {"indexing_threshold": 0}}
    server.create_collection(NAME, config)
    chance = random.Random(1)
    for first in range(0, points, 500):
        batch = []
        for number in range(first, min(points, first + 500)):
            raw = array("h", chance.randbytes(2 * dimensions))
            vector = [value / 16384 for value in raw]
            batch.append({"id": number, "vector": vector, "payload": {"n": number, "text": f"document {number}"}})
        server.upsert(NAME, batch, wait=first + 500 >= points)


def write_spec(folder: Path, qdrant: str, access: StoreAccess, *, compression: bool) -> Path:
    """Write the spec of one Qdrant and one bucket; the keys lie beside it."""
    keys = f"[default]\naws_access_key_id = {access.access_key}\naws_secret_access_key = {access.secret_key}\n"
    (folder / "keys").write_text(keys, encoding="utf-8")
    (folder / "admin").write_text("host=127.0.0.1 port=1 dbname=nowhere user=nobody", encoding="utf-8")
    host, _, port = qdrant.removeprefix("http://").rpartition(":")
    spec = folder / "infrastructure.yaml"
    spec.write_text(
        f"name: benchmark\ndatabase: {{admin: 'file:{folder}/admin'}}\nqdrant: {{host: {host}, port: {port}}}\n"
        f"object_store: {{endpoint: '{access.endpoint}', credentials: 'file:{folder}/keys'}}\n"
        f"backup: {{vectors: {{destination: '{URL}', compression: {str(compression).lower()}}}}}\n",
        encoding="utf-8",
    )
    return spec


def bare_s(server: QdrantServer, store: ObjectStore, folder: Path) -> tuple[float, float, int]:
    """Return the seconds of a bare stream from Qdrant to S3, those of a bare upload from a file, and the bytes."""
    from boto3.s3.transfer import TransferConfig

    made = server.create_shard_snapshot(NAME, 0)
    if made is None:
        raise RuntimeError("the server made no snapshot")
    parts = TransferConfig(multipart_chunksize=8 * MIB, max_concurrency=4)
    key, path = store._key("bare"), folder / "bare.snapshot"  # noqa: SLF001
    begun = time.monotonic()
    with urlopen(f"{server.url}/collections/{NAME}/shards/0/snapshots/{made.name}") as response:
        store._client.upload_fileobj(response, store.bucket, key, Config=parts)  # noqa: SLF001
    streamed_s = time.monotonic() - begun
    store.delete(["bare"])
    with server.download_shard_snapshot(NAME, 0, made.name) as download, path.open("wb") as file:
        for piece in download.pieces:
            file.write(piece)
    server.delete_shard_snapshot(NAME, 0, made.name)
    path.read_bytes()  # from now on it is in memory
    begun = time.monotonic()
    store._client.upload_file(str(path), store.bucket, key, Config=parts)  # noqa: SLF001
    uploaded_s = time.monotonic() - begun
    store.delete(["bare"])
    path.unlink()
    return streamed_s, uploaded_s, made.size_bytes


def peak_memory_mib(spec: Path, folder: Path) -> float:
    """Return the largest PSS of the command that snapshots the collection."""
    command = [sys.executable, "-m", "synapse_ops", "backup", "now", f"vectors/{NAME}"]
    command += ["--spec", str(spec), "--state-dir", str(folder)]
    peak = 0.0
    with psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with suppress(psutil.Error):
                peak = max(peak, process.memory_full_info().pss / MIB)
            time.sleep(SAMPLE_S)
    if process.returncode != 0:
        raise SystemExit(f"the command ended with {process.returncode}")
    return peak


def main() -> None:
    """Measure, print, and exit 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qdrant", required=True)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-compression", action="store_true")
    given = parser.parse_args()
    with running_store() as (access, folder), QdrantServer(given.qdrant, timeout_s=120) as server:
        fill(server, given.points, given.dimensions)
        try:
            missed = measure(server, access, folder, given)
        finally:
            server.delete_collection(NAME)
    raise SystemExit(1 if missed else 0)


def measure(server: QdrantServer, access: StoreAccess, folder: Path, given: argparse.Namespace) -> bool:
    """Run the rounds and print them; return whether a target was missed."""
    spec = write_spec(folder, given.qdrant, access, compression=not given.no_compression)
    stack = open_stack(spec, folder)
    store = ObjectStore(URL, access)
    streams, files, ours = [], [], []
    for number in range(given.rounds):
        stream_s, file_s, size = bare_s(server, store, folder)
        streams.append(stream_s)
        files.append(file_s)
        report = snapshot_collection(stack, NAME)
        ours.append(report.record.phase_s["send"])
        [shard] = report.record.shards
        print(
            f"round {number + 1}: {size / MIB:.0f} MiB; bare stream {stream_s:.2f} s, from a file {file_s:.2f} s, ours"
            f" {ours[-1]:.2f} s; sample ratio {shard.sample_ratio}, stored {report.record.stored_bytes / MIB:.0f} MiB;"
            f" phases {report.record.phase_s}"
        )
    peak_mib = peak_memory_mib(spec, folder)
    proof = SNAPSHOTS.prove(stack.vector_repository(), place=report.place, work_dir=folder / "proof")
    if proof is not None:
        print(f"proof: {proof.record.verdict}, {proof.record.phase_s}")
    rate = min(streams) / min(ours)
    print(f"upload at {rate:.2f} of a bare stream (target {RATE_TARGET}), {min(files) / min(ours):.2f} of a bare file,"
          f" memory {peak_mib:.0f} MiB PSS (target under {MEMORY_TARGET_MIB})")  # fmt: skip
    return rate < RATE_TARGET or peak_mib >= MEMORY_TARGET_MIB


if __name__ == "__main__":
    main()
