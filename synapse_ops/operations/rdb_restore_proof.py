"""Proves an RDB snapshot: a throwaway redis-server loads it, and every key that is known is compared there.

The throwaway is on a Unix socket, follows nobody and writes nothing. A file that it refuses, a crash, a time-out, a
version that it cannot load: unproven, never a pass. What is compared, and what is not: domain/key_fingerprint.py.
"""

from __future__ import annotations

import hashlib
import io
import time
from pathlib import Path

from synapse_ops.domain.backup_record import ObjectRecord, RdbFindings
from synapse_ops.domain.key_fingerprint import KeyFingerprint, compare_keys
from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.domain.rdb_record import RdbRecord
from synapse_ops.domain.repository_layout import BACKUP, KIND_RDB, BackupPlace
from synapse_ops.errors import ChecksumMismatch, IntegrityError, SynapseOpsError, Unproven
from synapse_ops.operations.deadline import Deadline
from synapse_ops.operations.proof import DEFAULT_TIMEOUT_S, Outcome, ProofReport, carry_out_proof
from synapse_ops.operations.rdb_snapshot import FINGERPRINT, RDB
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.staged_backup import ReadLog, hold_for_reading, read_backup_document, read_object
from synapse_ops.operations.throwaway_directory import ThrowawayDir, sweep_throwaways, throwaway_directory
from synapse_ops.systems.encryption import SUFFIX
from synapse_ops.systems.local_processes import available_memory_bytes, give_to, make_private_dir
from synapse_ops.systems.pg_server import make_socket_dir
from synapse_ops.systems.redis_keys import read_copy
from synapse_ops.systems.redis_program import RDB_FILE, find_redis, loaded_rdb

MEMORY_FACTOR = 1.25  # of what the data took on its server: fragmentation, and the index of keys while it grows


def prove_rdb(
    repository: Repository,
    *,
    place: BackupPlace | None = None,
    address: str | None = None,
    identities: tuple[str, ...] = (),
    work_dir: Path,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    progress: ReportProgress = ignore_progress,
) -> ProofReport | None:
    """Prove one backup and return what was written; None when `place` is None and every backup is proven.

    place: None chooses the newest backup that no proof has judged yet, else the newest that is not proven, of the
    server of `address` or of any. identities: age secret keys. work_dir: where the throwaway lives; left-overs of
    killed ones are swept first. timeout_s: bounds everything but writing the proof.
    Raises ObjectMissing when there is no such backup, and what the store raises when the proof cannot be written.
    """
    deadline = Deadline(timeout_s, "proof of restore")
    sweep_throwaways(work_dir)

    def prove(chosen: BackupPlace, outcome: Outcome) -> None:
        _prove(repository, chosen, identities, work_dir, deadline, progress, outcome)

    return carry_out_proof(repository, kind=KIND_RDB, place=place, subject=address, deadline=deadline, prove=prove)


def _prove(
    repository: Repository,
    place: BackupPlace,
    identities: tuple[str, ...],
    work_dir: Path,
    deadline: Deadline,
    progress: ReportProgress,
    outcome: Outcome,
) -> None:
    record = read_backup_document(repository, place, outcome.log, RdbRecord)
    program = find_redis()
    _check_memory(record)
    size_bytes = record.dumped_bytes
    with (
        hold_for_reading(repository, place, "proof"),
        throwaway_directory(work_dir, database_size_bytes=0, scratch_bytes=size_bytes) as directory,
    ):
        outcome.has_begun = True
        begun = time.monotonic()
        data_dir = make_private_dir(directory.path / "data", directory.identity)
        with outcome.phase("read"):
            expected = deadline.run(
                lambda: stage_rdb(
                    repository,
                    place,
                    record,
                    identities=identities,
                    path=data_dir / RDB_FILE,
                    deadline=deadline,
                    log=outcome.log,
                    progress=progress,
                )
            )
        give_to(directory.identity, data_dir / RDB_FILE)
        _load_and_compare(program, directory, expected, begun, deadline, progress, outcome)
        deadline.remaining_s()


