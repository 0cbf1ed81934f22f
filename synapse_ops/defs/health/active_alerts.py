"""`active_alerts`: what Alertmanager reports to the prober, as events that sensors can react to.

The record only: nothing is failed over here. One observation for each alert that began or ended, and one
materialization of the asset with everything that fires then. "None fires" and "nobody has told us" are two things.
The check `alarms_reach_somebody` says whether what Dagster itself finds wrong leaves this host.
"""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from synapse_ops.defs.event_metadata import table
from synapse_ops.defs.policies import GROUP_HEALTH, OWNERS, TAG_TRIGGER
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.runbook_links import runbook_of_check
from synapse_ops.defs.spec.assets import spec_key

if TYPE_CHECKING:
    from synapse_ops.domain.health.alerts import ActiveAlert

ACTIVE_ALERTS_KEY = dg.AssetKey("active_alerts")
OUTLET_CHECK = "alarms_reach_somebody"
NEVER_TOLD = "No Alertmanager has ever called the prober, so alerts may fire without being listed here."
SENSOR_INTERVAL_S = 60
_NEVER = "never"


def active_alert_definitions() -> dg.Definitions:
    """Return the external asset and the sensor that reports it."""
    asset = dg.AssetSpec(
        ACTIVE_ALERTS_KEY,
        deps=[spec_key("alerting")],
        group_name=GROUP_HEALTH,
        owners=OWNERS,
        kinds={"prometheus"},
        description="The alerts that fire now, as Alertmanager reported them to the prober at /alerts. "
        "An event for each change; `failover` counts those whose action is failover.",
    )
    return dg.Definitions(assets=[asset], asset_checks=[_outlet_check()], sensors=[_sensor()])


def _outlet_check() -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=ACTIVE_ALERTS_KEY,
        name=OUTLET_CHECK,
        metadata=runbook_of_check(OUTLET_CHECK),
        description="Red while failed runs, checks and ticks of Dagster are not sent anywhere: no address is set.",
    )
    def alarms_reach_somebody() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(**outlet_verdict())

    return alarms_reach_somebody


def outlet_verdict() -> dict[str, Any]:
    """Return whether there is an address for alarms, as fields of an evaluation or a result."""
    from synapse_ops.systems.alert_outlet import ALERTMANAGER_VARIABLE, WEBHOOK_VARIABLE, find_outlet

    outlet = find_outlet()
    if outlet is None:
        said = f"No alarm is sent when a run or a check fails: set {ALERTMANAGER_VARIABLE} or {WEBHOOK_VARIABLE} "
        said += "where Dagster is started, and start it again."
    else:
        said = f"Failed runs, checks and ticks are sent to the {outlet.kind}."
    return {
        "passed": outlet is not None,
        "severity": dg.AssetCheckSeverity.ERROR,
        "description": said,
        "metadata": runbook_of_check(OUTLET_CHECK),
    }


def _sensor() -> dg.SensorDefinition:
    @dg.sensor(
        name="active_alerts_sensor",
        minimum_interval_seconds=SENSOR_INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports alerts that began or ended since the last tick, from the prober's history.",
    )
    def active_alerts_sensor(
        context: dg.SensorEvaluationContext, stack: StackResource
    ) -> dg.SensorResult | dg.SkipReason:
        from synapse_ops.errors import Refused
        from synapse_ops.operations.health.active_alerts import read_active_alerts

        try:
            active = read_active_alerts(stack.open().state_dir, datetime.now(UTC))
        except Refused:
            active = None
        seen = json.loads(context.cursor or "{}")
        events, alerts = report_alerts(seen.get("alerts"), active)
        verdict = outlet_verdict()
        if seen.get("outlet") != verdict["description"] or events:
            events.append(dg.AssetCheckEvaluation(asset_key=ACTIVE_ALERTS_KEY, check_name=OUTLET_CHECK, **verdict))
        fire = dg.SkipReason(NEVER_TOLD if active is None else f"{len(active)} alerts fire")
        cursor = json.dumps({"alerts": alerts, "outlet": verdict["description"]})
        return dg.SensorResult(skip_reason=fire, asset_events=events, cursor=cursor)

    return active_alerts_sensor


def report_alerts(
    cursor: str | None, active: "tuple[ActiveAlert, ...] | None"
) -> tuple[list[dg.AssetObservation | dg.AssetMaterialization | dg.AssetCheckEvaluation], str]:
    """Return events of what changed since the cursor, and the cursor after them. active: None: nobody ever told."""
    if active is None:
        never = dg.AssetMaterialization(ACTIVE_ALERTS_KEY, description=NEVER_TOLD, metadata={"summary": NEVER_TOLD})
        return [] if cursor == _NEVER else [never], _NEVER
    before: dict[str, str] | None = json.loads(cursor) if cursor and cursor != _NEVER else None
    now = {f"{alert.fingerprint} {alert.since.isoformat()}": alert.name for alert in active}
    if before == now:
        return [], json.dumps(now, sort_keys=True)
    known = before or {}
    words = {key: "firing" if key in now else "resolved" for key in sorted(now.keys() ^ known.keys())}
    changes: list[dg.AssetObservation | dg.AssetMaterialization | dg.AssetCheckEvaluation] = [
        dg.AssetObservation(
            ACTIVE_ALERTS_KEY,
            description=f"{now.get(key) or known[key]}: {word}",
            metadata={"alert": now.get(key) or known[key], "state": word},
        )
        for key, word in words.items()
    ]
    columns = {"alert": "string", "severity": "string", "action": "string", "since": "string", "summary": "string"}
    rows = (
        {
            "alert": alert.name,
            "severity": alert.severity,
            "action": alert.action,
            "since": alert.since.isoformat(timespec="seconds"),
            "summary": alert.summary,
        }
        for alert in active
    )
    state = dg.AssetMaterialization(
        ACTIVE_ALERTS_KEY,
        description=", ".join(alert.name for alert in active) or "no alert fires",
        metadata={
            "summary": "Firing: " + ", ".join(alert.name for alert in active) if active else "No alert fires.",
            "firing": len(active),
            "failover": sum(alert.action == "failover" for alert in active),
            "alerts": table(rows, columns),
        },
        tags={TAG_TRIGGER: "sensor"},
    )
    return [*changes, state], json.dumps(now, sort_keys=True)
