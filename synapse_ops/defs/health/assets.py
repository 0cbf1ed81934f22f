"""Health: `health/<name>` as the prober reports them, and what people read: health_report, availability_report.

Nothing is probed here. The prober (services/watch) asks, whether Dagster runs or not; this group shows its history.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import dagster as dg
from pydantic import Field

from synapse_ops.defs.event_metadata import Metadata, summary, table
from synapse_ops.defs.health.events import CHECK_NAME, HealthTick, evaluation_of, health_key
from synapse_ops.defs.in_run import operation_of
from synapse_ops.defs.policies import GROUP_HEALTH, LANE_REPORT, OWNERS, TAG_TRIGGER, code_version, run_tags
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.runbook_links import runbook, runbook_of_check
from synapse_ops.defs.spec.assets import spec_key
from synapse_ops.domain.runbooks import page_of_probe

if TYPE_CHECKING:
    from synapse_ops.operations.health.availability import AvailabilityRow
    from synapse_ops.operations.health.report import HealthReport, HealthRow
    from synapse_ops.operations.stack import Stack
    from synapse_ops.spec import LoadedSpec, Spec

HEALTH_REPORT_KEY = dg.AssetKey("health_report")
AVAILABILITY_KEY = dg.AssetKey("availability_report")
REPORT_CHECK = "everything_healthy"
REPORT_LIMIT = timedelta(minutes=15)
REPORT_CRON = "0 * * * *"
MONTH_CRON = "10 0 1 * *"
MONTHS = 24  # that the launchpad offers
SENSOR_INTERVAL_S = 30
KINDS = {"server/redis": "redis", "server/object-store": "s3", "server/disk": "linux", "server/certificates": "openssl"}


def _months(now: datetime) -> list[str]:
    """Return what a report may be of: `last`, `current`, and the last MONTHS by name, as 2026-11."""
    numbers = range(now.year * 12 + now.month - 1, 0, -1)[:MONTHS]
    return ["last", "current", *(f"{number // 12}-{number % 12 + 1:02}" for number in numbers)]


Month = Enum("Month", {name: name for name in _months(datetime.now(UTC))})  # type: ignore[misc]


class MonthConfig(dg.Config):
    """Which month is reported."""

    month: Month = Field(
        Month["last"], description="The month in the spec's time zone. last: the last that has ended; current: so far."
    )


def health_definitions(loaded: "LoadedSpec", stack: "Stack", *, is_embedded: bool = False) -> dg.Definitions:
    """Return the group's assets, checks, jobs, schedules and the sensor. stack: only its spec is read here."""
    external = _external_assets(stack, is_embedded=is_embedded)
    keys = [spec.key for spec in external]
    report, availability = _health_report(keys), _availability_report(keys, loaded.spec)
    report_job = dg.define_asset_job(
        "report_health",
        selection=dg.AssetSelection.assets(HEALTH_REPORT_KEY),
        description="Write the health report: every probed thing now and over its last day.",
        tags=run_tags(REPORT_LIMIT, lane=LANE_REPORT),
    )
    month_job = dg.define_asset_job(
        "report_availability",
        selection=dg.AssetSelection.assets(AVAILABILITY_KEY),
        description="Write the availability of a month.",
        tags=run_tags(REPORT_LIMIT, lane=LANE_REPORT),
    )
    schedules = [
        _schedule("health_report_schedule", report_job, REPORT_CRON, loaded.spec),
        _schedule("availability_report_schedule", month_job, MONTH_CRON, loaded.spec),
    ]
    return dg.Definitions(
        assets=[*external, report, availability],
        asset_checks=[_healthy_checks(keys), _report_check()],
        jobs=[report_job, month_job],
        schedules=schedules,
        sensors=[_sensor()],
    )


