"""The prober's history as events of `health/<name>`: every change of state, and one event for each five minutes.

The sensor only reads a file of this host, so an idle tick costs a millisecond. Its cursor holds the last change and the
last five minutes that were reported; without one it begins now, with the state of every probe.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from synapse_ops.defs.event_metadata import Metadata
from synapse_ops.defs.policies import TAG_TRIGGER

if TYPE_CHECKING:
    from pathlib import Path

    from synapse_ops.operations.health.history import Change, Span
    from synapse_ops.operations.health.report import HealthReport, HealthRow

CHECK_NAME = "healthy"
CHANGES_PER_TICK = 200
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
        description=row.condition.reason or str(state),
        metadata={"state": str(state), "since": dg.MetadataValue.timestamp(row.condition.since)},
        target_materialization_data=newest_as_target(instance, health_key(row.probe.name)),
    )


class HealthTick:
    """One tick of the sensor: what is to be reported, and the cursor after it."""

    def __init__(self, instance: dg.DagsterInstance, cursor: str | None, state_dir: "Path") -> None:
        self._instance = instance
        self._cursor: dict[str, Any] = json.loads(cursor or "{}")
        self._state_dir = state_dir
        self.events: list[dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation] = []

    def run(self, now: datetime) -> str:
        """Gather what is new in `events`, and return the cursor. Raises Refused when no prober has run.

        The daemon records the events and the cursor together: a tick that dies reports nothing, and so nothing twice.
        """
        from synapse_ops.operations.health.history import SPAN_S, HistoryReader, history_file
        from synapse_ops.operations.health.report import read_health

        report = read_health(self._state_dir, now)
        span_start = datetime.fromtimestamp(now.timestamp() // SPAN_S * SPAN_S, UTC)
        last_span = self._cursor.get("span")
        since = max(datetime.fromtimestamp(last_span or 0, UTC), span_start - timedelta(hours=1))
        with HistoryReader(history_file(self._state_dir)) as history:
            after = self._cursor.get("change")
            changes = history.changes(after=after, limit=CHANGES_PER_TICK) if after is not None else []
            newest = changes[-1].number if changes else after if after is not None else history.newest_change()
            spans = history.spans(since, span_start)
        known: dict[str, str] = dict(self._cursor.get("states", {}))
        names = {row.probe.name for row in report.rows}
        for change in changes:
            if change.probe in names and known.get(change.probe) != str(
                change.new
            ):  # the prober's silence was reported
                self.events.append(_change_event(change))
                known[change.probe] = str(change.new)
        is_new_span = last_span != span_start.timestamp()
        for row in report.rows:
            self._report_row(row, known, spans, report, is_new_span=is_new_span)
        states = {row.probe.name: str(row.condition.state) for row in report.rows}
        cursor = {"change": newest, "span": span_start.timestamp(), "states": states}
        return json.dumps(cursor, sort_keys=True)

    def _report_row(
        self,
        row: "HealthRow",
        known: dict[str, str],
        spans: dict[str, "Span"],
        report: "HealthReport",
        *,
        is_new_span: bool,
    ) -> None:
        name, state = row.probe.name, str(row.condition.state)
        overdue = name in known and known[name] != state
        if overdue:  # not in the history: the prober is away
            self.events.append(
                dg.AssetObservation(
                    health_key(name),
                    description=f"{known[name]} -> {state}: {row.condition.reason}",
                    metadata=_state_metadata(row),
                )
            )
        is_due = (is_new_span or name not in known) and report.is_watched
        if is_due:
            self.events.append(_span_event(row, spans.get(name)))
        if is_due or overdue or self._cursor.get("states", {}).get(name) != state:
            self.events.append(evaluation_of(row, instance=self._instance))


def _change_event(change: "Change") -> dg.AssetObservation:
    return dg.AssetObservation(
        health_key(change.probe),
        description=f"{change.old} -> {change.new}" + (f": {change.reason}" if change.reason else ""),
        metadata={
            "state": str(change.new),
            "former_state": str(change.old),
            "since": dg.MetadataValue.timestamp(change.at),
            "change": change.number,
            **({"reason": change.reason} if change.reason else {}),
        },
    )


def _state_metadata(row: "HealthRow") -> Metadata:
    condition = row.condition
    return {
        "state": str(condition.state),
        "since": dg.MetadataValue.timestamp(condition.since),
        **({"reason": condition.reason} if condition.reason else {}),
    }


def _span_event(row: "HealthRow", span: "Span | None") -> dg.AssetMaterialization:
    """Return the event of some minutes: numbers that the asset page plots. What was not measured is absent."""
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
