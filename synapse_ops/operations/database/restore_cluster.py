"""Restores the whole cluster to a moment, as a new data directory, from the repository alone.

The copy is made and recovered in a throwaway beside the target, on the same file system, by a server that can reach
nothing, and moved into place when it is checked, stopped cleanly and flushed to disk. It keeps its identity, so that
nothing of it may be backed up beside its source, until it goes live and is given a new generation.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from synapse_ops.domain.backup.base_record import BaseRecord
from synapse_ops.domain.backup.layout import KIND_BASE, BackupPlace
from synapse_ops.domain.database.base_chain import members_bytes
from synapse_ops.domain.database.recovery_plan import BaseCandidate, RecoveryPlan, plan_recovery
from synapse_ops.domain.database.recovery_target import RecoveryTarget
from synapse_ops.domain.database.wal_chain import WalArchive
from synapse_ops.errors import ConfigError
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup.deadline import Deadline
from synapse_ops.operations.backup.reading import ReadLog, read_backup_document
from synapse_ops.operations.backup.restoring import (
    RestorePlan,
    RestoreReport,
    RestoreRequest,
    move_into_place,
    predict_from_repository,
    require_new_directory,
)
from synapse_ops.operations.backup.throwaway_directory import sweep_throwaways, throwaway_base, throwaway_directory
from synapse_ops.operations.database.base_parent import read_chain, readers_of
from synapse_ops.operations.database.cluster_copy import (
    TABLESPACES,
    Recovered,
    recovered_cluster,
    stage_cluster,
)
from synapse_ops.operations.database.restore_to_directory import SOCKET_DIR, make_permanent
from synapse_ops.operations.database.wal_archive import highest_timeline, read_wal_archive
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.host.process_presence import boot_id
from synapse_ops.systems.host.processes import reachable_by, server_identity
from synapse_ops.systems.postgres.cluster_files import is_recovering, link_tablespaces
from synapse_ops.systems.postgres.connection import connect
from synapse_ops.systems.postgres.identity import write_generation
from synapse_ops.systems.postgres.programs import PgTools, find_pg_tools


@dataclass(frozen=True)
class ClusterRestorePlan(RestorePlan):
    """What a restore of the cluster would do. recovery: base backup, target and WAL."""

    record: BaseRecord
    directory: Path
    recovery: RecoveryPlan
    archive: WalArchive
    tools: PgTools
    goes_live: bool
    chain: tuple[BaseRecord, ...]

    def facts(self) -> Mapping[str, str]:
        recovery = self.recovery
        return {
            "until": str(recovery.target),
            "base backup": f"{recovery.base.place.backup_id}, ended {self.record.stopped_time:%Y-%m-%d %H:%M:%S} UTC",
            **({"made of": ", ".join(one.backup_id for one in self.chain)} if len(self.chain) > 1 else {}),
            "replays": f"{recovery.base.start} to {recovery.until} along timeline {recovery.history.timeline}",
            "with": f"PostgreSQL {self.tools.version} in {self.tools.bin_dir}",
        }

    def as_json(self) -> dict[str, Any]:
        return {
            **super().as_json(),
            "until": str(self.recovery.target),
            "timeline": self.recovery.history.timeline,
            "start_lsn": str(self.recovery.base.start),
            "until_lsn": str(self.recovery.until),
            "goes_live": self.goes_live,
        }


@dataclass(frozen=True)
class ClusterRestoreReport(RestoreReport):
    """A data directory that is recovered and checked. end_lsn: where replay ended. last_commit_at: of what it holds."""

    plan: ClusterRestorePlan
    end_lsn: str
    last_commit_at: datetime | None

    @property
    def outcome(self) -> str:
        return f"restored, every file as its manifest says, and replayed to {self.end_lsn}"

    def as_json(self) -> dict[str, Any]:
        return {**super().as_json(), "end_lsn": self.end_lsn}

    def next_steps(self) -> tuple[str, ...]:
        return (
            f"pg_ctl -D {self.plan.where} start",
            f"psql -h {SOCKET_DIR} -U {self.plan.record.source.bootstrap_role} postgres  # as the directory's owner",
        )


def newest_place(
    repository: Repository, until: str, timeline: int | None, age_identities: tuple[str, ...]
) -> BackupPlace:
    """Return the base backup that a restore of the cluster begins with. until: as `--until`.

    Raises Refused, ConfigError.
    """
    return _plan(repository, None, RecoveryTarget.parse(until), timeline, age_identities)[0].base.place


def plan_cluster_restore(request: RestoreRequest) -> ClusterRestorePlan:
    """Return what restoring into the directory of `request` would do.

    Raises TargetNotEmpty, ConfigError, Refused where the moment cannot be reached.
    """
    directory = Path(request.target).absolute()
    require_new_directory(directory)
    identity = server_identity()
    if not reachable_by(identity, directory.parent):
        raise ConfigError(
            f'user "{identity.name if identity else ""}" runs the server and cannot enter {directory.parent}',
            hint="Choose a place outside private home directories.",
        )
    target = RecoveryTarget.parse(request.until or "immediate")
    recovery, archive = _plan(request.repository, request.place, target, request.timeline, request.identities)
    record = recovery.base.record
    tools = find_pg_tools(record.source.server_version_num // 10000)
    owner = [f'the directory will belong to user "{identity.name}"'] if identity is not None else []
    if record.tablespaces:
        require_new_directory(directory.with_name(f"{directory.name}.{TABLESPACES}"))
    spaces = [f"tablespaces will lie in {directory}.{TABLESPACES}"] if record.tablespaces else []
    return ClusterRestorePlan(
        place=request.place,
        record=record,
        where=str(directory),
        server_version=tools.version,
        size_bytes=record.source.cluster_size_bytes,
        stored_bytes=record.stored_bytes,
        predicted_s=predict_from_repository(request.repository, request.place, record.source_size_bytes),
        notes=("unlogged tables are empty in the copy", *owner, *spaces),
        directory=directory,
        recovery=recovery,
        archive=archive,
        tools=tools,
        goes_live=request.goes_live,
        chain=read_chain(request.repository, recovery.base.place, record),
    )


def _plan(
    repository: Repository,
    place: BackupPlace | None,
    target: RecoveryTarget,
    timeline: int | None,
    age_identities: tuple[str, ...],
) -> tuple[RecoveryPlan, WalArchive]:
    if place is None:
        found = [entry.place for entry in read_catalog(repository).only(KIND_BASE).backups]
        identities = sorted({str(one.identity) for one in found})
        if len(identities) > 1:
            raise ConfigError(
                f"the repository holds base backups of {len(identities)} servers: {', '.join(identities)}",
                hint="Name the base backup by its id: `synapse-ops backup list cluster`.",
            )
    else:
        found = [place]
    if not found:
        raise ConfigError("the repository holds no base backup", hint="`synapse-ops backup now cluster` takes one.")
    archive = read_wal_archive(repository, found[0].identity, age_identities=age_identities)
    bases = [BaseCandidate(one, read_backup_document(repository, one, ReadLog(), BaseRecord)) for one in found]
    return plan_recovery(bases, archive, target, timeline=timeline), archive


def _work_of(plan: ClusterRestorePlan) -> str:
    """Return what a killed restore must have been about, so that its verified copy is recovered further.

    The boot is part of it: the copy is not flushed to disk before its end, and does not survive a crash of the host.
    """
    recovery = plan.recovery
    return "\n".join(
        [plan.record.digest(), str(recovery.target), str(recovery.history.timeline), str(plan.directory), boot_id()]
    )


def apply_cluster_restore(request: RestoreRequest, plan: ClusterRestorePlan) -> ClusterRestoreReport:
    """Carry out the plan. Raises what the plan would raise now, and Unproven where replay ends elsewhere."""
    begun, deadline = time.monotonic(), Deadline(request.timeout_s, "restore")
    directory, record = plan.directory, plan.record
    work = _work_of(plan)
    sweep_throwaways(directory.parent, but=work)
    with throwaway_directory(
        directory.parent,
        database_size_bytes=record.source.cluster_size_bytes,
        scratch_bytes=members_bytes(plan.chain),
        programs_dir=throwaway_base(request.work_dir, server_identity()) / "programs",
        work=work,
    ) as throwaway_dir:
        members = readers_of(
            request.repository,
            plan.place,
            plan.chain,
            identities=request.identities,
            deadline=deadline,
            progress=request.progress,
        )
        data_dir = throwaway_dir.path / "data"
        if not (throwaway_dir.is_taken_up and is_recovering(data_dir)):
            throwaway_dir.empty()  # replay had ended in it, or it is new: what was made of the copy later is not known
            stage_cluster(members, throwaway_dir, plan.tools, deadline)
            throwaway_dir.mark(work)
        read_s = round(time.monotonic() - begun, 3)
        with recovered_cluster(
            request.repository,
            plan.archive,
            plan.recovery,
            throwaway_dir,
            tools=plan.tools,
            deadline=deadline,
            age_identities=request.identities,
            progress=request.progress,
            used_timeline=highest_timeline(request.repository, plan.place.identity.system_identifier)
            if plan.goes_live
            else 0,
        ) as recovered:
            if plan.goes_live:
                with connect(recovered.throwaway.conninfo("template1")) as connection:
                    write_generation(connection, secrets.token_hex(4))
            server = recovered.throwaway.server
            server.stop("fast")
        superuser, identity = record.source.bootstrap_role, throwaway_dir.identity
        make_permanent(data_dir, server.tools, superuser, identity, recovered.least)
        if record.tablespaces:
            beside = directory.with_name(f"{directory.name}.{TABLESPACES}")
            require_new_directory(beside)
            move_into_place(throwaway_dir.path / TABLESPACES, beside)
            link_tablespaces(data_dir, {space.oid: beside / str(space.oid) for space in record.tablespaces})
        move_into_place(data_dir, directory)
        os.sync()
    restore_s = round(time.monotonic() - begun, 3)
    return ClusterRestoreReport(
        plan=plan,
        restore_s=restore_s,
        phase_s={"read": read_s, "replay": round(restore_s - read_s, 3)},
        item_count=record.item_count,
        notes=(*plan.notes, _newest(recovered)),
        end_lsn=str(recovered.end),
        last_commit_at=recovered.last_commit_at,
    )


def _newest(recovered: Recovered) -> str:
    """Return what of the source is lost: the observed RPO is the time from here to when it stopped."""
    if recovered.last_commit_at is None:
        return "no transaction was replayed: it is as the base backup ended"
    at = recovered.last_commit_at.isoformat(timespec="milliseconds")
    return f"the last transaction in it was committed at {at}; what the source committed later is not"
