"""A base backup made into a cluster again: unpacked, verified against its manifest, recovered to a target, checked.

Used by the proof and by the restore alike; where the directory goes afterwards is theirs. The server that replays is
inert (throwaway_server.py), has at least the settings that WAL asks for, and is promoted at the target. Where it ended
is read from the history that the promotion wrote, and compared with what was planned: an end before the last whole
record is unproven, never "latest".
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, cast

import zstandard

from synapse_ops.domain.backup.base_record import BaseRecord
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.recovery_plan import RecoveryPlan
from synapse_ops.domain.database.wal import Segment, TimelineHistory
from synapse_ops.domain.database.wal_chain import WalArchive, parameters
from synapse_ops.domain.progress import ReportProgress
from synapse_ops.errors import IntegrityError, SynapseOpsError, ToolFailed, Unproven, Unreachable
from synapse_ops.operations.backup.deadline import Deadline
from synapse_ops.operations.backup.reading import BackupReader
from synapse_ops.operations.backup.throwaway_directory import ThrowawayDir
from synapse_ops.operations.database.exact_position import FINGERPRINT
from synapse_ops.operations.database.throwaway_server import Throwaway, throwaway_server
from synapse_ops.operations.database.wal_prefetch import WalPrefetcher
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.host.processes import ServerIdentity, make_private_dir
from synapse_ops.systems.postgres.base_backup import MANIFEST
from synapse_ops.systems.postgres.cluster_files import (
    combine,
    has_record_at,
    link_tablespaces,
    make_inert,
    unpack,
    verify,
)
from synapse_ops.systems.postgres.connection import connect, postgres_errors
from synapse_ops.systems.postgres.control_file import control_data
from synapse_ops.systems.postgres.programs import PgTools, tools_for

POLL_S = 0.02
RECORD_ALIGNMENT = 8  # of where records begin; a position behind one is rounded up to it
TABLESPACES = "tablespaces"  # beside the data directory
_REPLAY = """
SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() END,
       pg_last_wal_replay_lsn()::text"""
_CONTROL = {
    "max_connections setting": "max_connections",
    "max_worker_processes setting": "max_worker_processes",
    "max_wal_senders setting": "max_wal_senders",
    "max_prepared_xacts setting": "max_prepared_transactions",
    "max_locks_per_xact setting": "max_locks_per_transaction",
}
_OWN_LEAST = {"max_connections": 40, "max_worker_processes": 4, "max_locks_per_transaction": 2048}  # for our checks


def objects_of(record: BaseRecord) -> tuple[str, ...]:
    """Return the names of the objects that a base backup consists of."""
    return (*record.archives, MANIFEST, *([FINGERPRINT] if record.exact is not None else []))


@dataclass(frozen=True)
class Recovered:
    """A cluster that has reached its target and runs. end: where replay stands, or the position where it was promoted.

    is_paused: it stands still there, takes queries that only read, and can be recovered further.
    last_commit_at: of the last transaction that was replayed, by the source's clock; None: none was.
    least: settings of the source that the cluster may need to start again, for its prepared transactions.
    """

    throwaway: Throwaway
    end: Lsn
    least: Mapping[str, int]
    last_commit_at: datetime | None
    is_paused: bool = False


def stage_cluster(
    members: Sequence[tuple[BackupReader, BaseRecord]], directory: ThrowawayDir, tools: PgTools, deadline: Deadline
) -> Path:
    """Unpack a base backup into `directory`/data and verify it; return the data directory.

    members: it and what it rests on, the full one first; each is verified, and then they are made one.
    Raises what the readers raise, IntegrityError for an archive that is none, and Unproven where a file differs from
    the manifest.
    """
    identity = directory.identity
    tools = tools_for(identity, tools, directory.programs_dir)
    root, data_dir = directory.path, directory.path / "data"
    if len(members) == 1:
        _unpack_member(*members[0], root, directory, tools, deadline)
        make_inert(data_dir, identity)
        return data_dir
    roots = [make_private_dir(root / f"member-{number}", identity) for number, _ in enumerate(members)]
    for part, (reader, record) in zip(roots, members, strict=True):
        _unpack_member(reader, record, part, directory, tools, deadline)
    places, mapping = {}, {}
    for space in members[-1][1].tablespaces:
        places[space.oid] = make_private_dir(root / TABLESPACES, identity) / str(space.oid)
        mapping[roots[-1] / TABLESPACES / str(space.oid)] = places[space.oid]
    combine([part / "data" for part in roots], data_dir, mapping, tools, identity, timeout_s=deadline.remaining_s())
    for part in roots:
        shutil.rmtree(part)
    verify(data_dir, (data_dir / MANIFEST).read_bytes(), tools, identity, timeout_s=deadline.remaining_s())
    make_inert(data_dir, identity)
    return data_dir


def _unpack_member(
    reader: BackupReader,
    record: BaseRecord,
    root: Path,
    directory: ThrowawayDir,
    tools: PgTools,
    deadline: Deadline,
) -> None:
    """Unpack one base backup into `root`/data, its tablespaces beside it, and verify it against its manifest."""
    identity = directory.identity
    manifest = reader.read_document(MANIFEST, record.fingerprint_digest)  # small: damage to it shows at once
    data_dir = make_private_dir(root / "data", identity)
    places = {}
    for name, place in zip(record.archives, [data_dir, *_tablespace_dirs(record, root, identity)], strict=True):
        if place != data_dir:
            places[int(name.split(".", 1)[0])] = make_private_dir(place, identity)
        with _unpacking(place, directory, is_compressed=record.compression != "none") as sink:
            reader.read(name, sink)
    link_tablespaces(data_dir, places)
    verify(data_dir, manifest, tools, identity, timeout_s=deadline.remaining_s())


def _tablespace_dirs(record: BaseRecord, root: Path, identity: ServerIdentity | None) -> list[Path]:
    if not record.tablespaces:
        return []
    base = make_private_dir(root / TABLESPACES, identity)
    return [base / str(space.oid) for space in record.tablespaces]


@contextmanager
def _unpacking(place: Path, directory: ThrowawayDir, *, is_compressed: bool) -> Iterator[IO[bytes]]:
    """Yield a sink whose bytes are unpacked into `place`; raises IntegrityError where they are no archive."""
    source_fd, sink_fd = os.pipe()
    errors: list[Exception] = []

    def carry() -> None:
        with os.fdopen(source_fd, "rb") as source:
            try:
                plain = zstandard.ZstdDecompressor().stream_reader(source) if is_compressed else source
                unpack(plain, place, directory.identity)
            except Exception as error:  # noqa: BLE001 - carried over to the thread that writes
                errors.append(error)
            while source.read(1024 * 1024):
                pass  # the reader compares every byte of an object, also behind a fault

    thread = threading.Thread(target=carry, name="unpack", daemon=True)
    thread.start()
    try:
        with os.fdopen(sink_fd, "wb") as sink:
            yield cast("IO[bytes]", _Tellable(sink))
    finally:
        thread.join()
    if errors:
        if isinstance(errors[0], SynapseOpsError | OSError):
            raise errors[0]
        raise IntegrityError("an archive of the base backup cannot be unpacked", detail=str(errors[0]))


class _Tellable:
    """A pipe that knows how much was written to it."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink, self._count = sink, 0

    def write(self, data: bytes) -> int:
        self._sink.write(data)
        self._count += len(data)
        return len(data)

    def tell(self) -> int:
        return self._count

    def flush(self) -> None:
        self._sink.flush()


