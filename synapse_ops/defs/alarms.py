"""Alarms that leave Dagster: failed runs, failed checks and failed ticks, posted to Alertmanager or a webhook.

Plain sensors with their own cursors: each looks at what happened since its cursor, oldest first, and moves it only
after the post was taken, so that an outlet that is down loses nothing. What says the same thing again is the same alarm
(Alertmanager merges equal labels); a success or a pass ends it.
"""

import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

if TYPE_CHECKING:
    from synapse_ops.systems.alert_outlet import Alarm

PER_TICK = 50
INTERVAL_S = 30
LONGEST_TICK_S = 300.0  # Dagster gives a sensor's tick 60 s by default, and a slow daemon some more

Look = Callable[[dg.DagsterInstance, str], tuple[Sequence["Alarm"], str]]


def alarm_definitions(stack_name: str) -> dg.Definitions:
    """Return the three sensors. stack_name: a label on every alarm."""
    looks: dict[str, tuple[Look, str]] = {
        "failed_run_alarms": (_failed_runs, "Sends an alarm for each job whose run failed, and ends it at a success."),
        "failed_check_alarms": (
            _failed_checks,
            "Sends an alarm for each check that failed, and ends it when it passes.",
        ),
        "failed_tick_alarms": (_failed_ticks, "Sends an alarm for each schedule or sensor whose tick failed."),
    }
    return dg.Definitions(sensors=[_sensor(name, look, text, stack_name) for name, (look, text) in looks.items()])


def _sensor(name: str, look: Look, description: str, stack_name: str) -> dg.SensorDefinition:
    @dg.sensor(
        name=name,
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"{description} Address: SYNAPSE_ALERTMANAGER_URL or SYNAPSE_ALERT_WEBHOOK.",
    )
    def alarm_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from synapse_ops.defs.redacted_errors import redact_recorded_errors
        from synapse_ops.systems.alert_outlet import find_outlet

        redact_recorded_errors()  # the address may hold a token
        outlet = find_outlet()
        if outlet is None:
            return dg.SkipReason("no address for alarms: set SYNAPSE_ALERTMANAGER_URL or SYNAPSE_ALERT_WEBHOOK")
        alarms, cursor = look(context.instance, context.cursor or "")
        if alarms:
            outlet.post([_with_stack(alarm, stack_name) for alarm in alarms])
        sent = dg.SkipReason(f"{len(alarms)} alarms sent to the {outlet.kind}")
        return dg.SensorResult(skip_reason=sent, cursor=cursor)

    return alarm_sensor


def _failed_runs(instance: dg.DagsterInstance, cursor: str) -> tuple[Sequence["Alarm"], str]:
    """Return alarms for runs that ended since the cursor (seconds since the epoch; empty: from now on)."""
    from synapse_ops.systems.alert_outlet import Alarm

    if not cursor:
        return [], repr(time.time())
    ended = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS]
    since = dg.RunsFilter(statuses=ended, updated_after=datetime.fromtimestamp(float(cursor), UTC))
    records = instance.get_run_records(since, limit=PER_TICK, order_by="update_timestamp", ascending=True)
    alarms = []
    for record in records:
        run = record.dagster_run
        failed = run.status is dg.DagsterRunStatus.FAILURE
        partition = run.tags.get("dagster/partition", "")
        labels = {"alertname": "DagsterRunFailed", "severity": "critical", "job": run.job_name, "partition": partition}
        alarms.append(
            Alarm(
                labels={name: value for name, value in labels.items() if value},
                summary=f"job {run.job_name} {'failed' if failed else 'succeeded'}",
                description=f"run {run.run_id}",
                at=record.update_timestamp.replace(tzinfo=UTC),
                is_resolved=not failed,
            )
        )
        cursor = repr(record.update_timestamp.replace(tzinfo=UTC).timestamp())
    return alarms, cursor


def _failed_checks(instance: dg.DagsterInstance, cursor: str) -> tuple[Sequence["Alarm"], str]:
    """Return alarms for check evaluations since the cursor (a storage id; empty: from now on)."""
    from synapse_ops.systems.alert_outlet import Alarm
    from synapse_ops.systems.dagster_storage import check_evaluations_after, newest_storage_id

    if not cursor:
        return [], str(newest_storage_id(instance))
    alarms = []
    for storage_id, timestamp, evaluation in check_evaluations_after(instance, int(cursor), limit=PER_TICK):
        asset = evaluation.asset_key.to_user_string()
        alarms.append(
            Alarm(
                labels={
                    "alertname": "DagsterCheckFailed",
                    "severity": "critical" if evaluation.severity is dg.AssetCheckSeverity.ERROR else "warning",
                    "asset": asset,
                    "check": evaluation.check_name,
                },
                summary=f"check {evaluation.check_name} of {asset} {'passed' if evaluation.passed else 'failed'}",
                description=evaluation.description or "",
                at=datetime.fromtimestamp(timestamp, UTC),
                is_resolved=evaluation.passed,
            )
        )
        cursor = str(storage_id)
    return alarms, cursor


def _failed_ticks(instance: dg.DagsterInstance, cursor: str) -> tuple[Sequence["Alarm"], str]:
    """Return alarms for ticks that failed, each once. cursor: {"at": seconds since the epoch, "sent": names}; empty:
    from now on.

    A failed tick raises no event in Dagster: nothing else would report a broken sensor. A tick is kept under
    the time it began and fails when it ends, so the look goes back by the longest tick: a hung one would be missed.
    """
    from synapse_ops.systems.alert_outlet import Alarm
    from synapse_ops.systems.dagster_storage import failed_ticks_after

    now_s = time.time()
    former: Any = json.loads(cursor) if cursor else {"at": now_s}
    if not isinstance(former, dict):
        former = {"at": former, "sent": []}  # as this sensor kept it before
    failed = {
        f"{name}@{at_s:f}": (name, at_s, message)
        for name, at_s, message in failed_ticks_after(instance, former["at"] - LONGEST_TICK_S, limit=PER_TICK)
    }
    sent = former.get("sent", failed)
    alarms = [
        Alarm(
            labels={"alertname": "DagsterTickFailed", "severity": "critical", "instigator": name},
            summary=f"a tick of {name} failed",
            description=message[:500],
            at=datetime.fromtimestamp(at_s, UTC),
        )
        for key, (name, at_s, message) in failed.items()
        if key not in sent
    ]
    return alarms, json.dumps({"at": now_s, "sent": sorted(failed)})


def _with_stack(alarm: "Alarm", stack_name: str) -> "Alarm":
    from dataclasses import replace

    return replace(alarm, labels={**alarm.labels, "stack": stack_name, "source": "synapse-ops"})
