"""The protected databases: dump -> proof of restore -> expiry plan -> retention set.

Partitioned by what is backed up, always; never by time (a backfill of yesterday's dump is a lie) and never by backup id
(each new one would make every old proof stale). A chosen backup is a field of the config.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from synapse_ops.defs.database_operations import (
    EXPIRY_PLAN_KEY,
    PROOF_KEY,
    apply_plan,
    dump,
    plan_expiry,
    proof_events,
    prove,
    refuse_unless_proven,
)
from synapse_ops.defs.policies import (
    GROUP_DATABASE,
    OWNERS,
    POOL_POSTGRES_IO,
    POOL_REPOSITORY_DELETE,
    TAG_TRIGGER,
    code_version,
    freshness_of,
)
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.restore_check import CHECK_NAME, DUMP_KEY, evaluation_of, judge_now
from synapse_ops.defs.spec_assets import spec_key
from synapse_ops.defs.subject_kind import DATABASES, SubjectKind

if TYPE_CHECKING:
    from synapse_ops.spec import Spec

RETENTION_KEY = dg.AssetKey("database_retention_set")
AUTOMATIC = {
    "schedule",
    "sensor",
}  # triggers that an operator switched on; the plan of their own run is approved by that


class ProofConfig(dg.Config):
    """Which backup a proof restores."""

    backup_id: str = Field(
        "",
        description="Id of the backup to restore, as `synapse-ops backup list` prints it. "
        "Empty: the newest backup of the database that has not been proven.",
    )


class ExpiryConfig(dg.Config):
    """Which plan an expiry carries out."""

    plan_digest: str = Field(
        "",
        description="The plan_digest that database_expiry_plan printed: the approval of exactly that plan. "
        "Empty is refused, except in a run of the expiry schedule, which makes its plan itself.",
    )


def database_definitions(spec: "Spec") -> dg.Definitions:
    """Return the assets and the check of the spec's databases."""
    partitions = dg.StaticPartitionsDefinition(list(spec.database.databases))

    @dg.asset(
        key=DUMP_KEY,
        partitions_def=partitions,
        deps=[spec_key(block) for block in ("database", "backup", "encryption", "object_store")],
        pool=POOL_POSTGRES_IO,
        group_name=GROUP_DATABASE,
        owners=OWNERS,
        kinds={"postgres", "s3"},
        code_version=code_version("synapse_ops.operations.database_dump", "synapse_ops.operations.backup_writer"),
        freshness_policy=freshness_of(spec.backup.database.schedule.longest_gap(spec.time_zone)),
        description="A whole logical backup of one database in the repository. Each materialization is one backup: "
        "`stored_bytes` is what lies in the bucket, `duration_s` what the dump took. It counts for retention only once "
        "it is proven: see the check restore_proven.",
    )
    def database_dump(context: dg.AssetExecutionContext, stack: StackResource) -> dg.MaterializeResult[None]:
        backup_id, metadata = dump(context, stack, context.partition_key)
        return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(backup_id))

    @dg.asset(
        key=PROOF_KEY,
        partitions_def=partitions,
        deps=[DUMP_KEY, spec_key("proof"), spec_key("encryption")],
        pool=POOL_POSTGRES_IO,
        group_name=GROUP_DATABASE,
        owners=OWNERS,
        kinds={"postgres", "s3"},
        output_required=False,
        code_version=code_version("synapse_ops.operations.restore_proof", "synapse_ops.domain.fingerprint"),
        freshness_policy=freshness_of(spec.proof.schedule.longest_gap(spec.time_zone)),
        description="A backup restored into a throwaway server and compared exactly with what was backed up. "
        "`restore_s` is the time from the first byte read to a server that answers; `predicted_restore_s` is what was "
        "predicted before. Any doubt fails the run and the check restore_proven.",
    )
    def database_restore_proof(
        context: dg.AssetExecutionContext, config: ProofConfig, stack: StackResource
    ) -> Iterator[dg.MaterializeResult[None]]:
        report = prove(context, stack, subject=context.partition_key, backup_id=config.backup_id)
        if report is None:
            return
        if not report.is_proven:
            observed = dg.AssetObservation(PROOF_KEY, partition=context.partition_key, metadata=proof_events(report))
            context.log_event(observed)
        refuse_unless_proven(report)
        yield dg.MaterializeResult(metadata=proof_events(report), data_version=dg.DataVersion(report.record.digest()))

    @dg.asset(
        key=EXPIRY_PLAN_KEY,
        deps=[PROOF_KEY, spec_key("backup"), spec_key("retention")],
        group_name=GROUP_DATABASE,
        owners=OWNERS,
        kinds={"s3"},
        code_version=code_version("synapse_ops.domain.retention", "synapse_ops.domain.expiry_plan"),
        freshness_policy=freshness_of(spec.proof.schedule.longest_gap(spec.time_zone)),
        description="What an expiry would do: every backup, kept or expired, with the reason. Nothing is removed here. "
        "`plan_digest` names exactly this plan; expire_apply takes it.",
    )
    def database_expiry_plan(context: dg.AssetExecutionContext, stack: StackResource) -> dg.MaterializeResult[None]:
        digest, metadata = plan_expiry(context, stack)
        return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(digest))

    @dg.asset(
        key=RETENTION_KEY,
        deps=[EXPIRY_PLAN_KEY],
        pool=POOL_REPOSITORY_DELETE,
        group_name=GROUP_DATABASE,
        owners=OWNERS,
        kinds={"s3"},
        code_version=code_version("synapse_ops.operations.expire"),
        description="What an expiry removed: exactly the plan of one digest, each entry checked again before. "
        "Refused without a digest, for one that names no plan of the last 24 hours, and over "
        "retention.max_expiry_ratio; a used digest does nothing.",
    )
    def database_retention_set(
        context: dg.AssetExecutionContext, config: ExpiryConfig, stack: StackResource
    ) -> dg.MaterializeResult[None]:
        digest = config.plan_digest or plan_of_same_run(context, DATABASES)
        return dg.MaterializeResult(metadata=apply_plan(context, stack, digest))

    @dg.multi_asset_check(
        name=CHECK_NAME,
        specs=[
            dg.AssetCheckSpec(
                CHECK_NAME,
                asset=DUMP_KEY,
                description="Red while the newest proof of any database is anything but a pass, or is older than "
                "retention.proof_max_age; a warning while a later one could not be attempted. "
                "Judges all databases from the repository and lists the failing ones. "
                "Not evaluated: the newest backup has had no proof yet.",
            )
        ],
        can_subset=True,
    )
    def restore_proven(context: dg.AssetCheckExecutionContext, stack: StackResource) -> Iterator[dg.AssetCheckResult]:
        judgement = judge_now(DATABASES, stack.open(), context.instance)
        if not judgement.is_due:
            context.log.info(f"not proven yet: {', '.join(judgement.waiting) or 'there is nothing to prove'}")
            return
        evaluation = evaluation_of(judgement, instance=context.instance, run_id=context.run.run_id)
        yield dg.AssetCheckResult(
            asset_key=DUMP_KEY,
            check_name=CHECK_NAME,
            passed=evaluation.passed,
            severity=evaluation.severity,
            description=evaluation.description,
            metadata=evaluation.metadata,
        )

    assets = [database_dump, database_restore_proof, database_expiry_plan, database_retention_set]
    return dg.Definitions(assets=assets, asset_checks=[restore_proven])


def plan_of_same_run(context: dg.AssetExecutionContext, kind: SubjectKind) -> str:
    """Return the digest of the plan made in this very run, when a schedule or sensor started it; else ""."""
    if context.run.tags.get(TAG_TRIGGER) not in AUTOMATIC:
        return ""
    event = context.instance.get_latest_materialization_event(kind.plan_key)
    made = event.asset_materialization if event is not None else None
    if event is None or made is None or event.run_id != context.run.run_id:
        return ""
    return str(made.metadata["plan_digest"].value)
