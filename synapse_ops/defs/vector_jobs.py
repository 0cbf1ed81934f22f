"""Jobs on collections for the launchpad, and their schedules. A wrong value is refused with what would be right."""

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from synapse_ops.defs.database_jobs import (
    DUMP_LIMIT,
    PROOF_MARGIN,
    RESTORE_LIMIT,
    ChosenBackup,
)
from synapse_ops.defs.database_operations import proof_events, prove, refuse_unless_proven
from synapse_ops.defs.expiry import expiry_jobs
from synapse_ops.defs.in_run import operation_of
from synapse_ops.defs.policies import POOL_QDRANT_IO, TAG_SET_ID, TAG_TRIGGER, run_limit
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.subject_kind import COLLECTIONS, COLLECTIONS_PARTITION
from synapse_ops.defs.vector_operations import discover, restore_snapshot, snapshot
from synapse_ops.defs.vectors import PROOF_KEY, SNAPSHOT_KEY
from synapse_ops.errors import Refused

if TYPE_CHECKING:
    from synapse_ops.defs.place import Place
    from synapse_ops.spec import Spec

FORGET_LIMIT = timedelta(minutes=10)


class SnapshotConfig(dg.Config):
    """Which collections are snapshotted."""

    collections: list[str] = Field([], description="Names of collections on the server. Empty: all of them.")


class VectorRestoreConfig(dg.Config):
    """What is restored, and where to."""

    backup_id: str = Field(description="Id of the backup; an unknown one is refused with the nearest ids.")
    collection: str = Field(
        description="Name of a new collection on the spec's server. What exists is refused: nothing is ever restored "
        "over anything. `synapse-ops vectors switch-alias` makes it live afterwards."
    )


class ForgottenCollection(dg.Config):
    """Which collection needs no more backups."""

    collection: str = Field(description="Name of a collection that is not on the server any more. Its backups stay.")


def vector_job_definitions(spec: "Spec", place: "Place") -> dg.Definitions:
    """Return the launchpad's jobs on collections, and the schedules of a spec."""
    proof_limit = spec.proof.timeout + PROOF_MARGIN
    snapshot_collections = dg.define_asset_job(
        "snapshot_collections",
        selection=dg.AssetSelection.assets(SNAPSHOT_KEY).without_checks(),
        description="Snapshot one collection: what the schedule starts, one run a collection under one set id.",
        tags=run_limit(DUMP_LIMIT),
    )
    prove_collections = dg.define_asset_job(
        "prove_collections",
        selection=dg.AssetSelection.assets(PROOF_KEY).without_checks(),
        description="Prove the newest unproven backup of one collection.",
        tags=run_limit(proof_limit),
    )
    jobs = [snapshot_collections, prove_collections]
    jobs += [_snapshot_now(), _prove_snapshot(proof_limit), _restore_collection(), _forget_collection()]
    schedules = [
        _collection_schedule("vector_snapshot_schedule", snapshot_collections, spec.backup.vectors.schedule, spec),
        _collection_schedule("vector_proof_schedule", prove_collections, spec.proof.schedule, spec),
    ]
    return dg.Definitions.merge(dg.Definitions(jobs=jobs, schedules=schedules), expiry_jobs(COLLECTIONS, spec, place))


def _snapshot_now() -> Any:
    @dg.op(pool=POOL_QDRANT_IO, out=dg.Out(dg.Nothing), description="Snapshot the chosen collections, one by one.")
    def take_snapshots(context: dg.OpExecutionContext, config: SnapshotConfig, stack: StackResource) -> None:
        with operation_of(context.run.run_id, context.instance):
            found = discover(stack, context.instance)
            unknown = [name for name in config.collections if name not in found.present]
            if unknown:
                there = ", ".join(found.present) or "none"
                raise Refused(f"not on the server: {', '.join(unknown)}", detail=f"there are: {there}")
        for collection in config.collections or found.present:
            context.instance.add_dynamic_partitions(COLLECTIONS_PARTITION, [collection])
            backup_id, metadata = snapshot(context, stack, collection, set_id=context.run.run_id)
            tags = {"dagster/data_version": backup_id}
            event = dg.AssetMaterialization(SNAPSHOT_KEY, partition=collection, metadata=metadata, tags=tags)
            context.log_event(event)

    @dg.job(
        description="Snapshot collections now. Each is a new backup; all of one run share a set id.",
        tags=run_limit(DUMP_LIMIT),
    )
    def snapshot_now() -> None:
        take_snapshots()

    return snapshot_now


