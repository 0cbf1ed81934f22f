"""`failover_record`: every incident of the ledger, a partition each. The prober writes the ledger; Dagster only looks.

The sensor reports without a run: an incident at each of its steps, and whether failover is armed at each change.
"""

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from synapse_ops.defs.event_metadata import Metadata, table
from synapse_ops.defs.policies import GROUP_DATABASE, OWNERS, TAG_TRIGGER
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.runbook_links import runbook_of_check

if TYPE_CHECKING:
    from synapse_ops.domain.failover.incident import Incident
    from synapse_ops.operations.failover.status import FailoverStatus

RECORD_KEY = dg.AssetKey("failover_record")
INCIDENTS = "incident"
CHECK_NAME = "failover_is_armed"
SENSOR_INTERVAL_S = 5  # an incident is on the page within 10 s
REFRESH_S = 300
GRACE_S = 60.0  # a start, a failover and a rejoin pass through states that are not armed: no alarm for those


def failover_definitions() -> dg.Definitions:
    """Return the external asset, its check, and the sensor that reports both."""
    page = dg.AssetSpec(
        RECORD_KEY,
        group_name=GROUP_DATABASE,
        owners=OWNERS,
        kinds={"postgres"},
        partitions_def=dg.DynamicPartitionsDefinition(name=INCIDENTS),
        description="One incident of the primary from the first failed probe to its end: evidence, both halves of the "
        "fence's proof, seconds of each step, commits that were lost, and how the old primary came back.",
    )
    return dg.Definitions(assets=[page], asset_checks=[_check()], sensors=[_sensor()])


def _check() -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=RECORD_KEY,
        name=CHECK_NAME,
        description="Red while a dead primary would not be failed over, or a failover waits for a person. Only a "
        "warning while nothing but `failover.automatic: false` keeps it from being armed.",
        metadata=runbook_of_check(CHECK_NAME),
    )
    def failover_is_armed(stack: StackResource) -> dg.AssetCheckResult:
        from synapse_ops.operations.failover.status import read_status

        status = read_status(stack.open().state_dir, datetime.now(UTC))
        return dg.AssetCheckResult(
            passed=status.is_armed,
            severity=_severity(status),
            description=status.sentence,
            metadata=runbook_of_check(CHECK_NAME),
        )

    return failover_is_armed


def _sensor() -> dg.SensorDefinition:
    @dg.sensor(
        name="failover_record_sensor",
        minimum_interval_seconds=SENSOR_INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports each step of a failover from the prober's ledger, and whether failover is armed.",
    )
    def failover_record_sensor(
        context: dg.SensorEvaluationContext, stack: StackResource
    ) -> dg.SensorResult | dg.SkipReason:
        from synapse_ops.operations.failover.status import read_status

        return look(context.cursor, read_status(stack.open().state_dir, datetime.now(UTC)), time.time())

    return failover_record_sensor


def look(cursor: str | None, status: "FailoverStatus", now_s: float) -> dg.SensorResult | dg.SkipReason:
    """Return one tick. Safe to repeat: the cursor says what of each incident was reported, and what the check said.

    A failover that waits for a person is red at once; what is not armed, after GRACE_S.
    """
    before: dict[str, Any] = json.loads(cursor or "{}")
    told: dict[str, str] = before.get("incidents", {})
    events: list[dg.AssetMaterialization | dg.AssetCheckEvaluation] = []
    now_told = {one.id: _version(one, back) for one, back in status.incidents}
    for one, back in status.incidents:
        if told.get(one.id) != now_told[one.id]:
            events.append(
                dg.AssetMaterialization(
                    RECORD_KEY,
                    partition=one.id,
                    description=sentence_of(one, back),
                    metadata=record_metadata(one, back),
                    tags={TAG_TRIGGER: "sensor"},
                )
            )
    unarmed_since = None if status.is_armed else before.get("unarmed_since") or now_s
    waits = unarmed_since is not None and not status.refused and now_s - unarmed_since < GRACE_S
    said = before.get("said") if waits else [status.is_armed, status.sentence]
    is_due = not waits and now_s - before.get("at", 0) >= REFRESH_S
    tells = said != before.get("said") or is_due
    if tells:
        events.append(
            dg.AssetCheckEvaluation(
                asset_key=RECORD_KEY,
                check_name=CHECK_NAME,
                passed=status.is_armed,
                severity=_severity(status),
                description=status.sentence,
                metadata=runbook_of_check(CHECK_NAME),
            )
        )
    at = now_s if tells else before.get("at", 0)
    new = [name for name in now_told if name not in told]
    after = json.dumps({"incidents": now_told, "said": said, "at": at, "unarmed_since": unarmed_since})
    if not events and unarmed_since == before.get("unarmed_since"):
        return dg.SkipReason(status.sentence)
    return dg.SensorResult(
        asset_events=events,
        dynamic_partitions_requests=[dg.AddDynamicPartitionsRequest(INCIDENTS, new)] if new else [],
        cursor=after,
    )