@contextmanager
def recovered_cluster(
    repository: Repository,
    archive: WalArchive,
    plan: RecoveryPlan,
    directory: ThrowawayDir,
    *,
    tools: PgTools,
    deadline: Deadline,
    age_identities: tuple[str, ...],
    progress: ReportProgress,
    stands_still: bool = False,
    used_timeline: int = 0,
) -> Iterator[Recovered]:
    """Yield the cluster in `directory`/data, recovered to the plan's target and open, while the block lasts.

    stands_still: to a position alone, and not promoted there, so that a later call can recover it to a later target;
    it is promoted all the same where the source's open transactions let nobody in yet (`is_paused` says which).
    used_timeline: the timeline that it begins is higher.
    Raises Unproven where replay ended elsewhere than planned, and what kept WAL away.
    """
    record, identity = plan.base.record, directory.identity
    tools = tools_for(identity, tools, directory.programs_dir)
    data_dir, wal_dir = directory.path / "data", directory.path / "wal"
    shutil.rmtree(wal_dir, ignore_errors=True)  # of an earlier call
    prefetcher = WalPrefetcher(
        repository,
        archive,
        plan,
        directory=wal_dir,
        data_dir=data_dir,
        identity=identity,
        age_identities=age_identities,
        progress=progress,
        used_timeline=used_timeline,
    )
    least = _least_settings(control_data(data_dir, tools, identity), archive, plan)
    settings: dict[str, object] = {
        **{name: max(value, _OWN_LEAST.get(name, 0)) for name, value in least.items()},
        **({} if plan.replays_all else plan.target.settings()),
        "wal_level": "replica",
        "hot_standby": stands_still,
        "restore_command": prefetcher.restore_command(),
        "recovery_target_timeline": str(plan.history.timeline),
        "recovery_target_action": "pause" if stands_still else "promote",
        "archive_cleanup_command": "",
        "recovery_end_command": "",
        "primary_conninfo": "",
        "primary_slot_name": "",
        "synchronous_standby_names": "",
    }
    with prefetcher, ExitStack() as running:
        try:
            throwaway = running.enter_context(
                throwaway_server(
                    directory,
                    tools=tools,
                    superuser=record.source.bootstrap_role,
                    database_size_bytes=record.source.cluster_size_bytes,
                    deadline=deadline,
                    recovery=settings,
                )
            )
            paused_at = _await_pause(throwaway, deadline) if stands_still else None
        except ToolFailed as error:
            if prefetcher.error is not None:
                raise prefetcher.error from error
            raise Unproven("the cluster did not recover", detail=error.detail) from error
        end = paused_at or _end_of_replay(data_dir, plan.history)
        _check_end(prefetcher, plan, end, tools, directory, deadline)
        with connect(throwaway.conninfo("template1")) as connection, postgres_errors("the last transaction"):
            [(last_commit_at,)] = connection.execute("SELECT pg_last_xact_replay_timestamp()").fetchall()
        yield Recovered(throwaway, end, least, last_commit_at, is_paused=paused_at is not None)


