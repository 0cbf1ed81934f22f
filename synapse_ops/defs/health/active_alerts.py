"""`active_alerts`: what Alertmanager reports to the prober, as events that sensors can react to.

The record only: nothing is failed over here. One observation for each alert that began or ended, and one
materialization of the asset with everything that fires then.
"""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from synapse_ops.defs.event_metadata import table
from synapse_ops.defs.policies import GROUP_HEALTH, OWNERS, TAG_TRIGGER
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.spec.assets import spec_key

if TYPE_CHECKING:
    from synapse_ops.domain.health.alerts import ActiveAlert

ACTIVE_ALERTS_KEY = dg.AssetKey("active_alerts")
SENSOR_INTERVAL_S = 30


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
    return dg.Definitions(assets=[asset], sensors=[_sensor()])


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
        except Refused as refused:
            return dg.SkipReason(refused.message)
        if active is None:
            return dg.SkipReason("Alertmanager has reported nothing yet")
        events, cursor = report_alerts(context.cursor, active)
        fire = dg.SkipReason(f"{len(active)} alerts fire")
        return dg.SensorResult(skip_reason=fire, asset_events=events, cursor=cursor)

    return active_alerts_sensor


def report_alerts(
    cursor: str | None, active: "tuple[ActiveAlert, ...]"
) -> tuple[list[dg.AssetObservation | dg.AssetMaterialization], str]:
    """Return events of what changed since the cursor, and the cursor after them."""
    before: dict[str, str] | None = json.loads(cursor) if cursor else None
    now = {f"{alert.fingerprint} {alert.since.isoformat()}": alert.name for alert in active}
    if before == now:
        return [], json.dumps(now, sort_keys=True)
    known = before or {}
    words = {key: "firing" if key in now else "resolved" for key in sorted(now.keys() ^ known.keys())}
    changes = [
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
            "firing": len(active),
            "failover": sum(alert.action == "failover" for alert in active),
            "alerts": table(rows, columns),
        },
        tags={TAG_TRIGGER: "sensor"},
    )
    return [*changes, state], json.dumps(now, sort_keys=True)