def _prove_snapshot(limit: timedelta) -> Any:
    @dg.op(pool=POOL_QDRANT_IO, out=dg.Out(dg.Nothing), description="Open a backup, compare it, write the proof.")
    def prove_chosen_snapshot(context: dg.OpExecutionContext, config: ChosenBackup, stack: StackResource) -> None:
        report = prove(
            context,
            stack,
            kind=COLLECTIONS,
            subject=None,
            backup_id=config.backup_id,
            only_unproven=config.only_unproven,
        )
        if report is None:
            return
        collection, metadata = report.place.subject, proof_events(report)
        event = dg.AssetMaterialization if report.is_proven else dg.AssetObservation
        context.log_event(event(PROOF_KEY, partition=collection, metadata=metadata))
        refuse_unless_proven(report)

    @dg.job(description="Prove one backup of a collection by opening it and comparing.", tags=run_limit(limit))
    def prove_snapshot() -> None:
        prove_chosen_snapshot()

    return prove_snapshot


def _restore_collection() -> Any:
    @dg.op(pool=POOL_QDRANT_IO, out=dg.Out(dg.Nothing), description="Restore a backup into a new collection.")
    def restore_vectors(context: dg.OpExecutionContext, config: VectorRestoreConfig, stack: StackResource) -> None:
        collection, metadata = restore_snapshot(context, stack, backup_id=config.backup_id, target=config.collection)
        context.log_event(dg.AssetObservation(SNAPSHOT_KEY, partition=collection, metadata=metadata))

    @dg.job(
        description="Restore a backup into a collection that does not exist yet. No alias is touched.",
        tags=run_limit(RESTORE_LIMIT),
    )
    def restore_collection() -> None:
        restore_vectors()

    return restore_collection


def _forget_collection() -> Any:
    @dg.op(out=dg.Out(dg.Nothing), description="Say that a collection which vanished needs no more backups.")
    def forget(context: dg.OpExecutionContext, config: ForgottenCollection, stack: StackResource) -> None:
        with operation_of(context.run.run_id, context.instance):
            found = discover(stack, context.instance)
            if config.collection not in found.vanished:
                where = "is on the server" if config.collection in found.present else "was never discovered"
                raise Refused(
                    f'collection "{config.collection}" {where}: only one that vanished can be forgotten',
                    detail=f"vanished: {', '.join(found.vanished) or 'none'}",
                )
        context.instance.delete_dynamic_partition(COLLECTIONS_PARTITION, config.collection)

    @dg.job(
        description="Forget a collection that is not on the server any more. Its backups stay until they expire.",
        tags=run_limit(FORGET_LIMIT),
    )
    def forget_collection() -> None:
        forget()

    return forget_collection


def _collection_schedule(name: str, job: Any, cron: Any, spec: "Spec") -> dg.ScheduleDefinition:
    """Return a schedule that starts one run a known collection, all under one set id; a vanished one fails its run."""

    def requests(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        from synapse_ops.domain.repository_layout import format_time

        set_id = format_time(context.scheduled_execution_time)
        for collection in sorted(context.instance.get_dynamic_partitions(COLLECTIONS_PARTITION)):
            tags = {TAG_TRIGGER: "schedule", TAG_SET_ID: set_id}
            yield dg.RunRequest(run_key=f"{set_id}-{collection}", partition_key=collection, tags=tags)

    return dg.ScheduleDefinition(
        name=name,
        job=job,
        cron_schedule=str(cron),
        execution_timezone=spec.time_zone,
        execution_fn=requests,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"{job.description} At {cron} in {spec.time_zone}; a change of clock fires it once.",
    )