def _external_assets(stack: "Stack", *, is_embedded: bool) -> list[dg.AssetSpec]:
    from synapse_ops.operations.stack_probes import stack_probes
    from synapse_ops.systems.probe_clients import HttpClients

    return [
        dg.AssetSpec(
            health_key(probe.name),
            deps=[spec_key("health" if probe.kind == "endpoint" else "watch")],
            group_name=GROUP_HEALTH,
            owners=OWNERS,
            kinds={_kind_of(probe.name, probe.kind)},
            freshness_policy=dg.FreshnessPolicy.time_window(
                warn_window=timedelta(minutes=75), fail_window=timedelta(hours=2)
            ),
            description=f"{probe.target}, asked every {probe.interval_s:g} s for at most {probe.timeout_s:g} s by the "
            "prober. An event for each change of state, and one an hour with what was measured; no event for two hours "
            "means that no prober runs.",
        )
        for probe in stack_probes(stack, HttpClients(), is_embedded=is_embedded)
    ]


def _kind_of(name: str, kind: str) -> str:
    if kind == "endpoint":
        return "http"
    return "qdrant" if name.startswith("server/qdrant") else KINDS.get(name, "postgres")


def _health_report(keys: list[dg.AssetKey]) -> dg.AssetsDefinition:
    @dg.asset(
        key=HEALTH_REPORT_KEY,
        deps=keys,
        group_name=GROUP_HEALTH,
        owners=OWNERS,
        kinds={"sqlite"},
        code_version=code_version("synapse_ops.operations.health.report", "synapse_ops.domain.health.states"),
        freshness_policy=dg.FreshnessPolicy.time_window(warn_window=timedelta(hours=2), fail_window=timedelta(hours=4)),
        description="Every probed endpoint and server at one moment: state, since when, why, latency, the last day. "
        "`failed` counts those that are failed now; `unknown` those that could not be checked. Uptime is of the "
        "observed time; "
        "`unobserved_last_day` is the rest: no prober ran, or it could not check.",
    )
    def health_report(context: dg.AssetExecutionContext, stack: StackResource) -> dg.MaterializeResult[None]:
        with operation_of(context.run.run_id, context.instance):
            from synapse_ops.operations.health.report import read_health

            report = read_health(stack.open().state_dir, datetime.now(UTC))
        return dg.MaterializeResult(metadata=_report_metadata(report))

    return health_report


def _report_metadata(report: "HealthReport") -> Metadata:
    from synapse_ops.domain.health.states import BADNESS, State
    from synapse_ops.operations.health.report import summary_of

    # what a tired person looks for comes first: a page of the usual width cuts off the last columns
    columns = {"what": "string", "state": "string", "why": "string", "since": "string", "latency_ms": "float"}
    columns |= {"uptime_of_observed": "string", "unobserved_last_day": "string", "failed_min_last_day": "float"}
    worst_first = sorted(report.rows, key=lambda row: -BADNESS[row.condition.state])  # stable
    changes = (
        {
            "at": change.at.isoformat(timespec="seconds"),
            "what": change.probe,
            "change": f"{change.old} -> {change.new}",
            "why": change.reason,
        }
        for change in report.changes
    )
    return {
        "summary": summary(summary_of(report.rows)),
        **{str(state): len(report.of(state)) for state in State},
        "is_watched": report.is_watched,
        "most_unobserved_ratio": round(max((row.unobserved_ratio for row in report.rows), default=1.0), 5),
        "probes": table((_row(row) for row in worst_first), columns),
        "changes_last_day": len(report.changes),
        "last_day": table(changes, {"at": "string", "what": "string", "change": "string", "why": "string"}),
    }


def _row(row: "HealthRow") -> dict[str, Any]:
    ratio, latency_s = row.day.uptime_ratio, row.probe.latency_s
    return {
        "what": row.probe.name,
        "state": str(row.condition.state),
        "why": row.condition.reason,
        "since": f"{row.condition.since:%d %b %H:%M:%S}",
        "latency_ms": round(latency_s * 1000, 1) if latency_s is not None else None,
        "uptime_of_observed": f"{ratio:.3%}" if ratio is not None else "not known",
        "unobserved_last_day": f"{row.unobserved_ratio:.1%}",
        "failed_min_last_day": round(row.day.failed_s / 60, 1),
    }


