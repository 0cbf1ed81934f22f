"""`failover_drill` and `recovery_drill`: rehearsals on a disposable copy; `drill_scores`: the page they are judged on.

The drills share the pool of dumps, base backups and proofs: none runs beside a backup. The page is written by a sensor,
without a run: at each new score, and every six hours, because ages grow by themselves.
"""

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from synapse_ops.defs.backup.kinds import asset_kinds_of
from synapse_ops.defs.event_metadata import MOST_MARKDOWN, Metadata, summary, table
from synapse_ops.defs.in_run import operation_of, progress_into
from synapse_ops.defs.policies import (
    GROUP_RECOVERY,
    OWNERS,
    POOL_POSTGRES_IO,
    PRIORITY_PROOF,
    TAG_TRIGGER,
    code_version,
    freshness_of,
    run_tags,
)
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.run_pods import RunPod, data_pod
from synapse_ops.defs.runbook_links import runbook_of_check
from synapse_ops.defs.spec.assets import spec_key
from synapse_ops.domain.backup.kinds import BASE, DUMP, RDB, SNAPSHOT
from synapse_ops.domain.recovery.drill_score import PREFIX, Scenario
from synapse_ops.errors import SynapseOpsError, Unproven

if TYPE_CHECKING:
    from synapse_ops.domain.progress import ReportProgress
    from synapse_ops.domain.recovery.drill_score import DrillScore
    from synapse_ops.domain.recovery.score_page import ScorePage
    from synapse_ops.operations.stack import Stack
    from synapse_ops.spec import Spec

    Drill = Callable[[Stack, ReportProgress], DrillScore]

SCORES_KEY = dg.AssetKey("drill_scores")
CHECK_NAME = "drills_meet_objectives"
SENSOR_INTERVAL_S = 300
REFRESH = timedelta(hours=6)
FAILOVER_LIMIT, RECOVERY_LIMIT = timedelta(hours=1), timedelta(hours=24)


def drill_definitions(spec: "Spec", *, has_programs: bool) -> dg.Definitions:
    """Return the drills, their jobs and schedules, and the page. has_programs: an embedded stack can start here."""
    kinds = asset_kinds_of(spec)
    assets, jobs, schedules = [], [], []
    expected = []
    if spec.failover.is_ours and has_programs:
        assets.append(
            _drill(
                "failover_drill",
                _failover,
                [spec_key("failover"), spec_key("drills")],
                ("synapse_ops.local.failover_drill", "synapse_ops.local.disposable_copy"),
                "How long a failover takes: the primary of a small copy of the embedded stack is killed under a "
                "writer. `rto_s` is from the kill to the first write; `lost_writes` were acknowledged and are gone.",
            )
        )
        does, pod = "Fail a disposable copy over", data_pod(spec, RDB)  # the copy is small
        jobs.append(_job("drill_failover", "failover_drill", FAILOVER_LIMIT, does, pod))
        if spec.drills.failover is not None:
            schedules.append(_schedule(jobs[-1], str(spec.drills.failover), spec))
            expected.append(Scenario.FAILOVER_DRILL)
    if any(kind.kind.kind is BASE for kind in kinds):
        assets.append(
            _drill(
                "recovery_drill",
                _recovery,
                [*(kind.proof_key for kind in kinds), spec_key("drills")],
                ("synapse_ops.operations.recovery.recovery_drill", "synapse_ops.operations.recovery.drills"),
                "How long a recovery takes from nothing but the bucket: into a folder that is thrown away. `rto_s` is "
                "all of it; `rpo_s` how much work would be lost.",
            )
        )
        does = "Restore what the bucket holds, on a copy"
        jobs.append(_job("drill_recovery", "recovery_drill", RECOVERY_LIMIT, does, data_pod(spec, BASE, SNAPSHOT, RDB)))
        if spec.drills.recovery is not None:
            schedules.append(_schedule(jobs[-1], str(spec.drills.recovery), spec))
            expected.append(Scenario.RECOVERY_DRILL)
    page = _page([asset.key for asset in assets], expected)
    return dg.Definitions(assets=[*assets, page], jobs=jobs, schedules=schedules, sensors=[_sensor(expected)])


