"""The collections of the vector store: snapshot -> proof of restore -> expiry plan -> retention set.

Partitioned by collection, which a sensor discovers; one that vanishes stays a partition and turns a check red, until
somebody says that it may be forgotten. The rest is the databases' own code (subject_kind.py).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from synapse_ops.defs.database import ProofConfig
from synapse_ops.defs.database_operations import proof_events, prove, refuse_unless_proven
from synapse_ops.defs.expiry import expiry_assets
from synapse_ops.defs.policies import (
    GROUP_VECTORS,
    OWNERS,
    POOL_QDRANT_IO,
    code_version,
    freshness_of,
)
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.restore_check import CHECK_NAME, evaluation_of, judge_now
from synapse_ops.defs.spec_assets import spec_key
from synapse_ops.defs.subject_kind import COLLECTIONS, COLLECTIONS_PARTITION
from synapse_ops.defs.vector_operations import PRESENT_CHECK, discover, presence_of, snapshot
from synapse_ops.errors import Unreachable

if TYPE_CHECKING:
    from synapse_ops.spec import Spec

SNAPSHOT_KEY, PROOF_KEY = COLLECTIONS.backup_key, COLLECTIONS.proof_key
SENSOR_INTERVAL_S = 60

collection_partitions = dg.DynamicPartitionsDefinition(name=COLLECTIONS_PARTITION)


def vector_definitions(spec: "Spec") -> dg.Definitions:
    """Return the assets, the checks and the sensor of the collections."""
    return dg.Definitions(
        assets=[_snapshot(spec), _proof(spec), *expiry_assets(COLLECTIONS, spec, GROUP_VECTORS)],
        asset_checks=[_restore_proven(), _collections_present()],
        sensors=[_collection_sensor()],
    )


def _snapshot(spec: "Spec") -> dg.AssetsDefinition:
    @dg.asset(
        key=SNAPSHOT_KEY,
        partitions_def=collection_partitions,
        deps=[spec_key(block) for block in ("qdrant", "backup", "encryption", "object_store")],
        pool=POOL_QDRANT_IO,
        group_name=GROUP_VECTORS,
        owners=OWNERS,
        kinds={"qdrant", "s3"},
        code_version=code_version("synapse_ops.operations.vector_snapshot", "synapse_ops.operations.vector_shards"),
        freshness_policy=freshness_of(spec.backup.vectors.schedule.longest_gap(spec.time_zone)),
        description="Every shard of one collection in the repository, each from one active replica. `window_s` is the "
        "time in which they were cut, `window_points` how many of the compared points moved meanwhile. It counts for "
        "retention only once it is proven: see the check restore_proven.",
    )
    def vector_snapshot(context: dg.AssetExecutionContext, stack: StackResource) -> dg.MaterializeResult[None]:
        backup_id, metadata = snapshot(context, stack, context.partition_key)
        return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(backup_id))

    return vector_snapshot


def _proof(spec: "Spec") -> dg.AssetsDefinition:
    @dg.asset(
        key=PROOF_KEY,
        partitions_def=collection_partitions,
        deps=[SNAPSHOT_KEY, spec_key("proof"), spec_key("encryption")],
        pool=POOL_QDRANT_IO,
        group_name=GROUP_VECTORS,
        owners=OWNERS,
        kinds={"qdrant", "s3"},
        output_required=False,
        code_version=code_version(
            "synapse_ops.operations.vector_restore_proof", "synapse_ops.domain.vector_fingerprint"
        ),
        freshness_policy=freshness_of(spec.proof.schedule.longest_gap(spec.time_zone)),
        description="A backup opened in an engine of its own, every point read and compared. `restore_s` is the time "
        "from the first byte read to a copy that answers, `recall_at_10` the part of the searches' best ten that "
        "was found. Any doubt fails the run and the check restore_proven.",
    )
    def vector_restore_proof(
        context: dg.AssetExecutionContext, config: ProofConfig, stack: StackResource
    ) -> Iterator[dg.MaterializeResult[None]]:
        report = prove(context, stack, kind=COLLECTIONS, subject=context.partition_key, backup_id=config.backup_id)
        if report is None:
            return
        if not report.is_proven:
            observed = dg.AssetObservation(PROOF_KEY, partition=context.partition_key, metadata=proof_events(report))
            context.log_event(observed)
        refuse_unless_proven(report)
        yield dg.MaterializeResult(metadata=proof_events(report), data_version=dg.DataVersion(report.record.digest()))

    return vector_restore_proof


def _restore_proven() -> dg.AssetChecksDefinition:
    @dg.multi_asset_check(
        name="vector_restore_proven",
        specs=[
            dg.AssetCheckSpec(
                CHECK_NAME,
                asset=SNAPSHOT_KEY,
                description="Red while the newest proof of any collection is anything but a pass, or is older than "
                "retention.proof_max_age; a warning while a later one could not be attempted. Judges all collections "
                "from the repository and lists the failing ones. Not evaluated: the newest backup has had no proof.",
            )
        ],
        can_subset=True,
    )
    def vector_restore_proven(
        context: dg.AssetCheckExecutionContext, stack: StackResource
    ) -> Iterator[dg.AssetCheckResult]:
        judgement = judge_now(COLLECTIONS, stack.open(), context.instance)
        if not judgement.is_due:
            context.log.info(f"not proven yet: {', '.join(judgement.waiting) or 'there is nothing to prove'}")
            return
        found = evaluation_of(judgement, kind=COLLECTIONS, instance=context.instance, run_id=context.run.run_id)
        yield _result_of(found)

    return vector_restore_proven


def _collections_present() -> dg.AssetChecksDefinition:
    @dg.multi_asset_check(
        name=PRESENT_CHECK,
        specs=[
            dg.AssetCheckSpec(
                PRESENT_CHECK,
                asset=SNAPSHOT_KEY,
                description="Red while a collection that was discovered once is not on the server any more: its "
                "backups end without anybody having said so. The job forget_collection says so.",
            )
        ],
        can_subset=True,
    )
    def collections_present(
        context: dg.AssetCheckExecutionContext, stack: StackResource
    ) -> Iterator[dg.AssetCheckResult]:
        yield _result_of(presence_of(discover(stack, context.instance)))

    return collections_present


def _result_of(found: dg.AssetCheckEvaluation) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=found.asset_key,
        check_name=found.check_name,
        passed=found.passed,
        severity=found.severity,
        description=found.description,
        metadata=found.metadata,
    )


def _collection_sensor() -> dg.SensorDefinition:
    @dg.sensor(
        name="collection_sensor",
        minimum_interval_seconds=SENSOR_INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Makes a partition of each collection on the server, and turns collections_present red when one "
        "of them vanishes. A server that does not answer fails the tick, once there is something to protect.",
    )
    def collection_sensor(context: dg.SensorEvaluationContext, stack: StackResource) -> dg.SensorResult | dg.SkipReason:
        return look_at_collections(context, stack)

    return collection_sensor


def look_at_collections(context: dg.SensorEvaluationContext, stack: StackResource) -> dg.SensorResult | dg.SkipReason:
    """Return one tick's new partitions, and the check when its verdict changed or a snapshot is newer than it.

    Dagster shows a check that is older than the newest materialization as "not evaluated". Safe to repeat.
    """
    try:
        found = discover(stack, context.instance)
    except Unreachable as error:
        if context.instance.get_dynamic_partitions(COLLECTIONS_PARTITION):
            raise
        return dg.SkipReason(f"nothing was ever found to protect, and {error.message}")
    requests = [collection_partitions.build_add_request(list(found.new))] if found.new else []
    newest = context.instance.get_latest_materialization_event(SNAPSHOT_KEY)
    cursor = f"{newest.timestamp if newest is not None else 0:f} {' '.join(found.vanished)}"
    is_news = (context.cursor or "") != cursor and bool(context.cursor or found.known or found.new)
    events = [presence_of(found)] if is_news else []
    return dg.SensorResult(dynamic_partitions_requests=requests, asset_events=events, cursor=cursor)
