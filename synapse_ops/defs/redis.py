"""Redis, where `backup.redis` says that it keeps more than a cache: an RDB snapshot and its proof, on one schedule.

Listing, pins and expiry are the command line's (`--redis`). Without `backup.redis` the group is empty: of a cache no
backup is made, and none is missing.
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from synapse_ops.defs.in_run import operation_of, progress_into
from synapse_ops.defs.policies import GROUP_REDIS, OWNERS, TAG_TRIGGER, code_version, freshness_of, run_limit
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.spec_assets import spec_key

if TYPE_CHECKING:
    from synapse_ops.spec import Spec

SNAPSHOT, PROOF = "redis_snapshot", "redis_restore_proof"
REDIS_LIMIT = timedelta(hours=6)


def redis_definitions(spec: "Spec") -> dg.Definitions:
    """Return the two assets, the job that does both, and its schedule; nothing where Redis is a cache."""
    if spec.backup.redis is None:
        return dg.Definitions()
    cron = spec.backup.redis.schedule
    freshness = freshness_of(cron.longest_gap(spec.time_zone))
    job = dg.define_asset_job(
        "redis_backup",
        selection=dg.AssetSelection.assets(SNAPSHOT, PROOF),
        description="Take an RDB snapshot of Redis and prove it: what the schedule starts.",
        tags=run_limit(REDIS_LIMIT),
    )
    schedule = dg.ScheduleDefinition(
        name="redis_backup_schedule",
        job=job,
        cron_schedule=str(cron),
        execution_timezone=spec.time_zone,
        tags={TAG_TRIGGER: "schedule"},
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"{job.description} At {cron} in {spec.time_zone}.",
    )
    return dg.Definitions(assets=[_snapshot(freshness), _proof(freshness)], jobs=[job], schedules=[schedule])


def _snapshot(freshness: dg.FreshnessPolicy) -> Any:
    @dg.asset(
        name=SNAPSHOT,
        deps=[spec_key("redis"), spec_key("backup")],
        group_name=GROUP_REDIS,
        owners=OWNERS,
        kinds={"redis", "s3"},
        code_version=code_version("synapse_ops.operations.rdb_snapshot"),
        freshness_policy=freshness,
        description="An RDB snapshot of Redis in the repository, every logical database in one file. `keys` is what "
        "the second reading counted; `window_keys` moved between the two, and no proof can say what they were.",
    )
    def redis_snapshot(context: dg.AssetExecutionContext, stack: StackResource) -> dg.MaterializeResult[None]:
        with operation_of(context.run.run_id, context.instance):
            from synapse_ops.operations.rdb_snapshot import snapshot_redis

            report = snapshot_redis(stack.open(), progress=progress_into(context.log))
        for warning in report.warnings:
            context.log.warning(warning)
        record = report.record
        metadata: dict[str, Any] = {
            "backup_id": record.backup_id,
            "url": report.url,
            "keys": record.item_count,
            "window_keys": record.window.moved_keys,
            "scope": record.window.scope,
            "dumped_bytes": record.dumped_bytes,
            "stored_bytes": record.stored_bytes,
            "duration_s": record.duration_s,
        }
        return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(record.backup_id))

    return redis_snapshot


def _proof(freshness: dg.FreshnessPolicy) -> Any:
    @dg.asset(
        name=PROOF,
        deps=[SNAPSHOT],
        group_name=GROUP_REDIS,
        owners=OWNERS,
        kinds={"redis"},
        code_version=code_version("synapse_ops.operations.rdb_restore_proof"),
        freshness_policy=freshness,
        description="The newest RDB snapshot that is not proven yet, loaded into a throwaway server and compared key "
        "for key. A run whose snapshot is not proven fails.",
    )
    def redis_restore_proof(context: dg.AssetExecutionContext, stack: StackResource) -> dg.MaterializeResult[None]:
        with operation_of(context.run.run_id, context.instance):
            from synapse_ops.errors import Unproven
            from synapse_ops.operations.rdb_restore_proof import prove_rdb

            opened = stack.open()
            report = prove_rdb(
                opened.redis_repository(),
                identities=opened.age_identities(),
                work_dir=opened.state_dir / "proof",
                timeout_s=opened.spec.proof.timeout.total_seconds(),
                progress=progress_into(context.log),
            )
            if report is None:
                raise Unproven("there is no RDB snapshot that waits for a proof", hint="Start redis_backup.")
            if not report.is_proven:
                reason = report.record.reason or "; ".join(report.record.differences)
                raise Unproven(f"RDB snapshot {report.place.backup_id} is {report.record.verdict}", detail=reason)
        metadata: dict[str, Any] = {
            "backup_id": report.place.backup_id,
            "verdict": str(report.record.verdict),
            "url": report.url,
        }
        return dg.MaterializeResult(metadata=metadata)

    return redis_restore_proof
