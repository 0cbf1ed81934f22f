"""What the prober's history says of a window of time: per probe its uptime, its outages, its latency."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from synapse_ops.domain.availability import Outages, outages
from synapse_ops.domain.health import TimeInStates
from synapse_ops.errors import Refused
from synapse_ops.operations.health_history import HistoryReader, Span, history_file

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


def read_availability(state_dir: Path, since: datetime, until: datetime) -> tuple[AvailabilityRow, ...]:
    """Return a row for each current probe, in the prober's order. Raises Refused when no prober ever ran."""
    try:
        with HistoryReader(history_file(state_dir)) as history:
            names = [row.name for row in history.probes()]
            spans = history.spans(since, until)
            changes = [found for found in history.changes(since=since, limit=_MOST_CHANGES) if found.at < until]
    except FileNotFoundError:
        raise Refused(f"no prober ever ran for {state_dir}", hint="docs/health.md says how one is started.") from None
    empty = Span(TimeInStates(), 0, None, 0.0)
    rows = []
    for name in names:
        span = spans.get(name, empty)
        of_probe = [(found.at, found.old, found.new) for found in changes if found.probe == name]
        found = outages(of_probe, since, until)
        if not of_probe and span.time.failed_s > 0:  # failed all the while
            found = Outages(1, until - since)
        coverage = span.time.coverage_ratio(until - since)
        rows.append(AvailabilityRow(name, span.time, coverage, found, span.latency_mean_s, span.latency_max_s))
    return tuple(rows)