def _await_pause(throwaway: Throwaway, deadline: Deadline) -> Lsn | None:
    """Return where replay stands still at its target; None: it was promoted there.

    Raises ToolFailed where the server ends instead, DeadlineExceeded.
    """
    while True:
        throwaway.server.raise_if_ended()
        try:
            with connect(throwaway.conninfo("template1")) as connection, postgres_errors("the position of replay"):
                while deadline.remaining_s():
                    [(is_recovering, state, lsn)] = connection.execute(_REPLAY).fetchall()
                    if not is_recovering:
                        return None
                    if state == "paused":
                        return Lsn.parse(lsn)
                    time.sleep(POLL_S)
        except Unreachable:
            time.sleep(POLL_S)  # it ends, or is not there yet


def _least_settings(control: Mapping[str, str], archive: WalArchive, plan: RecoveryPlan) -> dict[str, int]:
    """Return the settings that recovery needs at least: of the copy, and of each later change that WAL holds."""
    least = {setting: int(control[label]) for label, setting in _CONTROL.items()}
    for change in parameters(archive, plan.history, plan.base.start):
        least = {name: max(value, getattr(change, name)) for name, value in least.items()}
    return least


def _end_of_replay(data_dir: Path, history: TimelineHistory) -> Lsn:
    """Return where the promotion left the history that was followed."""
    newest = max((data_dir / "pg_wal").glob("*.history"), key=lambda path: path.name, default=None)
    timeline = int(newest.name.split(".", 1)[0], 16) if newest is not None else 0
    if newest is None or timeline <= history.timeline:
        raise Unproven("the recovered server began no timeline of its own: where replay ended is unknown")
    return TimelineHistory.parse(timeline, newest.read_bytes()).forks[-1].at


def _check_end(
    prefetcher: WalPrefetcher,
    plan: RecoveryPlan,
    end: Lsn,
    tools: PgTools,
    directory: ThrowawayDir,
    deadline: Deadline,
) -> None:
    """Raise Unproven unless replay ended where the target asks for."""
    kind = plan.target.kind
    if kind == "lsn" and end != plan.target.lsn and not plan.replays_all:
        nearest = "a record begins before it" if plan.target.lsn is not None and end < plan.target.lsn else "behind it"
        raise Unproven(f"replay ended at {end}, {nearest}, and not at {plan.target.lsn}")
    if kind == "name" and end.position != -(-plan.until.position // RECORD_ALIGNMENT) * RECORD_ALIGNMENT:
        raise Unproven(f'replay ended at {end}, and restore point "{plan.target.name}" ends at {plan.until}')
    if kind == "immediate" and end < plan.base.stop:
        raise Unproven(f"replay ended at {end}, before the copy is consistent at {plan.base.stop}")
    if not plan.replays_all:
        return
    segment = Segment.at(plan.history.timeline_at(end), end, plan.base.record.source.wal_segment_bytes)
    file = prefetcher.segment_file(segment)
    if file is None and plan.end - end > segment.size_bytes:
        raise Unproven(f"replay ended at {end}, and WAL is stored up to {plan.end}")
    if file is not None and has_record_at(
        file, str(end), tools, directory.identity, timeout_s=deadline.remaining_s(60)
    ):
        raise Unproven(f"replay ended at {end}, and whole records lie behind it", detail=f"stored up to {plan.end}")
