"""Watches the spec file: keeps `spec_loaded_equals_file` true to the minute, and records blocks that changed."""

import json
from typing import TYPE_CHECKING, Any

import dagster as dg

from synapse_ops.defs.policies import TAG_TRIGGER
from synapse_ops.defs.spec.assets import CHECK_NAME, FILE_KEY, evaluate_file

if TYPE_CHECKING:
    from synapse_ops.defs.place import Place
    from synapse_ops.spec import LoadedSpec

INTERVAL_S = 10


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
        requests = []
        if cursor.get("recorded") != digest:
            requests = [dg.RunRequest(tags={TAG_TRIGGER: "sensor"})]
        saved = json.dumps({"verdict": verdict, "recorded": digest}, sort_keys=True)
        return dg.SensorResult(asset_events=events, run_requests=requests, cursor=saved)

    return dg.Definitions(sensors=[spec_file_sensor])
