"""Qdrant's own engine without a server, in a separate process: what is in the snapshots of a collection's shards.

A damaged file can abort the process that reads it, read for ever, or ask for all memory. So the engine runs in a
subprocess with limits on memory, file size and time, on a scratch copy; it dies with us, and whatever it does instead
of answering is `Unproven`, never a pass. That it opens a snapshot proves little: the caller compares what it says.
It opens snapshots of shards only, not those of collections.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.domain.vectors.fingerprint import CanaryQuery, CopyFacts
from synapse_ops.errors import DeadlineExceeded, Unproven
from synapse_ops.systems.host.processes import dying_with_us

MEMORY_BYTES = 4 * 2**30  # anonymous; 205 MB were the most that 500,000 points of 768 dimensions took
LEAST_FILE_BYTES = 2**30  # the engine preallocates chunks of 32 MiB and more, whatever is in them
_MODULE = "synapse_ops.systems.qdrant.edge_worker"
_KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR")  # no secrets
_STDERR_CHARS = 2000
_VERSION_DEPTH = 2  # snapshot/files/version.info; deeper ones belong to parts of a segment


@dataclass(frozen=True, slots=True)
class ShardFile:
    """The snapshot of one shard as a file, decrypted and not compressed."""

    shard_id: int
    path: Path


def find_engine() -> str:
    """Return the version of Qdrant's engine on this host. Raises Unproven where it is not installed, or not whole."""
    try:
        if importlib.util.find_spec("qdrant_edge") is not None:
            return metadata.version("qdrant-edge-py")
    except (ValueError, metadata.PackageNotFoundError):
        pass
    raise Unproven(
        "Qdrant's engine is not installed on this host: no snapshot can be opened",
        hint="Install the wheel qdrant-edge-py for this interpreter; it exists for Linux and macOS.",
    )


def inspect_copy(
    shards: Sequence[ShardFile],
    *,
    scratch_dir: Path,
    wanted: Sequence[str] | None,
    queries: Sequence[CanaryQuery] = (),
    timeout_s: float,
    memory_bytes: int = MEMORY_BYTES,
    progress: ReportProgress = ignore_progress,
) -> CopyFacts:
    """Unpack the shards of one collection below `scratch_dir`, and return what the engine finds in them.

    wanted: ids (as text) whose hashes are asked for; None counts only, and reads no point. Raises Unproven when the
    engine crashes, refuses the files or answers nonsense, DeadlineExceeded after `timeout_s`.
    """
    wanted_path = scratch_dir / "wanted.json"
    wanted_path.write_text(json.dumps(list(wanted or ())), encoding="utf-8")
    job = {
        "shards": [
            {
                "shard_id": shard.shard_id,
                "snapshot": str(shard.path),
                "directory": str(scratch_dir / f"shard-{shard.shard_id}"),
            }
            for shard in shards
        ],
        "wanted": None if wanted is None else str(wanted_path),
        "queries": [query.as_json() for query in queries],
        "limits": {
            "memory_bytes": memory_bytes,
            "file_bytes": max(LEAST_FILE_BYTES, 2 * sum(shard.path.stat().st_size for shard in shards)),
            "cpu_s": int(timeout_s * (os.cpu_count() or 1)) + 1,
        },
    }
    try:
        return CopyFacts.from_json(_run(job, scratch_dir, timeout_s, progress))
    except (KeyError, TypeError, ValueError) as fault:
        raise Unproven(f"the engine's answer could not be read: {type(fault).__name__} {fault}") from fault


def _run(job: Mapping[str, Any], scratch_dir: Path, timeout_s: float, progress: ReportProgress) -> dict[str, Any]:
    """Run the worker to its end and return its result; the kernel kills it when the calling thread ends."""
    with (scratch_dir / "engine.log").open("w+b") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=scratch_dir,
            env={name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ},
            start_new_session=True,
            preexec_fn=dying_with_us(signal.SIGKILL),
        )
        overdue = threading.Event()

        def kill() -> None:
            overdue.set()
            process.kill()

        watch = threading.Timer(timeout_s, kill)
        watch.start()
        try:
            result = _converse(process, job, progress)
        finally:
            watch.cancel()
            process.kill()
            process.wait()
        log.seek(0)
        said = log.read()[-_STDERR_CHARS:].decode(errors="replace").strip()
    if overdue.is_set():
        raise DeadlineExceeded(f"Qdrant's engine did not read the snapshot within {timeout_s:.0f} s")
    if result is None:
        raise _failure(process.returncode, said)
    return result


def _converse(
    process: subprocess.Popen[bytes], job: Mapping[str, Any], progress: ReportProgress
) -> dict[str, Any] | None:
    """Hand over the job and read lines until the result; None when there was none, or the process did not end well."""
    if process.stdin is None or process.stdout is None:
        raise Unproven("the engine has no pipes")
    with process.stdin as pipe, process.stdout as lines:
        try:
            pipe.write(json.dumps(job).encode())
            pipe.close()
        except BrokenPipeError:
            return None
        result = None
        for line in lines:
            try:
                said = json.loads(line)
            except ValueError:
                return None
            if "result" in said:
                result = said["result"]
            elif "points" in said:
                progress(Progress("reading points of the copy", said["points"], unit="points"))
            else:
                progress(Progress(f"{said['stage']} the copy", 0))
        return result if process.wait() == 0 else None


def _failure(status: int, said: str) -> Unproven:
    last = said.splitlines()[-1] if said else ""
    if status < 0:
        name = signal.Signals(-status).name
        return Unproven(f"Qdrant's engine died of {name} while it read the snapshot", detail=said[-600:])
    return Unproven(f"Qdrant's engine could not read the snapshot: {last or f'status {status}'}", detail=said[-600:])


def segment_versions(snapshot: Path) -> tuple[str, ...]:
    """Return the versions of the segments in a shard's snapshot, without opening it. Raises Unproven for no archive."""
    found: set[str] = set()
    try:
        with tarfile.open(snapshot) as archive:
            for member in archive:
                inner = archive.extractfile(member) if member.name.startswith("segments/") else None
                if inner is None:
                    continue
                with tarfile.open(fileobj=inner) as segment:
                    for part in segment:
                        data = segment.extractfile(part) if part.name.endswith("/version.info") else None
                        if data is not None and part.name.count("/") == _VERSION_DEPTH:
                            found.add(data.read(64).decode().strip())
    except (tarfile.TarError, EOFError, UnicodeDecodeError) as fault:
        raise Unproven(f"{snapshot.name} is not a snapshot of a shard: {fault}") from fault
    return tuple(sorted(found))