def _load_and_compare(
    program: Path,
    directory: ThrowawayDir,
    expected: KeyFingerprint,
    begun: float,
    deadline: Deadline,
    progress: ReportProgress,
    outcome: Outcome,
) -> None:
    def bounded(step: Progress) -> None:
        deadline.remaining_s()
        progress(step)

    data_dir = directory.path / "data"
    with loaded_rdb(
        program,
        directory.identity,
        data_dir,
        make_socket_dir(data_dir, directory.identity),
        programs_dir=directory.programs_dir,
        remaining_s=deadline.remaining_s,
        progress=bounded,
    ) as server:
        outcome.restore_s = round(time.monotonic() - begun, 3)
        outcome.server_version = str(server.info()["redis_version"])
        try:
            with outcome.phase("compare"):
                copy = read_copy(server, expected, progress=bounded)
                digest = server.dataset_digest()
        except SynapseOpsError as error:
            raise Unproven("could not read the copy in the throwaway redis-server", detail=error.message) from error
    found = compare_keys(expected, copy)
    outcome.rdb = RdbFindings(
        keys=dict(copy.counts),
        expired_keys=copy.expired,
        dataset_digest=digest,
        scope=expected.scope,
        still_keys=found.still_keys,
        by_value=found.by_value,
        window_keys=found.window_keys,
        passing_keys=found.passing_keys,
    )
    outcome.conclude(found.differences)


def stage_rdb(
    repository: Repository,
    place: BackupPlace,
    record: RdbRecord,
    *,
    identities: tuple[str, ...],
    path: Path,
    deadline: Deadline,
    log: ReadLog,
    progress: ReportProgress = ignore_progress,
) -> KeyFingerprint:
    """Read and verify both objects of a backup: the RDB file into `path`, and the fingerprint, which is returned.

    Raises ChecksumMismatch naming the object and both digests, ObjectMissing, KeyMissing naming the recipients,
    DeadlineExceeded. What was read until then stands in `log`.
    """
    objects = _objects_by_name(place, record)
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        deadline.remaining_s()
        progress(Progress(f"reading {place.subject}", done, record.stored_bytes))

    buffer = io.BytesIO()
    read_object(repository, place, record, objects[FINGERPRINT], identities, buffer, count, log)
    found = hashlib.sha256(buffer.getvalue()).hexdigest()
    if found != record.fingerprint_digest:
        raise ChecksumMismatch(
            f"{place.key(FINGERPRINT)} is not the one that {BACKUP} names: sha256 {found}, "
            f"recorded {record.fingerprint_digest}"
        )
    with path.open("wb") as sink:
        read_object(repository, place, record, objects[RDB], identities, sink, count, log)
    return KeyFingerprint.from_json(buffer.getvalue())


def _objects_by_name(place: BackupPlace, record: RdbRecord) -> dict[str, ObjectRecord]:
    suffix = SUFFIX if record.encryption_recipients else ""
    wanted = {name + suffix: name for name in (RDB, FINGERPRINT)}
    found = [item.name for item in record.objects]
    if sorted(found) != sorted(wanted):
        raise IntegrityError(
            f"{place.key(BACKUP)} names the objects {', '.join(sorted(found))}",
            detail=f"expected {', '.join(sorted(wanted))}",
        )
    return {wanted[item.name]: item for item in record.objects}


def _check_memory(record: RdbRecord) -> None:
    needed, free = int(record.source.memory_bytes * MEMORY_FACTOR), available_memory_bytes()
    if needed > free:
        raise Unproven(
            f"no memory to load the snapshot: this host has {free // 2**20} MiB free, {needed // 2**20} MiB are needed",
            hint="Prove it on a host with more, or when others need less.",
        )
