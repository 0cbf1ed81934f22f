"""Jobs of each kind for the launchpad, and the schedules. Each field says what it means; a wrong value is refused."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from synapse_ops.defs.backup.kinds import AssetKind
from synapse_ops.defs.backup.restore_check import PROOF_CHECK_NAME
from synapse_ops.defs.backup.verbs import restore_backup
from synapse_ops.defs.policies import (
    PRIORITY_BACKUP,
    PRIORITY_BASE,
    PRIORITY_PROOF,
    PRIORITY_RESTORE,
    TAG_SET_ID,
    TAG_TRIGGER,
    run_tags,
)
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.run_pods import data_pod
from synapse_ops.domain.backup.kinds import BASE, DUMP

if TYPE_CHECKING:
    from synapse_ops.spec import Spec

BACKUP_LIMIT = timedelta(hours=12)
RESTORE_LIMIT = timedelta(hours=24)
PROOF_MARGIN = timedelta(minutes=15)  # after its own deadline a proof removes the throwaway and writes its document


class RestoreConfig(dg.Config):
    """What is restored, and where to."""

    backup_id: str = Field(
        description="Id of the backup; an unknown one is refused with the nearest ids. Or `cluster`, for the whole "
        "PostgreSQL cluster at the moment of `until`."
    )
    target: str = Field(
        description="The new target, on the spec's servers or this host: a new database, a new collection, "
        "or the absolute path of a new data directory (dumps, Redis, the cluster). An existing target is refused."
    )
    until: str = Field(
        "",
        description="Of the cluster: latest, immediate, time:2026-11-30T08:15:00Z, lsn:0/5012DD0, name:RESTORE_POINT "
        "or xid:771; a moment that cannot be reached is refused with the nearest one. Empty: latest for `cluster`, "
        "the end of the base backup for its id.",
    )


def backup_jobs(kind: AssetKind, spec: "Spec") -> dg.Definitions:
    """Return the jobs of one kind and its schedules."""
    backup = dg.define_asset_job(
        kind.job("backup"),
        selection=dg.AssetSelection.assets(kind.backup_key).without_checks(),
        description=f"Back up one {kind.noun}: what the schedule starts, one run for each under one set id.",
        tags=_backup_tags(kind, spec),
    )
    its_own_check = dg.AssetSelection.checks(dg.AssetCheckKey(kind.proof_key, PROOF_CHECK_NAME))
    proof = dg.define_asset_job(
        kind.job("prove"),
        selection=dg.AssetSelection.assets(kind.proof_key).without_checks() | its_own_check,
        description=f"Prove a backup of one {kind.noun} by restoring and comparing it: the newest unproven one, or "
        "the one that the config names.",
        tags=run_tags(
            spec.proof.timeout + PROOF_MARGIN,
            lane=kind.prefix,
            priority=PRIORITY_PROOF,
            pod=data_pod(spec, kind.kind.kind),
        ),
    )
    schedules = [
        _partition_schedule(kind, "backup", backup, kind.schedule(spec), spec),
        _partition_schedule(kind, "proof", proof, spec.proof.schedule, spec),
    ]
    return dg.Definitions(jobs=[backup, proof], schedules=schedules)


def _backup_tags(kind: AssetKind, spec: "Spec") -> dict[str, str]:
    """Return the tags of a job that backs up: a base backup waits for the dumps of its night, in their lane."""
    pod = data_pod(spec, kind.kind.kind)
    if kind.kind.kind is BASE:
        return run_tags(BACKUP_LIMIT, lane=DUMP.prefix, priority=PRIORITY_BASE, pod=pod)
    return run_tags(BACKUP_LIMIT, lane=kind.prefix, priority=PRIORITY_BACKUP, pod=pod)


def restore_job(kinds: Sequence[AssetKind]) -> dg.JobDefinition:
    """Return the job that restores a backup of any kind. It is in no lane and no pool: it waits for nothing."""

    @dg.op(name="restore_backup", out=dg.Out(dg.Nothing))
    def restore_chosen(context: dg.OpExecutionContext, config: RestoreConfig, stack: StackResource) -> None:
        context.log_event(
            restore_backup(context, stack, kinds, backup_id=config.backup_id, target=config.target, until=config.until)
        )

    @dg.job(
        description="Restore a backup of any kind into a target that does not exist yet, and compare it there.",
        tags=run_tags(RESTORE_LIMIT, priority=PRIORITY_RESTORE),
    )
    def restore() -> None:
        restore_chosen()

    return restore


def _partition_schedule(kind: AssetKind, noun: str, job: Any, cron: Any, spec: "Spec") -> dg.ScheduleDefinition:
    """Return a schedule that starts one run a partition, all under one set id; a vanished one fails its run."""
    partitions = kind.partitions(spec)

    def requests(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        from synapse_ops.domain.backup.layout import format_time

        set_id = format_time(context.scheduled_execution_time)
        is_dynamic = isinstance(partitions, dg.DynamicPartitionsDefinition)
        store = context.instance if is_dynamic else None
        for subject in partitions.get_partition_keys(dynamic_partitions_store=store):
            tags = {TAG_TRIGGER: "schedule", TAG_SET_ID: set_id}
            yield dg.RunRequest(run_key=f"{set_id}-{subject}", partition_key=subject, tags=tags)

    return dg.ScheduleDefinition(
        name=f"{kind.prefix}_{noun}_schedule",
        job=job,
        cron_schedule=str(cron),
        execution_timezone=spec.time_zone,
        execution_fn=requests,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"{job.description} At {cron} in {spec.time_zone}; a daylight-saving change fires it once.",
    )