def _severity(status: "FailoverStatus") -> dg.AssetCheckSeverity:
    """What the operator chose warns, so that what is wrong besides is still an alarm."""
    return dg.AssetCheckSeverity.WARN if status.is_by_hand else dg.AssetCheckSeverity.ERROR


def _version(incident: "Incident", back: dict[str, Any] | None) -> str:
    return f"{len(incident.entries)} {incident.state} {(back or {}).get('at', '')}"


def sentence_of(incident: "Incident", back: dict[str, Any] | None) -> str:
    """Return what a tired person needs to know of an incident."""
    facts, phases = incident.facts, incident.phases_s()
    returned = "it is not back yet"
    if back is not None:
        returned = f"it is back ({back['how']})" if "seconds" in back else f"it did NOT come back: {back['fault']}"
    if incident.is_planned:
        handed = f"{facts['old']} hands over to {facts['new']}"
        if "done" in phases:
            seconds = f"writes went on {phases['done']:.1f} s after its stop"
            return (
                f"Switchover: {handed}; {seconds}. Lost: {facts['lost_commits']} commits. {facts['old']}: {returned}."
            )
        if incident.is_open:
            return f"Switchover: {handed}: {incident.state}."
        return f"Switchover: {handed}: NOT done ({incident.state}): {facts.get('reason', '')}"
    if "done" in phases:
        return (
            f"{facts['old']} died; {facts['new']} took writes {phases['done']:.1f} s later. "
            f"Lost: {facts['lost_commits']} commits. {facts['old']}: {returned}."
        )
    if incident.is_open:
        return f"{facts['old']} died and is being failed over: {incident.state}."
    return f"{facts['old']} died and was NOT failed over: {facts.get('reason', incident.state)}"


def record_metadata(incident: "Incident", back: dict[str, Any] | None) -> Metadata:
    """Return the steps as a table and a number each, so that Dagster plots them, and the evidence."""
    facts, phases = incident.facts, incident.phases_s()
    rows = (
        {"step": str(entry.state), "because": str(entry.event or ""), "seconds": phases[str(entry.state)]}
        for entry in incident.entries
    )
    numbers = {f"{state}_s": seconds for state, seconds in phases.items()}
    counts: dict[str, Any] = {
        name: facts[name] for name in ("lost_commits", "lost_bytes", "known_lag_bytes") if name in facts
    }
    words = {
        name: str(facts[name])
        for name in ("old", "new", "evidence", "reason", "primary_lsn", "standby_lsn", "chosen_lsn", "fork_lsn")
        if facts.get(name)
    }
    return {
        "steps": table(rows, {"step": "string", "because": "string", "seconds": "float"}),
        **numbers,
        **counts,
        **words,
        **{name: dg.MetadataValue.json(facts[name]) for name in ("cause", "effect") if name in facts},
        **({"rejoin": dg.MetadataValue.json(back)} if back is not None else {}),
    }
