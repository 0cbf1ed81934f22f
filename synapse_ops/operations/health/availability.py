"""What the prober's history shows for a window of time: per probe its uptime, its outages, its latency."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from synapse_ops.domain.health.availability import Outages, outages
from synapse_ops.domain.health.states import State, TimeInStates
from synapse_ops.operations.health.history import ProbeRow, Span, believed_condition, reading_history

_MOST_CHANGES = 1_000_000


@dataclass(frozen=True, slots=True)
class AvailabilityRow:
    """One probe over a window. coverage_ratio: the part of the window in which its state was known, 0 to 1."""

    probe: str
    time: TimeInStates
    coverage_ratio: float
    outages: Outages
    latency_mean_s: float | None
    latency_max_s: float

    @property
    def unobserved_ratio(self) -> float:
        """The part of the window for which no state is known; the uptime is of the rest alone."""
        return 1.0 - self.coverage_ratio


def read_availability(state_dir: Path, since: datetime, until: datetime) -> tuple[AvailabilityRow, ...]:
    """Return a row for each current probe, in the prober's order. Raises Refused when no prober has run."""
    since, until = since.astimezone(UTC), until.astimezone(UTC)  # in one local zone Python subtracts what clocks show
    with reading_history(state_dir) as history:
        probes = history.probes()
        spans = history.spans(since, until)
        changes = [found for found in history.changes(since=since, limit=_MOST_CHANGES) if found.at < until]
    empty = Span(TimeInStates(), 0, None, 0.0)
    rows = []
    for probe in probes:
        name = probe.name
        span = spans.get(name, empty)
        of_probe = [(found.at, found.old, found.new) for found in changes if found.probe == name]
        of_probe += _silence(probe, since, until)
        found = outages(of_probe, since, until)
        if not of_probe and span.time.failed_s > 0:  # failed all the while
            found = Outages(1, min(until - since, timedelta(seconds=span.time.failed_s)))
        coverage = span.time.coverage_ratio(until - since)
        rows.append(AvailabilityRow(name, span.time, coverage, found, span.latency_mean_s, span.latency_max_s))
    return tuple(rows)


def _silence(probe: ProbeRow, since: datetime, until: datetime) -> list[tuple[datetime, State, State]]:
    """Return the change to unknown that was not written: the prober went away in the window, and none came after it."""
    if probe.at is None or probe.at >= until:
        return []
    believed = believed_condition(probe, until)
    if believed.state is probe.condition.state or believed.since < since:
        return []
    return [(believed.since, probe.condition.state, believed.state)]
