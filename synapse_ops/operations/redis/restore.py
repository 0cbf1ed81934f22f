"""Restores an RDB snapshot as a new data directory, which `redis-server --dir DIR` starts anywhere.

The file is staged in a throwaway beside the target, on the same file system, loaded and compared by a throwaway server,
and moved into place when it is equal. Never into a directory that holds anything.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from synapse_ops.domain.backup.rdb_record import RdbRecord
from synapse_ops.errors import IntegrityError, counted
from synapse_ops.operations.backup.deadline import Deadline
from synapse_ops.operations.backup.reading import ReadLog, read_backup_document
from synapse_ops.operations.backup.restoring import (
    RestorePlan,
    RestoreReport,
    RestoreRequest,
    flush_directory,
    move_into_place,
    predict_from_repository,
    require_new_directory,
)
from synapse_ops.operations.backup.throwaway_directory import (
    sweep_throwaways,
    throwaway_base,
    throwaway_directory,
)
from synapse_ops.operations.redis.proof import check_memory, load_and_compare, rdb_reader, stage_rdb
from synapse_ops.systems.host.processes import make_private_dir, server_identity
from synapse_ops.systems.redis.program import RDB_FILE, find_redis

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class RdbRestorePlan(RestorePlan):
    """What a restore of an RDB snapshot would do."""

    record: RdbRecord
    directory: Path

    def facts(self) -> Mapping[str, str]:
        return {"with": f"redis-server of this host, snapshot of Redis {self.record.source.server_version}"}


@dataclass(frozen=True)
class RdbRestoreReport(RestoreReport):
    """A data directory that is complete and compared."""

    def next_steps(self) -> tuple[str, ...]:
        return (f"redis-server --dir {self.plan.where} --dbfilename {RDB_FILE} --appendonly no",)


def plan_rdb_restore(request: RestoreRequest) -> RdbRestorePlan:
    """Return what restoring into the directory of `request` would do.

    Raises TargetNotEmpty unless it is absent or empty, ConfigError, and what `read_backup_document` raises.
    """
    directory = Path(request.target).absolute()
    record = read_backup_document(request.repository, request.place, ReadLog(), RdbRecord)
    require_new_directory(directory)
    find_redis()
    identity = server_identity()
    owner = [f'the directory will belong to user "{identity.name}"'] if identity is not None else []
    return RdbRestorePlan(
        place=request.place,
        record=record,
        where=str(directory),
        server_version=record.source.server_version,
        size_bytes=record.dumped_bytes,
        stored_bytes=record.stored_bytes,
        predicted_s=predict_from_repository(request.repository, request.place, record.source_size_bytes),
        notes=("expired keys are dropped when the server loads the file", *owner),
        directory=directory,
    )


def apply_rdb_restore(request: RestoreRequest, plan: RdbRestorePlan) -> RdbRestoreReport:
    """Carry out the plan. Raises what the plan would raise now, IntegrityError when the copy is not equal."""
    begun, deadline = time.monotonic(), Deadline(request.timeout_s, "restore")
    directory, record = plan.directory, plan.record
    check_memory(record)
    sweep_throwaways(directory.parent)
    with (
        throwaway_directory(
            directory.parent,
            database_size_bytes=0,
            scratch_bytes=record.dumped_bytes,
            programs_dir=throwaway_base(request.work_dir, server_identity()) / "programs",
        ) as throwaway,
    ):
        data_dir = make_private_dir(throwaway.path / "data", throwaway.identity)
        reader = rdb_reader(
            request.repository,
            plan.place,
            record,
            identities=request.identities,
            deadline=deadline,
            progress=request.progress,
        )
        expected = deadline.run(lambda: stage_rdb(reader, record, data_dir / RDB_FILE))
        read_s = round(time.monotonic() - begun, 3)
        copy = load_and_compare(throwaway, data_dir, expected, deadline, request.progress)
        if copy.differences:
            raise IntegrityError(
                f"the restored copy differs from its backup in {counted(len(copy.differences), 'place')}",
                detail="\n".join(copy.differences[:20]),
                hint="Restore another backup; `synapse-ops backup list` shows which are proven.",
            )
        restored = make_private_dir(throwaway.path / "restored", throwaway.identity)
        with (data_dir / RDB_FILE).open("rb") as staged:
            os.fsync(staged.fileno())
        (data_dir / RDB_FILE).rename(restored / RDB_FILE)
        flush_directory(restored)
        move_into_place(restored, directory)
    restore_s = round(time.monotonic() - begun, 3)
    phases = {"read": read_s, "load_and_compare": round(restore_s - read_s, 3)}
    return RdbRestoreReport(plan, restore_s, phases, sum(copy.findings.keys.values()), plan.notes)
