"""Jobs for the launchpad, and the schedules. Each field says what it means; a wrong value is refused."""

from collections.abc import Iterator
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from synapse_ops.defs.database_operations import (
    PROOF_KEY,
    dump,
    proof_events,
    prove,
    refuse_unless_proven,
    restore_backup,
)
from synapse_ops.defs.expiry import expiry_jobs
from synapse_ops.defs.policies import (
    POOL_POSTGRES_IO,
    TAG_SET_ID,
    TAG_TRIGGER,
    run_limit,
)
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.restore_check import DUMP_KEY
from synapse_ops.defs.subject_kind import DATABASES

if TYPE_CHECKING:
    from synapse_ops.defs.place import Place
    from synapse_ops.spec import Spec

DUMP_LIMIT = timedelta(hours=12)
RESTORE_LIMIT = timedelta(hours=24)
PROOF_MARGIN = timedelta(minutes=15)  # after its own deadline a proof removes the throwaway and writes its document


class ChosenBackup(dg.Config):
    """Which backup is proven."""

    backup_id: str = Field(
        "",
        description="Id of the backup, as `synapse-ops backup list` prints it; an unknown one is refused with the "
        "nearest ids. Empty: the newest backup that has not been proven.",
    )
    only_unproven: bool = Field(False, description="Do nothing when the backup has a proof already, whatever it says.")


class RestoreConfig(dg.Config):
    """What is restored, and where to."""

    backup_id: str = Field(description="Id of the backup, as `synapse-ops backup list` prints it.")
    target: str = Field(
        description="Name of a new database on the spec's server, or the absolute path of a new data directory. "
        "What exists is refused: "
        "nothing is ever restored into anything live."
    )


def job_definitions(spec: "Spec", place: "Place") -> dg.Definitions:
    """Return the launchpad's jobs and the schedules of a spec."""
    proof_limit = spec.proof.timeout + PROOF_MARGIN
    dump_databases = dg.define_asset_job(
        "dump_databases",
        selection=dg.AssetSelection.assets(DUMP_KEY).without_checks(),
        description="Back up one database: what the schedule starts, one run a database under one set id.",
        tags=run_limit(DUMP_LIMIT),
    )
    prove_databases = dg.define_asset_job(
        "prove_databases",
        selection=dg.AssetSelection.assets(PROOF_KEY).without_checks(),
        description="Prove the newest unproven backup of one database.",
        tags=run_limit(proof_limit),
    )
    jobs = [dump_databases, prove_databases, _backup_now(spec), _prove_backup(proof_limit), _restore_to_new()]
    schedules = [
        _partition_schedule("database_dump_schedule", dump_databases, spec.backup.database.schedule, spec),
        _partition_schedule("database_proof_schedule", prove_databases, spec.proof.schedule, spec),
    ]
    return dg.Definitions.merge(dg.Definitions(jobs=jobs, schedules=schedules), expiry_jobs(DATABASES, spec, place))


def _backup_now(spec: "Spec") -> Any:
    choices = Enum("Database", {name: name for name in spec.database.databases})  # type: ignore[misc]

    class BackupConfig(dg.Config):
        """Which databases are backed up."""

        databases: list[choices] = Field(
            [], description=f"Databases to back up, of: {', '.join(spec.database.databases)}. Empty: all of them."
        )

    @dg.op(
        pool=POOL_POSTGRES_IO, out=dg.Out(dg.Nothing), description="Back up the chosen databases, one after another."
    )
    def back_up(context: dg.OpExecutionContext, config: BackupConfig, stack: StackResource) -> None:
        chosen = [str(name.value) for name in config.databases] or list(spec.database.databases)
        for database in chosen:
            backup_id, metadata = dump(context, stack, database, set_id=context.run.run_id)
            tags = {"dagster/data_version": backup_id}
            event = dg.AssetMaterialization(DUMP_KEY, partition=database, metadata=metadata, tags=tags)
            context.log_event(event)

    @dg.job(
        description="Back up databases now. Each is a new backup; all of one run share a set id.",
        tags=run_limit(DUMP_LIMIT),
    )
    def backup_now() -> None:
        back_up()

    return backup_now


def _prove_backup(limit: timedelta) -> Any:
    @dg.op(pool=POOL_POSTGRES_IO, out=dg.Out(dg.Nothing), description="Restore a backup, compare it, write the proof.")
    def prove_chosen(context: dg.OpExecutionContext, config: ChosenBackup, stack: StackResource) -> None:
        report = prove(context, stack, subject=None, backup_id=config.backup_id, only_unproven=config.only_unproven)
        if report is None:
            return
        database, metadata = report.place.subject, proof_events(report)
        kind = dg.AssetMaterialization if report.is_proven else dg.AssetObservation
        context.log_event(kind(PROOF_KEY, partition=database, metadata=metadata))
        refuse_unless_proven(report)

    @dg.job(description="Prove one backup by restoring it and comparing.", tags=run_limit(limit))
    def prove_backup() -> None:
        prove_chosen()

    return prove_backup


def _restore_to_new() -> Any:
    @dg.op(pool=POOL_POSTGRES_IO, out=dg.Out(dg.Nothing), description="Restore a backup into a new target.")
    def restore(context: dg.OpExecutionContext, config: RestoreConfig, stack: StackResource) -> None:
        database, metadata = restore_backup(context, stack, backup_id=config.backup_id, target=config.target)
        context.log_event(dg.AssetObservation(DUMP_KEY, partition=database, metadata=metadata))

    @dg.job(
        description="Restore a backup into a target that does not exist yet.",
        tags=run_limit(RESTORE_LIMIT),
    )
    def restore_to_new() -> None:
        restore()

    return restore_to_new


def _partition_schedule(name: str, job: Any, cron: str, spec: "Spec") -> dg.ScheduleDefinition:
    """Return a schedule that starts one run a database, all under one set id."""

    def requests(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        from synapse_ops.domain.repository_layout import format_time

        set_id = format_time(context.scheduled_execution_time)
        for database in spec.database.databases:
            tags = {TAG_TRIGGER: "schedule", TAG_SET_ID: set_id}
            yield dg.RunRequest(run_key=f"{set_id}-{database}", partition_key=database, tags=tags)

    return dg.ScheduleDefinition(
        name=name,
        job=job,
        cron_schedule=str(cron),
        execution_timezone=spec.time_zone,
        execution_fn=requests,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"{job.description} At {cron} in {spec.time_zone}; a change of clock fires it once.",
    )