def _failover() -> "Drill":
    from synapse_ops.local.failover_drill import drill_failover

    return drill_failover


def _recovery() -> "Drill":
    from synapse_ops.operations.recovery.drills import drill_recovery

    return drill_recovery


def _drill(
    name: str, load: Callable[[], "Drill"], deps: list[dg.AssetKey], modules: tuple[str, ...], description: str
) -> dg.AssetsDefinition:
    @dg.asset(
        name=name,
        deps=deps,
        group_name=GROUP_RECOVERY,
        owners=OWNERS,
        kinds={"postgres"},
        pool=POOL_POSTGRES_IO,
        code_version=code_version(*modules),
        description=description,
    )
    def drill(context: dg.AssetExecutionContext, stack: StackResource) -> dg.MaterializeResult[None]:
        from synapse_ops.operations.recovery.drills import keep_score, refuse_beside_backup

        with operation_of(context.run.run_id, context.instance):
            opened = stack.open()
            repository = opened.database_repository()
            refuse_beside_backup(repository)
            score, url = keep_score(repository, load()(opened, progress_into(context.log)))
            if not score.passed:
                raise Unproven(f"the {score.scenario} failed: {score.reason}", detail=f"score: {url}")
        return dg.MaterializeResult(metadata=score_metadata(score, url))

    return drill


def score_metadata(score: "DrillScore", url: str) -> Metadata:
    """Return a score as numbers that the asset's page plots; what was not measured or predicted is absent."""
    predicted = score.predicted
    numbers: dict[str, float | None] = {
        "rto_s": score.rto_s,
        "rpo_s": score.rpo_s,
        "lost_writes": score.lost_writes,
        "predicted_s": predicted.seconds if predicted else None,
        "predicted_low_s": predicted.low_s if predicted else None,
        "predicted_high_s": predicted.high_s if predicted else None,
        "error_ratio": round(score.rto_s / predicted.seconds - 1, 3) if predicted and score.rto_s else None,
    }
    return {
        "summary": summary(f"{score.rto_s or 0.0:.1f} s; {score.expected}"),
        **{name: value for name, value in numbers.items() if value is not None},
        **{f"{name.replace(' ', '_')}_phase_s": seconds for name, seconds in score.phases},
        "size_bytes": score.size_bytes,
        "url": dg.MetadataValue.path(url),
    }


def _job(name: str, asset: str, limit: timedelta, does: str, pod: RunPod) -> Any:
    return dg.define_asset_job(
        name,
        selection=dg.AssetSelection.assets(asset),
        description=f"{does}, measure each step, and keep the score. Nothing of the system is touched.",
        tags=run_tags(limit, lane=DUMP.prefix, priority=PRIORITY_PROOF, pod=pod),
    )


