"""The protected databases: dump -> proof of restore -> expiry plan -> retention set.

Partitioned by what is backed up, always; never by time (a backfill of yesterday's dump is a lie) and never by backup id
(each new one would make every old proof stale). A chosen backup is a field of the config.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from synapse_ops.defs.database_operations import (
    PROOF_KEY,
    dump,
    proof_events,
    prove,
    refuse_unless_proven,
)
from synapse_ops.defs.expiry import expiry_assets
from synapse_ops.defs.policies import (
    GROUP_DATABASE,
    OWNERS,
    POOL_POSTGRES_IO,
    code_version,
    freshness_of,
)
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.restore_check import CHECK_NAME, DUMP_KEY, evaluation_of, judge_now
from synapse_ops.defs.spec_assets import spec_key
from synapse_ops.defs.subject_kind import DATABASES

if TYPE_CHECKING:
    from synapse_ops.spec import Spec


class ProofConfig(dg.Config):
    """Which backup a proof restores."""

    backup_id: str = Field(
        "",
        description="Id of the backup to restore, as `synapse-ops backup list` prints it. "
        "Empty: the newest backup of the database that has not been proven.",
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

    assets = [database_dump, database_restore_proof, *expiry_assets(DATABASES, spec, GROUP_DATABASE)]
    return dg.Definitions(assets=assets, asset_checks=[restore_proven])
