"""Watches the spec file: keeps `spec_loaded_equals_file` true to the minute, and records blocks that changed.

A spec counts as recorded once a run of `record_spec` for it has succeeded, not when that run was asked for.
"""

import json
from typing import TYPE_CHECKING, Any

import dagster as dg

from synapse_ops.defs.in_run import may_be_asked_again, newest_run
from synapse_ops.defs.policies import TAG_TRIGGER
from synapse_ops.defs.spec.assets import CHECK_NAME, FILE_KEY, evaluate_file

if TYPE_CHECKING:
    from synapse_ops.defs.place import Place
    from synapse_ops.spec import LoadedSpec

INTERVAL_S = 30
RETRY_S = 60.0
TAG_SPEC_DIGEST = "synapse/spec_digest"


def spec_sensor_definitions(place: "Place", loaded: "LoadedSpec", record_spec: Any) -> dg.Definitions:
    """Return the sensor. record_spec: the job that materialises the blocks of the spec in force."""
    digest = loaded.digest

    @dg.sensor(
        name="spec_file_sensor",
        job=record_spec,
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports whether the spec file is what is loaded, and records the blocks of a newly loaded spec.",
    )
    def spec_file_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        result = evaluate_file(place, digest)
        cursor = json.loads(context.cursor or "{}")
        verdict = f"{digest} {result.passed} {result.description}"
        events = []
        if cursor.get("verdict") != verdict:
            events = [
                dg.AssetCheckEvaluation(
                    asset_key=FILE_KEY,
                    check_name=CHECK_NAME,
                    passed=result.passed,
                    description=result.description,
                    metadata=result.metadata,
                )
            ]
        recorded, requests = cursor.get("recorded"), []
        if recorded != digest:
            newest = newest_run(context.instance, record_spec.name, {})
            is_ours = newest is not None and newest.dagster_run.tags.get(TAG_SPEC_DIGEST) == digest
            if is_ours and newest is not None and newest.dagster_run.is_success:
                recorded = digest
            elif not is_ours or may_be_asked_again(newest, RETRY_S):
                requests = [dg.RunRequest(tags={TAG_TRIGGER: "sensor", TAG_SPEC_DIGEST: digest})]
        saved = json.dumps({"verdict": verdict, "recorded": recorded}, sort_keys=True)
        return dg.SensorResult(asset_events=events, run_requests=requests, cursor=saved)

    return dg.Definitions(sensors=[spec_file_sensor])