def _schedule(job: Any, cron: str, spec: "Spec") -> dg.ScheduleDefinition:
    def request(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        at = context.scheduled_execution_time.isoformat()
        return dg.RunRequest(run_key=at, tags={TAG_TRIGGER: "schedule"})

    return dg.ScheduleDefinition(
        name=f"{job.name}_schedule",
        job=job,
        cron_schedule=cron,
        execution_timezone=spec.time_zone,
        execution_fn=request,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"{job.description} At {cron} in {spec.time_zone}.",
    )


def page_metadata(page: "ScorePage") -> Metadata:
    """Return the page: its sentence, the picture, the table."""
    from synapse_ops.domain.recovery.score_page import COLUMNS
    from synapse_ops.domain.recovery.window_picture import as_markdown

    drawn = as_markdown(page.picture(), "drills")
    return {
        "summary": summary(page.sentence),
        **({"measured": dg.MetadataValue.md(drawn)} if page.scores and len(drawn) < MOST_MARKDOWN else {}),
        "scores": table(page.rows(), dict.fromkeys(COLUMNS, "string")),
        "kept_scores": len(page.scores),
        "unreadable_scores": len(page.unreadable),
    }


def _verdict(page: "ScorePage") -> dict[str, Any]:
    return {
        "asset_key": SCORES_KEY,
        "check_name": CHECK_NAME,
        "passed": page.is_met,
        "severity": dg.AssetCheckSeverity.ERROR,
        "description": page.sentence,
        "metadata": {"faults": list(page.faults), **runbook_of_check(CHECK_NAME)},
    }


def _page(drills: list[dg.AssetKey], expected: Collection[Scenario]) -> dg.AssetsDefinition:
    @dg.asset(
        key=SCORES_KEY,
        deps=[*drills, spec_key("objectives")],
        group_name=GROUP_RECOVERY,
        owners=OWNERS,
        kinds={"s3"},
        code_version=code_version("synapse_ops.domain.recovery.score_page"),
        freshness_policy=freshness_of(REFRESH),
        check_specs=[
            dg.AssetCheckSpec(
                CHECK_NAME,
                asset=SCORES_KEY,
                metadata=runbook_of_check(CHECK_NAME),
                description="Red while a scheduled drill has not passed for 35 days, the last one failed, or what was "
                "measured misses `objectives`.",
            )
        ],
        description="Every drill, failover, switchover and recovery: when, how long, what was lost. In `measured` a "
        "mark is a run, the bar behind it what was predicted; orange lies outside. A copy and this system are told "
        "apart.",
    )
    def drill_scores(context: dg.AssetExecutionContext, stack: StackResource) -> Iterator[dg.MaterializeResult[None]]:
        from synapse_ops.operations.recovery.score_page import read_score_page

        with operation_of(context.run.run_id, context.instance):
            page = read_score_page(stack.open(), expected, datetime.now(UTC))
        yield dg.MaterializeResult(metadata=page_metadata(page), check_results=[dg.AssetCheckResult(**_verdict(page))])

    return drill_scores


def _sensor(expected: Collection[Scenario]) -> dg.SensorDefinition:
    @dg.sensor(
        name="drill_scores_sensor",
        minimum_interval_seconds=SENSOR_INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Keeps the page drill_scores fresh: at each new score, and every six hours.",
    )
    def drill_scores_sensor(
        context: dg.SensorEvaluationContext, stack: StackResource
    ) -> dg.SensorResult | dg.SkipReason:
        return refresh(context.cursor, stack.open(), expected, time.time())

    return drill_scores_sensor


def refresh(
    cursor: str | None, stack: "Stack", expected: Collection[Scenario], now_s: float
) -> dg.SensorResult | dg.SkipReason:
    """Return one tick: the page when there is a new score or it is six hours old. Safe to repeat.

    Failovers and switchovers of this system that have ended get their score first. A store that cannot be read turns
    the check red, once.
    """
    from synapse_ops.operations.recovery.drills import keep_incidents
    from synapse_ops.operations.recovery.score_page import read_score_page

    before = json.loads(cursor or "{}")
    try:
        repository, now = stack.database_repository(), datetime.fromtimestamp(now_s, UTC)
        keys = sorted(row.key for row in repository.store.list_objects(PREFIX))
        if keep_incidents(repository, stack.state_dir, keys, now):
            keys = sorted(row.key for row in repository.store.list_objects(PREFIX))
        digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()
        is_due = now_s - before.get("at", 0) >= REFRESH.total_seconds()
        if digest == before.get("keys") and not is_due:
            return dg.SkipReason("no score since the page was written")
        page = read_score_page(stack, expected, now)
    except SynapseOpsError as fault:
        if before.get("unread") == fault.message:
            return dg.SkipReason(fault.message)
        said = dg.AssetCheckEvaluation(
            asset_key=SCORES_KEY,
            check_name=CHECK_NAME,
            passed=False,
            severity=dg.AssetCheckSeverity.ERROR,
            description=f"The scores could not be read: {fault.message}",
            metadata=runbook_of_check(CHECK_NAME),
        )
        return dg.SensorResult(asset_events=[said], cursor=json.dumps({"unread": fault.message}))
    written = dg.AssetMaterialization(
        SCORES_KEY, description=page.sentence, metadata=page_metadata(page), tags={TAG_TRIGGER: "sensor"}
    )
    return dg.SensorResult(
        asset_events=[written, dg.AssetCheckEvaluation(**_verdict(page))],
        cursor=json.dumps({"keys": digest, "at": now_s}),
    )