def _availability_report(keys: list[dg.AssetKey], spec: "Spec") -> dg.AssetsDefinition:
    time_zone = spec.time_zone

    @dg.asset(
        key=AVAILABILITY_KEY,
        deps=keys,
        group_name=GROUP_HEALTH,
        owners=OWNERS,
        kinds={"sqlite"},
        code_version=code_version(
            "synapse_ops.operations.health.availability", "synapse_ops.domain.health.availability"
        ),
        freshness_policy=dg.FreshnessPolicy.time_window(warn_window=timedelta(days=32), fail_window=timedelta(days=34)),
        description="How available everything probed was over a month: uptime (healthy or degraded) of the time in "
        "which the state was known, and how much of the month that is; outages and the longest of them.",
    )
    def availability_report(
        context: dg.AssetExecutionContext, config: MonthConfig, stack: StackResource
    ) -> dg.MaterializeResult[None]:
        with operation_of(context.run.run_id, context.instance):
            from synapse_ops.domain.health.availability import month_window
            from synapse_ops.operations.health.availability import read_availability

            now = datetime.now(UTC)
            current = f"{now.astimezone(ZoneInfo(time_zone)):%Y-%m}"
            month = {"last": "", "current": current}.get(config.month.value, config.month.value)
            since, until = month_window(month, now, time_zone)
            rows = read_availability(stack.open().state_dir, since, min(until, now))
        ratios = [row.time.uptime_ratio for row in rows if row.time.uptime_ratio is not None]
        columns = {"what": "string", "uptime_of_observed": "string", "unobserved": "string", "outages": "int"}
        columns |= {"longest_outage_min": "float", "failed_min": "float", "latency_mean_ms": "float"}
        return dg.MaterializeResult(
            metadata={
                "month": f"{since:%Y-%m}",
                "probes": len(rows),
                "outages": sum(row.outages.count for row in rows),
                **({"lowest_uptime_ratio": round(min(ratios), 5)} if ratios else {}),
                "most_unobserved_ratio": round(max((row.unobserved_ratio for row in rows), default=1.0), 5),
                "availability": table((_availability_row(row) for row in rows), columns),
            }
        )

    return availability_report


def _availability_row(row: "AvailabilityRow") -> dict[str, Any]:
    ratio = row.time.uptime_ratio
    return {
        "what": row.probe,
        "uptime_of_observed": f"{ratio:.3%}" if ratio is not None else "not known",
        "unobserved": f"{row.unobserved_ratio:.1%}",
        "outages": row.outages.count,
        "longest_outage_min": round(row.outages.longest.total_seconds() / 60, 1),
        "failed_min": round(row.time.failed_s / 60, 1),
        "latency_mean_ms": round(row.latency_mean_s * 1000, 1) if row.latency_mean_s is not None else None,
    }


def _healthy_checks(keys: list[dg.AssetKey]) -> dg.AssetChecksDefinition:
    specs = [
        dg.AssetCheckSpec(
            CHECK_NAME,
            asset=key,
            metadata=runbook(page_of_probe("/".join(key.path[1:]))),
            description="Green while the state is healthy; a warning while degraded, red while failed or unknown.",
        )
        for key in keys
    ]

    @dg.multi_asset_check(name="probed_things_are_healthy", specs=specs, can_subset=True)
    def probed_things_are_healthy(
        context: dg.AssetCheckExecutionContext, stack: StackResource
    ) -> Iterator[dg.AssetCheckResult]:
        from synapse_ops.operations.health.report import read_health

        with operation_of(context.run.run_id, context.instance):
            report = read_health(stack.open().state_dir, datetime.now(UTC))
        wanted = {key.asset_key for key in context.selected_asset_check_keys}
        for row in report.rows:
            if health_key(row.probe.name) in wanted:
                found = evaluation_of(row, instance=context.instance)
                yield dg.AssetCheckResult(
                    asset_key=found.asset_key,
                    check_name=CHECK_NAME,
                    passed=found.passed,
                    severity=found.severity,
                    description=found.description,
                    metadata=found.metadata,
                )

    return probed_things_are_healthy


