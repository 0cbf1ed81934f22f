"""`synapse-ops health`: the health of every endpoint and server, from the prober's history or a check now."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.options import Place, stack_options
from synapse_ops.cli.tables import console, table_of
from synapse_ops.cli.terminal import echo, print_json
from synapse_ops.domain.durations import format_age
from synapse_ops.domain.printable_text import printable
from synapse_ops.errors import Refused, SynapseOpsError, Unhealthy, Unproven, Unreachable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from synapse_ops.operations.health.report import HealthReport, HealthRow

REFRESH_S = 1.0
COLORS = {"healthy": "green", "degraded": "yellow", "unknown": "magenta", "failed": "bold red"}


@click.command()
@click.option("--watch", is_flag=True, help="Keep showing the current state until interrupted.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/json/health.schema.json).")
@stack_options
def command(place: Place, *, watch: bool, as_json: bool) -> None:
    """Show the state of every probed endpoint and server: since when, why, how fast, and its last day.

    Where no prober runs, each check runs once, now, and the answer says so.
    Exit code 0 only when everything is healthy, 17 when something is degraded or failed, 14 when something is unknown.

    \b
    Examples:
      synapse-ops health
      synapse-ops health --watch
      synapse-ops health --json --spec infrastructure.yaml
    """
    if watch and not as_json:
        _watch(place)
    report = _read(place)
    if as_json:
        print_json(as_data(report))
    else:
        console().print(_table(report))
        for line in _footer(report):
            echo(line)
    error = error_of(report)
    if error is not None:
        raise error


def _read(place: Place) -> HealthReport:
    from synapse_ops.operations.health.report import ask_once, is_watched, read_health
    from synapse_ops.operations.stack_probes import stack_probes
    from synapse_ops.services.dagster.home import has_embedded_stack

    state_dir, fault = place.state_dir.absolute(), ""
    if is_watched(state_dir):
        try:
            report = read_health(state_dir, datetime.now(UTC))
        except (Refused, Unreachable) as unread:
            fault = unread.message
        else:
            if report.rows and not report.is_overdue:
                return report
            fault = "it has stored nothing for longer than was due" if report.rows else ""
    probes = partial(stack_probes, place.stack(), is_embedded=has_embedded_stack(state_dir))
    return replace(ask_once(probes), prober_fault=fault)


def _watch(place: Place) -> None:
    """Redraw until interrupted; the exit code is then 130, as of every command that is interrupted."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(console=console(), auto_refresh=False, screen=console().is_terminal) as live:
        while True:
            report = _read(place)
            live.update(Group(_table(report), *(Text(printable(line)) for line in _footer(report))), refresh=True)
            time.sleep(REFRESH_S if report.is_watched else 5 * REFRESH_S)


def _table(report: HealthReport) -> RenderableType:
    from rich.text import Text

    columns = ("what", "state", "since", ">latency", ">up of observed", ">unobserved, last day", "why")
    rows: list[Sequence[str | Text]] = []
    for row in report.rows:
        state = row.condition.state
        rows.append(
            (
                row.probe.name,
                Text(state, style=COLORS[state]),
                format_age(report.read_at - row.condition.since),
                _latency(row),
                _uptime(row),
                f"{row.unobserved_ratio:.1%}",
                row.condition.reason,
            )
        )
    return table_of(columns, rows, title=f"{_summary(report)} at {report.read_at:%Y-%m-%d %H:%M:%S} UTC")


def _summary(report: HealthReport) -> str:
    from synapse_ops.operations.health.report import summary_of

    return summary_of(report.rows)


def _latency(row: HealthRow) -> str:
    return f"{row.probe.latency_s * 1000:.0f} ms" if row.probe.latency_s is not None else "-"


def _uptime(row: HealthRow) -> str:
    ratio = row.day.uptime_ratio
    return f"{ratio:.2%}" if ratio is not None else "-"


def _footer(report: HealthReport) -> list[str]:
    lines = []
    if report.prober_fault:
        lines.append(
            f"a prober runs, but {report.prober_fault}: each check ran once, just now. Is the disk of the state"
            " directory full?"
        )
    elif not report.is_watched:
        lines.append("no prober is running: each check ran once, just now; `synapse-ops local up` or `ui` starts one")
    for repository, found in (report.protection or {}).items():
        for subject, moments in found.get("subjects", {}).items():
            backup, proof = (_age_of(moments.get(key), report.read_at) for key in ("backup_at", "proven_at"))
            lines.append(f"{repository} {subject}: newest backup {backup}, newest proof {proof}")
        if "error" in found:
            lines.append(f"{repository}: the repository could not be read: {found['error']}")
    for change in report.changes[:5]:
        reason = f": {change.reason}" if change.reason else ""
        lines.append(f"{change.at:%H:%M:%S}  {change.probe}  {change.old} -> {change.new}{reason}")
    return lines


def _age_of(moment: str | None, now: datetime) -> str:
    return f"{format_age(now - datetime.fromisoformat(moment))} old" if moment else "none"


def error_of(report: HealthReport) -> SynapseOpsError | None:
    """Return what the exit code says: None when all is healthy."""
    from synapse_ops.domain.health.states import State

    bad = [*report.of(State.FAILED), *report.of(State.DEGRADED)]
    unknown = report.of(State.UNKNOWN)
    detail = "\n".join(f"{row.probe.name}: {row.condition.reason}" for row in (*bad, *unknown))
    hint = "docs/health.md describes each state and its limits."
    if bad:
        return Unhealthy(f"{len(bad)} of {len(report.rows)} checks are not healthy", detail=detail, hint=hint)
    if report.prober_fault and not unknown:
        return Unproven(
            f"a prober runs, but {report.prober_fault}", hint="See its log, and the state directory's disk."
        )
    if unknown or not report.rows:
        return Unproven(f"the state of {len(unknown)} of {len(report.rows)} checks is unknown", detail=detail)
    return None


def as_data(report: HealthReport) -> dict[str, Any]:
    """Return the report as its stable JSON form."""
    return {
        "read_at": report.read_at.isoformat(),
        "is_watched": report.is_watched,
        "worst": report.worst,
        "probes": [_row_data(row) for row in report.rows],
        "changes": [
            {
                "probe": change.probe,
                "at": change.at.isoformat(),
                "old": change.old,
                "new": change.new,
                "reason": change.reason,
            }
            for change in report.changes
        ],
        "protection": report.protection,
    }


def _row_data(row: HealthRow) -> dict[str, Any]:
    probe, condition = row.probe, row.condition
    return {
        "name": probe.name,
        "kind": probe.kind,
        "target": probe.target,
        "interval_s": probe.interval_s,
        "timeout_s": probe.timeout_s,
        "state": condition.state,
        "since": condition.since.isoformat(),
        "reason": condition.reason,
        "verdict": probe.verdict,
        "verdict_at": probe.at.isoformat() if probe.at is not None else None,
        "verdict_reason": probe.verdict_reason,
        "latency_s": probe.latency_s,
        "measurements": dict(probe.measurements),
        "last_day": {
            "uptime_ratio": row.day.uptime_ratio,
            "healthy_s": row.day.healthy_s,
            "degraded_s": row.day.degraded_s,
            "failed_s": row.day.failed_s,
            "unknown_s": row.day.unknown_s,
            "unobserved_ratio": row.unobserved_ratio,
            "window_s": row.day_window.total_seconds(),
        },
    }
