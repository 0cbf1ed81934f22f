"""Restores every store beside what runs, from the backups that a recovery has chosen. Taken up where it was cut.

Each part is whole or not at all, and its end is on disk before the next one begins. What a restore finds to be bad is
left out, and the choice is made again: an older base backup and more WAL bring PostgreSQL to the same moment.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.database.wal import TimelineHistory
from synapse_ops.domain.progress import Progress, ReportProgress
from synapse_ops.domain.recovery.recovery_record import IMPACT, RESTORED, Chosen, RecoveryRecord, new_recovery_id
from synapse_ops.errors import IntegrityError, ObjectMissing, SynapseOpsError, Unproven
from synapse_ops.operations.backup.catalog import find_backup
from synapse_ops.operations.backup.restoring import RestoreReport, RestoreRequest
from synapse_ops.operations.backup_kinds import BASES, RDBS, SNAPSHOTS, BackupKind
from synapse_ops.operations.recovery.choice import LATEST, Choice, choose_backups
from synapse_ops.operations.recovery.journal import Journal
from synapse_ops.operations.recovery.place import RecoveryPlace
from synapse_ops.operations.stack import Stack

if TYPE_CHECKING:
    from synapse_ops.operations.database.restore_cluster import ClusterRestoreReport

CLUSTER = "cluster"
REDIS = "redis"


def begin_recovery(
    stack: Stack,
    place: RecoveryPlace,
    until: str,
    impact: Mapping[str, Any],
    choice: Choice | SynapseOpsError,
    now: datetime,
) -> RecoveryRecord:
    """Return the recovery that was cut before its copy was checked, or whose copy is as a new one would be; else a new
    one, which is on disk.

    A copy that was made for an approval which never came is removed: there is space for one. Raises the error that
    stands for the choice, where a recovery would have to be begun.
    """
    journal = Journal.of(stack.state_dir)
    unused = [one for one in journal.records() if not one.is_switched]
    alike = [one for one in unused if one.until == until]
    for earlier in alike:
        if not earlier.is_prepared:
            return earlier
    if isinstance(choice, SynapseOpsError):
        raise choice
    for earlier in alike:
        if (place.folder(earlier.id) / CLUSTER).exists() and _restores_the_same(earlier, choice):
            return earlier
    for earlier in unused:
        shutil.rmtree(journal.folder / earlier.id)
    record = RecoveryRecord(
        id=new_recovery_id(now, os.urandom(3)),
        until=until,
        begun_at=now,
        identity=choice.identity,
        chosen=choice.chosen,
        empty=choice.empty,
        predicted_s=choice.predicted_s,
        steps={
            IMPACT: {
                **impact,
                "stored_up_to": str(choice.base.stored_up_to),
                "replaces": [one.digest for one in unused if one.is_prepared],
            }
        },
    )
    journal.write(record)
    return record


def _restores_the_same(earlier: RecoveryRecord, choice: Choice) -> bool:
    """Return whether its copy, in which nothing is wrong, holds what a new one would hold.

    By whichever base backup: more WAL behind an older one leads to the same moment.
    """
    return (
        not earlier.faults
        and earlier.identity == choice.identity
        and earlier.empty == choice.empty
        and {one.backup_id for one in earlier.chosen[1:]} == {one.backup_id for one in choice.chosen[1:]}
        and (earlier.until != LATEST or earlier.steps[IMPACT].get("stored_up_to") == str(choice.base.stored_up_to))
    )


def restore_stack(
    stack: Stack, place: RecoveryPlace, record: RecoveryRecord, now: datetime, progress: ReportProgress
) -> RecoveryRecord:
    """Restore what has not been restored yet. Raises what a restore raises; then a later call goes on from there."""
    if "seconds" in record.steps.get(RESTORED, {}):
        return record
    journal, folder = Journal.of(stack.state_dir), place.folder(record.id)
    while True:
        parts: dict[str, Any] = dict(record.steps.get(RESTORED, {}).get("parts", {}))
        waiting = [one for one in record.chosen if one.what not in parts]
        if not waiting:
            break
        one = waiting[0]
        progress(Progress(f"restoring {one.what}", len(parts), len(record.chosen), "stores"))
        try:
            parts[one.what] = _restore(stack, place, record, one, folder, progress)
        except (IntegrityError, ObjectMissing, Unproven) as fault:
            record = _choose_again(stack, record, one, fault, now)
            journal.write(record)
            continue
        record = journal.add(record, RESTORED, {"parts": parts})
    seconds = round(sum(part["seconds"] for part in parts.values()), 3)
    return journal.add(record, RESTORED, {"parts": parts, "seconds": seconds, "empty": dict(record.empty)})


def _choose_again(
    stack: Stack, record: RecoveryRecord, bad: Chosen, fault: IntegrityError | ObjectMissing | Unproven, now: datetime
) -> RecoveryRecord:
    """Return the recovery with another base backup. Raises the fault where there is none, or of another store."""
    if bad.what != CLUSTER:
        raise fault
    avoid = {*record.steps[IMPACT].get("avoid", ()), bad.backup_id}
    choice = choose_backups(stack, record.until, now, avoid=avoid)
    cluster = replace(choice.chosen[0], note=f"{choice.chosen[0].note}: {fault.message}")
    steps = {**record.steps, IMPACT: {**record.steps[IMPACT], "avoid": sorted(avoid)}}
    return replace(record, identity=choice.identity, chosen=(cluster, *record.chosen[1:]), steps=steps)


def _restore(
    stack: Stack, place: RecoveryPlace, record: RecoveryRecord, one: Chosen, folder: Path, progress: ReportProgress
) -> dict[str, Any]:
    if one.what == CLUSTER:
        return _restore_cluster(stack, record, one, folder / CLUSTER, progress)
    if one.what.startswith(f"{SNAPSHOTS.word}/"):
        return _restore_collection(stack, place, record, one, folder, progress)
    return _restore_redis(stack, place, one, folder / REDIS, progress)


def _request(
    stack: Stack, kind: BackupKind, one: Chosen, target: str, progress: ReportProgress, **more: Any
) -> RestoreRequest:
    repository = kind.repository(stack)
    return RestoreRequest(
        repository=repository,
        place=find_backup(repository, one.backup_id),
        target=target,
        open_stack=more.pop("open_stack", lambda: stack),
        work_dir=stack.state_dir / "proof",
        identities=stack.age_identities(),
        progress=progress,
        **more,
    )


def _carry_out(kind: BackupKind, request: RestoreRequest) -> RestoreReport:
    return kind.apply_restore(request, kind.plan_restore(request))


def _restore_cluster(
    stack: Stack, record: RecoveryRecord, one: Chosen, directory: Path, progress: ReportProgress
) -> dict[str, Any]:
    """Restore it as a server with a generation of its own. One that is there was restored by a run that was cut."""
    if directory.exists():
        timeline = _left_timeline(directory)
        return {"backup_id": one.backup_id, "directory": str(directory), "seconds": 0.0, "timeline": timeline}
    request = _request(stack, BASES, one, str(directory), progress, until=record.until, goes_live=True)
    report: ClusterRestoreReport = _carry_out(BASES, request)  # type: ignore[assignment]
    at = report.last_commit_at
    return {
        "backup_id": one.backup_id,
        "directory": str(directory),
        "seconds": report.restore_s,
        "bytes": report.plan.size_bytes,
        "end_lsn": report.end_lsn,
        "timeline": report.plan.recovery.history.timeline,
        "last_commit_at": at.isoformat() if at is not None else None,
    }


def _left_timeline(directory: Path) -> int | None:
    """Return the timeline that a restored cluster has left, by the history of its own; None where that is not there."""
    newest = max((directory / "pg_wal").glob("*.history"), key=lambda path: path.name, default=None)
    if newest is None:
        return None
    return TimelineHistory.parse(int(newest.stem, 16), newest.read_bytes()).forks[-1].timeline


def _restore_collection(
    stack: Stack, place: RecoveryPlace, record: RecoveryRecord, one: Chosen, folder: Path, progress: ReportProgress
) -> dict[str, Any]:
    """Restore it under its name of the recovery, with its aliases where the name is its own."""
    from synapse_ops.operations.vectors.alias import switch_alias
    from synapse_ops.operations.vectors.restore import VectorRestoreReport
    from synapse_ops.systems.qdrant.server import open_qdrant

    name = place.name_of(one.subject, record.id)
    with place.vectors(folder) as block:
        there = replace(stack, loaded=replace(stack.loaded, spec=stack.spec.model_copy(update={"qdrant": block})))
        with open_qdrant(block) as server:
            if name in server.collections():  # of a run that was cut: whole, or a half that its metadata gives away
                server.delete_collection(name)
            request = _request(stack, SNAPSHOTS, one, name, progress, open_stack=lambda: there)
            report = _carry_out(SNAPSHOTS, request)
            aliases = list(report.plan.aliases) if isinstance(report, VectorRestoreReport) else []
            if name == one.subject:
                for alias in aliases:
                    with suppress(IntegrityError):
                        switch_alias((server,), alias, name)
    return {
        "backup_id": one.backup_id,
        "collection": name,
        "seconds": report.restore_s,
        "points": report.item_count,
        "aliases": aliases,
        "window_s": one.window_s,
    }


def _restore_redis(
    stack: Stack, place: RecoveryPlace, one: Chosen, directory: Path, progress: ReportProgress
) -> dict[str, Any]:
    if not directory.exists():
        report = _carry_out(RDBS, _request(stack, RDBS, one, str(directory), progress))
        seconds, keys = report.restore_s, report.item_count
    else:
        seconds, keys = 0.0, -1
    place.prepare_redis(directory)
    return {"backup_id": one.backup_id, "directory": str(directory), "seconds": seconds, "keys": keys}