def _report_check() -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=HEALTH_REPORT_KEY,
        name=REPORT_CHECK,
        metadata=runbook_of_check(REPORT_CHECK),
        description="Green while everything probed is healthy and a prober runs; names what is not.",
    )
    def everything_healthy(context: dg.AssetCheckExecutionContext, stack: StackResource) -> dg.AssetCheckResult:
        from synapse_ops.operations.health.report import read_health

        with operation_of(context.run.run_id, context.instance):
            report = read_health(stack.open().state_dir, datetime.now(UTC))
        return dg.AssetCheckResult(**_verdict_on(report))

    return everything_healthy


def _verdict_on(report: "HealthReport") -> dict[str, Any]:
    """Return what the check says of a report, as fields of an evaluation or a result."""
    from synapse_ops.domain.health.states import State
    from synapse_ops.operations.health.report import summary_of

    only_degraded = report.worst is State.DEGRADED and report.is_watched
    return {
        "passed": report.worst is State.HEALTHY and report.is_watched,
        "severity": dg.AssetCheckSeverity.WARN if only_degraded else dg.AssetCheckSeverity.ERROR,
        "description": summary_of(report.rows) + ("" if report.is_watched else "; no prober runs"),
        "metadata": {str(state): len(report.of(state)) for state in State} | runbook_of_check(REPORT_CHECK),
    }


def _report_events(report: "HealthReport") -> tuple[dg.AssetMaterialization, dg.AssetCheckEvaluation]:
    """Return the report and its check, as the sensor writes them at a change of state: an hour later is too late."""
    from synapse_ops.operations.health.report import summary_of

    written = dg.AssetMaterialization(
        HEALTH_REPORT_KEY,
        description=summary_of(report.rows),
        metadata=_report_metadata(report),
        tags={TAG_TRIGGER: "sensor"},
    )
    verdict = dg.AssetCheckEvaluation(asset_key=HEALTH_REPORT_KEY, check_name=REPORT_CHECK, **_verdict_on(report))
    return written, verdict


def _schedule(name: str, job: Any, cron: str, spec: "Spec") -> dg.ScheduleDefinition:
    def request(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        at = context.scheduled_execution_time.isoformat()
        return dg.RunRequest(run_key=at, tags={TAG_TRIGGER: "schedule"})

    return dg.ScheduleDefinition(
        name=name,
        job=job,
        cron_schedule=cron,
        execution_timezone=spec.time_zone,
        execution_fn=request,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"{job.description} At {cron} in {spec.time_zone}.",
    )


def _sensor() -> dg.SensorDefinition:
    @dg.sensor(
        name="health_sensor",
        minimum_interval_seconds=SENSOR_INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports what the prober found: every change of state, with a new health_report, and one event an "
        "hour.",
    )
    def health_sensor(context: dg.SensorEvaluationContext, stack: StackResource) -> dg.SensorResult | dg.SkipReason:
        from synapse_ops.errors import Refused

        tick = HealthTick(context.instance, context.cursor, stack.open().state_dir)
        try:
            cursor = tick.run(datetime.now(UTC))
        except Refused as refused:
            return dg.SkipReason(refused.message)
        events = [*tick.events, *(_report_events(tick.report) if tick.report and tick.has_changed else ())]
        return dg.SensorResult(
            skip_reason=dg.SkipReason(f"{len(events)} events reported"), asset_events=events, cursor=cursor
        )

    return health_sensor
