"""The prober's history as events of `health/<name>`: every change of state, and one event an hour without any.

A change is a materialization: the page of an asset shows the newest one, and would go on to say "healthy" beside a red
check. The sensor only reads a file of this host, so an idle tick costs a millisecond. Its cursor holds the last change
and the last hour that were reported; without one it begins now, with the state of every probe.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from synapse_ops.defs.event_metadata import Metadata
from synapse_ops.defs.policies import TAG_TRIGGER
from synapse_ops.defs.runbook_links import runbook
from synapse_ops.domain.runbooks import page_of_probe

if TYPE_CHECKING:
    from pathlib import Path

    from synapse_ops.operations.health.history import Change, Span
    from synapse_ops.operations.health.report import HealthReport, HealthRow

CHECK_NAME = "healthy"
CHANGES_PER_TICK = 200
HOUR_S = 3600
HEALTH_PREFIX = "health"


def health_key(name: str) -> dg.AssetKey:
    """Return the key of a probe: `health/api`, `health/server/redis`."""
    return dg.AssetKey([HEALTH_PREFIX, *name.split("/")])


def evaluation_of(row: "HealthRow", *, instance: dg.DagsterInstance) -> dg.AssetCheckEvaluation:
    """Return whether a probed thing is healthy, as an event of its asset: degraded is a warning, the rest an error."""
    from synapse_ops.domain.health.states import State
    from synapse_ops.systems.dagster_storage import newest_as_target

    state = row.condition.state
    warns = state is State.DEGRADED
    return dg.AssetCheckEvaluation(
        asset_key=health_key(row.probe.name),
        check_name=CHECK_NAME,
        passed=row.is_healthy,
        severity=dg.AssetCheckSeverity.WARN if warns else dg.AssetCheckSeverity.ERROR,
        description=_sentence(row.probe.name, str(state), row.condition.since, row.condition.reason),
        metadata={
            "state": str(state),
            "since": dg.MetadataValue.timestamp(row.condition.since),
            **runbook(page_of_probe(row.probe.name)),
        },
        target_materialization_data=newest_as_target(instance, health_key(row.probe.name)),
    )


def _sentence(name: str, state: str, since: datetime, reason: str) -> str:
    return f"{name} is {state} since {since:%d %b %H:%M:%S} UTC" + (f": {reason}" if reason else "")


class HealthTick:
    """One tick of the sensor: what is to be reported, and the cursor after it."""

    def __init__(self, instance: dg.DagsterInstance, cursor: str | None, state_dir: "Path") -> None:
        self._instance = instance
        self._cursor: dict[str, Any] = json.loads(cursor or "{}")
        self._state_dir = state_dir
        self.events: list[dg.AssetMaterialization | dg.AssetCheckEvaluation] = []
        self.report: HealthReport | None = None
        self.has_changed = False

    def run(self, now: datetime) -> str:
        """Gather what is new in `events`, and return the cursor. Raises Refused when no prober has run.

        The daemon records the events and the cursor together: a tick that dies reports nothing, and so nothing twice.
        """
        from synapse_ops.operations.health.history import HistoryReader, history_file
        from synapse_ops.operations.health.report import read_health

        report = self.report = read_health(self._state_dir, now)
        hour = datetime.fromtimestamp(now.timestamp() // HOUR_S * HOUR_S, UTC)
        last_hour = self._cursor.get("hour")
        since = hour - timedelta(hours=1)
        with HistoryReader(history_file(self._state_dir)) as history:
            after = self._cursor.get("change")
            changes = history.changes(after=after, limit=CHANGES_PER_TICK) if after is not None else []
            newest = changes[-1].number if changes else after if after is not None else history.newest_change()
            spans = history.spans(since, hour)
        known: dict[str, str] = dict(self._cursor.get("states", {}))
        names = {row.probe.name for row in report.rows}
        for change in changes:
            if change.probe in names and known.get(change.probe) != str(
                change.new
            ):  # the prober's silence was reported
                self.events.append(_change_event(change))
                known[change.probe] = str(change.new)
        is_new_hour = last_hour != hour.timestamp()
        for row in report.rows:
            self._report_row(row, known, spans, report, is_new_hour=is_new_hour)
        states = {row.probe.name: str(row.condition.state) for row in report.rows}
        self.has_changed = bool(changes) or states != self._cursor.get("states")
        cursor = {"change": newest, "hour": hour.timestamp(), "states": states}
        return json.dumps(cursor, sort_keys=True)

    def _report_row(
        self,
        row: "HealthRow",
        known: dict[str, str],
        spans: dict[str, "Span"],
        report: "HealthReport",
        *,
        is_new_hour: bool,
    ) -> None:
        name, state = row.probe.name, str(row.condition.state)
        overdue = name in known and known[name] != state
        if overdue:  # not in the history: the prober is away
            self.events.append(
                dg.AssetMaterialization(
                    health_key(name),
                    description=f"{known[name]} -> {state}: {row.condition.reason}",
                    metadata=_state_metadata(row),
                    tags={TAG_TRIGGER: "sensor"},
                )
            )
        is_due = (is_new_hour or name not in known) and report.is_watched
        if is_due:
            self.events.append(_hour_event(row, spans.get(name)))
        if is_due or overdue or self._cursor.get("states", {}).get(name) != state:
            self.events.append(evaluation_of(row, instance=self._instance))


def _change_event(change: "Change") -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        health_key(change.probe),
        description=f"{change.old} -> {change.new}" + (f": {change.reason}" if change.reason else ""),
        metadata={
            "state": str(change.new),
            "former_state": str(change.old),
            "since": dg.MetadataValue.timestamp(change.at),
            "change": change.number,
            **({"reason": change.reason} if change.reason else {}),
        },
        tags={TAG_TRIGGER: "sensor"},
    )


def _state_metadata(row: "HealthRow") -> Metadata:
    condition = row.condition
    return {
        "state": str(condition.state),
        "since": dg.MetadataValue.timestamp(condition.since),
        **({"reason": condition.reason} if condition.reason else {}),
    }


def _hour_event(row: "HealthRow", span: "Span | None") -> dg.AssetMaterialization:
    """Return the event of the last whole hour: numbers that the asset page plots. What was not measured is absent."""
    metadata = _state_metadata(row)
    if span is not None:
        metadata |= {"verdicts": span.verdicts, "latency_max_s": round(span.latency_max_s, 4)}
        if span.latency_mean_s is not None:
            metadata["latency_mean_s"] = round(span.latency_mean_s, 4)
        if span.time.uptime_ratio is not None:
            metadata["uptime_ratio"] = round(span.time.uptime_ratio, 4)
    if row.day.uptime_ratio is not None:
        metadata["uptime_last_day_ratio"] = round(row.day.uptime_ratio, 5)
    metadata["unobserved_last_day_ratio"] = round(row.unobserved_ratio, 5)
    metadata |= dict(row.probe.measurements)
    return dg.AssetMaterialization(
        health_key(row.probe.name),
        description=f"{row.condition.state}: {row.condition.reason}".rstrip(": "),
        metadata=metadata,
        tags={TAG_TRIGGER: "sensor"},
    )
