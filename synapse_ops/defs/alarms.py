"""Alarms that leave Dagster: failed runs, failed checks and failed ticks, posted to Alertmanager or a webhook.

Plain sensors with their own cursors: each looks at what happened since its cursor, oldest first, and moves it only
after the post was taken, so that an outlet that is down loses nothing. What says the same thing again is the same alarm
(Alertmanager merges equal labels); a success, a pass or a good tick ends it. A check that stays red is sent again each
hour, because what is sent ends by itself after six. Without an address the sensors are off, and the check
`alarms_reach_somebody` is red.

A tick that could not reach the code server is no alarm of ours: we restart it for each new spec, and while it is down
no sensor of it could tell. The supervisor above it does (services/dagster/down_alarm.py).
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from synapse_ops.defs.runbook_links import RUNBOOK
from synapse_ops.domain.runbooks import CHECK_PAGES, RUN_PAGE, TICK_PAGE, UI_PATH, alarm_url

if TYPE_CHECKING:
    from synapse_ops.systems.alert_outlet import Alarm

PER_TICK = 50
INTERVAL_S = 30
STANDING_S = 3600.0  # a check that stays red is sent again
LONGEST_TICK_S = 300.0  # Dagster gives a sensor's tick 60 s by default, and a slow daemon some more

_UNREACHABLE = ("gRPC Error code: UNAVAILABLE", "gRPC Error code: CANCELLED")  # before a call, and in the middle of one

# The alarms that a look returns name the runbook's page alone; the sensor makes it an address.
Look = Callable[[dg.DagsterInstance, str], tuple[Sequence["Alarm"], str]]


def alarm_definitions(stack_name: str, runbook_base: str | None = None) -> dg.Definitions:
    """Return the three sensors, off where there is no address.

    stack_name: a label on every alarm. runbook_base: `alerting.runbook_url`.
    """
    looks: dict[str, tuple[Look, str]] = {
        "failed_run_alarms": (_failed_runs, "Sends an alarm for each job whose run failed, and ends it at a success."),
        "failed_check_alarms": (
            _failed_checks,
            "Sends an alarm for each check that failed, and ends it when it passes.",
        ),
        "failed_tick_alarms": (_failed_ticks, "Sends an alarm for each schedule or sensor whose tick failed."),
    }

    def told(alarm: "Alarm") -> "Alarm":
        url = alarm_url(alarm.runbook_url, runbook_base)
        return replace(alarm, labels={**alarm.labels, "stack": stack_name, "source": "synapse-ops"}, runbook_url=url)

    return dg.Definitions(sensors=[_sensor(name, look, text, told) for name, (look, text) in looks.items()])


def has_address() -> bool:
    """Say whether an address is set, a wrong one too: its sensors run and their ticks say what is wrong with it."""
    from synapse_ops.systems.alert_outlet import ALERTMANAGER_VARIABLE, WEBHOOK_VARIABLE

    return any(os.environ.get(name) for name in (ALERTMANAGER_VARIABLE, WEBHOOK_VARIABLE))


def _sensor(name: str, look: Look, description: str, told: Callable[["Alarm"], "Alarm"]) -> dg.SensorDefinition:
    @dg.sensor(
        name=name,
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING if has_address() else dg.DefaultSensorStatus.STOPPED,
        description=f"{description} Address: SYNAPSE_ALERTMANAGER_URL or SYNAPSE_ALERT_WEBHOOK; off without one.",
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
            outlet.post([told(alarm) for alarm in alarms])
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
                runbook_url=RUN_PAGE,
            )
        )
        cursor = repr(record.update_timestamp.replace(tzinfo=UTC).timestamp())
    return alarms, cursor


def _failed_checks(instance: dg.DagsterInstance, cursor: str) -> tuple[Sequence["Alarm"], str]:
    """Return alarms for check evaluations since the cursor, and each hour for those that stay red.

    cursor: {"id": storage id, "red": check by its labels' words: [storage id, when it was sent]}; empty: from now on.
    """
    from synapse_ops.systems.dagster_storage import check_evaluations_after, newest_storage_id

    former: Any = json.loads(cursor) if cursor else {"id": newest_storage_id(instance)}
    if not isinstance(former, dict):
        former = {"id": former}  # as this sensor kept it before
    now_s, newest, red = time.time(), former["id"], dict(former.get("red", {}))
    alarms = []
    for storage_id, timestamp, evaluation in check_evaluations_after(instance, newest, limit=PER_TICK):
        name = f"{evaluation.asset_key.to_user_string()}:{evaluation.check_name}"
        alarms.append(_check_alarm(evaluation, timestamp))
        red.pop(name, None)
        if not evaluation.passed:
            red[name] = [storage_id, now_s]
        newest = storage_id
    for name, (storage_id, sent_s) in red.items():
        if now_s - sent_s >= STANDING_S:
            alarms += [
                _check_alarm(one, now_s) for _, _, one in check_evaluations_after(instance, storage_id - 1, limit=1)
            ]
            red[name] = [storage_id, now_s]
    return alarms, json.dumps({"id": newest, "red": red})


def _check_alarm(evaluation: dg.AssetCheckEvaluation, at_s: float) -> "Alarm":
    from synapse_ops.systems.alert_outlet import Alarm

    asset = evaluation.asset_key.to_user_string()
    return Alarm(
        labels={
            "alertname": "DagsterCheckFailed",
            "severity": "critical" if evaluation.severity is dg.AssetCheckSeverity.ERROR else "warning",
            "asset": asset,
            "check": evaluation.check_name,
        },
        summary=f"check {evaluation.check_name} of {asset} {'passed' if evaluation.passed else 'failed'}",
        description=evaluation.description or "",
        at=datetime.fromtimestamp(at_s, UTC),
        is_resolved=evaluation.passed,
        runbook_url=_page_of(evaluation),
    )


def _page_of(evaluation: dg.AssetCheckEvaluation) -> str:
    """Return the page that the evaluation links to, else the one of its check."""
    link = evaluation.metadata.get(RUNBOOK)
    if isinstance(link, dg.UrlMetadataValue) and link.url is not None:
        return link.url.removeprefix(UI_PATH)
    return CHECK_PAGES.get(evaluation.check_name, RUN_PAGE)


def _failed_ticks(instance: dg.DagsterInstance, cursor: str) -> tuple[Sequence["Alarm"], str]:
    """Return alarms for ticks that failed, each once, and the end of those whose schedule or sensor ticked well since.

    cursor: {"at": seconds since the epoch, "sent": ticks, "firing": {name: since when}}; empty: from now on.
    A failed tick raises no event in Dagster: nothing else would report a broken sensor. A tick is kept under
    the time it began and fails when it ends, so the look goes back by the longest tick: a hung one would be missed.
    """
    from synapse_ops.systems.dagster_storage import failed_ticks_after, good_ticks

    now_s = time.time()
    former: Any = json.loads(cursor) if cursor else {"at": now_s}
    if not isinstance(former, dict):
        former = {"at": former, "sent": []}  # as this sensor kept it before
    failed = {
        f"{name}@{at_s:f}": (name, at_s, message)
        for name, at_s, message in failed_ticks_after(instance, former["at"] - LONGEST_TICK_S, limit=PER_TICK)
        if not any(words in message for words in _UNREACHABLE)
    }
    sent, firing = former.get("sent", failed), dict(former.get("firing", {}))
    alarms = []
    for key, (name, at_s, message) in failed.items():
        if key not in sent:
            alarms.append(_tick_alarm(name, at_s, f"a tick of {name} failed", message[:500]))
            firing[name] = at_s
    for name, at_s in good_ticks(instance, firing).items():
        alarms.append(_tick_alarm(name, at_s, f"{name} ticks again", "", is_resolved=True))
        del firing[name]
    return alarms, json.dumps({"at": now_s, "sent": sorted(failed), "firing": firing})


def _tick_alarm(name: str, at_s: float, summary: str, description: str, *, is_resolved: bool = False) -> "Alarm":
    from synapse_ops.systems.alert_outlet import Alarm

    return Alarm(
        labels={"alertname": "DagsterTickFailed", "severity": "critical", "instigator": name},
        summary=summary,
        description=description,
        at=datetime.fromtimestamp(at_s, UTC),
        is_resolved=is_resolved,
        runbook_url=TICK_PAGE,
    )
