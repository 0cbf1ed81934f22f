"""Proves an RDB snapshot: a throwaway redis-server loads it, and every key that is known is compared there.

The throwaway is on a Unix socket, replicates from no server and writes nothing. A file that it refuses, a crash, a
time-out, a version that it cannot load: unproven, never a pass. What is compared: domain/redis/fingerprint.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synapse_ops.domain.backup.layout import BackupPlace
from synapse_ops.domain.backup.proof_record import RdbFindings
from synapse_ops.domain.backup.rdb_record import RdbRecord
from synapse_ops.domain.progress import Progress, ReportProgress
from synapse_ops.domain.redis.fingerprint import KeyFingerprint, compare_keys
from synapse_ops.errors import SynapseOpsError, Unproven
from synapse_ops.operations.backup.deadline import Deadline
from synapse_ops.operations.backup.proving import Proof
from synapse_ops.operations.backup.reading import BackupReader
from synapse_ops.operations.backup.throwaway_directory import ThrowawayDir
from synapse_ops.operations.redis.snapshot import FINGERPRINT, RDB
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.host.processes import available_memory_bytes, give_to, make_private_dir
from synapse_ops.systems.postgres.server import make_socket_dir
from synapse_ops.systems.redis.keys import read_copy
from synapse_ops.systems.redis.program import RDB_FILE, find_redis, loaded_rdb

MEMORY_FACTOR = 1.25  # of what the data took on its server: fragmentation, and the index of keys while it grows


@dataclass(frozen=True)
class LoadedCopy:
    """An RDB file as a throwaway server held it. loaded_at_s: monotonic clock when it answered."""

    findings: RdbFindings
    differences: tuple[str, ...]
    server_version: str
    loaded_at_s: float


def prove_rdb(proof: Proof) -> None:
    """Load the file in a throwaway redis-server and compare every key that is known."""
    record = proof.read_record(RdbRecord)
    find_redis()
    check_memory(record)
    with proof.throwaway(database_size_bytes=0, scratch_bytes=record.dumped_bytes) as directory:
        begun = time.monotonic()
        reader = rdb_reader(proof.repository, proof.place, record, **proof.limits())
        data_dir = make_private_dir(directory.path / "data", directory.identity)
        with proof.phase("read"):
            expected = proof.deadline.run(lambda: stage_rdb(reader, record, data_dir / RDB_FILE))
        with proof.phase("load_and_compare"):
            copy = load_and_compare(directory, data_dir, expected, proof.deadline, proof.progress)
        proof.restore_s = round(copy.loaded_at_s - begun, 3)
        proof.server_version = copy.server_version
        proof.findings["rdb"] = copy.findings
        proof.differences += copy.differences


def rdb_reader(repository: Repository, place: BackupPlace, record: RdbRecord, **limits: Any) -> BackupReader:
    """Return the reader of an RDB snapshot. limits: identities, deadline, log and progress of `BackupReader`."""
    return BackupReader(repository, place, record, (RDB, FINGERPRINT), **limits)


def stage_rdb(reader: BackupReader, record: RdbRecord, path: Path) -> KeyFingerprint:
    """Read and verify both objects of a backup: the RDB file into `path`, and the fingerprint, which is returned.

    Raises what the reader raises.
    """
    fingerprint = KeyFingerprint.from_json(reader.read_document(FINGERPRINT, record.fingerprint_digest))
    with path.open("wb") as sink:
        reader.read(RDB, sink)
    return fingerprint


def load_and_compare(
    directory: ThrowawayDir, data_dir: Path, expected: KeyFingerprint, deadline: Deadline, progress: ReportProgress
) -> LoadedCopy:
    """Load `data_dir`/dump.rdb in a throwaway server and compare it. Raises Unproven, DeadlineExceeded."""

    def bounded(step: Progress) -> None:
        deadline.remaining_s()
        progress(step)

    give_to(directory.identity, data_dir / RDB_FILE)
    with loaded_rdb(
        find_redis(),
        directory.identity,
        data_dir,
        make_socket_dir(data_dir, directory.identity),
        programs_dir=directory.programs_dir,
        remaining_s=deadline.remaining_s,
        progress=bounded,
    ) as server:
        loaded_at_s = time.monotonic()
        version = str(server.info()["redis_version"])
        try:
            copy = read_copy(server, expected, progress=bounded)
            digest = server.dataset_digest()
        except SynapseOpsError as error:
            raise Unproven("could not read the copy in the throwaway redis-server", detail=error.message) from error
    found = compare_keys(expected, copy)
    findings = RdbFindings(
        keys=dict(copy.counts),
        expired_keys=copy.expired,
        dataset_digest=digest,
        scope=expected.scope,
        still_keys=found.still_keys,
        by_value=found.by_value,
        window_keys=found.window_keys,
        passing_keys=found.passing_keys,
    )
    return LoadedCopy(findings, tuple(found.differences), version, loaded_at_s)


def check_memory(record: RdbRecord) -> None:
    """Raise Unproven when this host has not the memory that the data takes."""
    needed, free = int(record.source.memory_bytes * MEMORY_FACTOR), available_memory_bytes()
    if needed > free:
        raise Unproven(
            f"not enough memory to load the snapshot: {free // 2**20} MiB free, {needed // 2**20} MiB needed",
            hint="Run the proof on a host with more memory, or when less is in use.",
        )
