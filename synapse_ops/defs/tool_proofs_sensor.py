"""What outside tools record of the documents is shown on their pages, and makes the release that waited for it.

`prove-release` runs wherever the tools are: in CI, on another host. Nothing of the documents changes by it, so that
automation, which looks at data versions, would leave a refused release refused for ever.
"""

from typing import TYPE_CHECKING, Any

import dagster as dg

from synapse_ops.defs.manifest_checks import PROOFS, RELEASE_KEY, manifest_results
from synapse_ops.defs.manifest_events import stale_pages
from synapse_ops.defs.policies import TAG_TRIGGER
from synapse_ops.defs.resources import StackResource

if TYPE_CHECKING:
    from synapse_ops.operations.release_review import ReleaseReview
    from synapse_ops.operations.stack import Stack

INTERVAL_S = 30


def tool_proofs_sensor(render_manifests: Any) -> dg.SensorDefinition:
    """Return the sensor. render_manifests: the job that it asks for a release."""

    @dg.sensor(
        name="tool_proofs_sensor",
        job=render_manifests,
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Shows what prove-release recorded, and makes the release that was refused for want of it.",
    )
    def sensor(context: dg.SensorEvaluationContext, stack: StackResource) -> dg.SensorResult:
        return look_at_proofs(context, stack.open())

    return sensor


def look_at_proofs(context: dg.SensorEvaluationContext, stack: "Stack") -> dg.SensorResult:
    """Return one tick's evaluations of `tool_proofs`, its run and its cursor. An idle tick reads one small object.

    Raises Unreachable when the store does not answer.
    """
    from synapse_ops.operations.attestations import newest_recording
    from synapse_ops.operations.release_review import review_release

    recorded = newest_recording(stack.release_store(), stack.state_dir)
    if recorded == (context.cursor or ""):
        return dg.SensorResult(skip_reason="no tool's word was recorded since the last look")
    review = review_release(stack)
    if review.unread:
        return dg.SensorResult(skip_reason=review.unread)
    keys = [*(dg.AssetKey(name) for name in review.paths), RELEASE_KEY]
    requests = []
    if _waits_for_proofs(context.instance, review):
        name = f"{stack.loaded.digest[:12]}-{recorded}"
        requests = [dg.RunRequest(run_key=name, asset_selection=[RELEASE_KEY], tags={TAG_TRIGGER: "sensor"})]
    return dg.SensorResult(
        asset_events=[_evaluation(context.instance, key, review) for key in keys],
        run_requests=requests,
        cursor=recorded,
    )


def _evaluation(instance: dg.DagsterInstance, key: dg.AssetKey, review: "ReleaseReview") -> dg.AssetCheckEvaluation:
    from synapse_ops.systems.dagster_storage import newest_as_target

    [result] = manifest_results(key, review, [dg.AssetCheckKey(key, PROOFS)])
    return dg.AssetCheckEvaluation(
        asset_key=key,
        check_name=PROOFS,
        passed=result.passed,
        severity=result.severity,
        description=result.description,
        metadata=result.metadata,
        target_materialization_data=newest_as_target(instance, key),
    )


def _waits_for_proofs(instance: dg.DagsterInstance, review: "ReleaseReview") -> bool:
    """Tell whether the last run that was to make the release failed, and nothing stands in its way now.

    Other bytes on a page are in its way: automation renders that document, and asks for the release after it.
    """
    if review.obstacles or stale_pages(review.digests, instance):
        return False
    tried = [record.asset_entry.last_run_id for record in instance.get_asset_records([RELEASE_KEY])]
    runs = [instance.get_run_by_id(run_id) for run_id in tried if run_id]
    return any(run is not None and run.status is dg.DagsterRunStatus.FAILURE for run in runs)
