"""What is cleaned up: log files, temporary files, idle cache keys, left-over snapshots, and Dagster's own history.

Each kind has a plan as an asset; jobs apply one and report what they did to another asset. A plan only looks; what
applies one takes its digest, which a person gives. The one exception is a job of its own, which makes its plans and
carries them out: its schedule runs only where an operator switched it on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from synapse_ops.defs.event_metadata import Metadata, table
from synapse_ops.defs.in_run import operation_of, progress_into, recorded
from synapse_ops.defs.policies import (
    GROUP_CLEANUP,
    LANE_REMOVAL,
    LANE_REPORT,
    OWNERS,
    POOL_CLEANUP,
    TAG_TRIGGER,
    code_version,
    freshness_of,
    run_tags,
)
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.runbook_links import runbook_of_check
from synapse_ops.defs.spec.assets import spec_key

if TYPE_CHECKING:
    from synapse_ops.defs.place import Place
    from synapse_ops.operations.cleanup.plan_file import Outcome, StoredPlan
    from synapse_ops.operations.stack import Stack
    from synapse_ops.spec import Spec

CLEANUP_LIMIT = timedelta(hours=6)
REDIS_CHECK = "redis_fits_spec"


@dataclass(frozen=True)
class Group:
    """One kind: its plan, and what jobs report of an apply.

    modules: what they do. store: the block of the spec that says where, if any.
    """

    kind: str
    plan: str
    apply: str
    shown_as: str
    modules: tuple[str, ...]
    plan_text: str
    apply_text: str
    store: str = ""

    @property
    def reads(self) -> list[dg.AssetKey]:
        return [spec_key("cleanup"), *([spec_key(self.store)] if self.store else [])]


_FILE_MODULES = (
    "synapse_ops.domain.cleanup.files",
    "synapse_ops.operations.cleanup.files",
    "synapse_ops.systems.host.filesystem",
)
GROUPS = (
    Group(
        kind="logs",
        plan="log_cleanup_plan",
        apply="log_retention_set",
        shown_as="file",
        modules=_FILE_MODULES,
        plan_text="Which log files below cleanup.log_roots would be compressed or removed, and why others stay. "
        "`freed_bytes` is what removing frees, hard links counted once; young files are counted, not listed.",
        apply_text="Log files compressed or removed: exactly the plan of one digest, each file checked again.",
    ),
    Group(
        kind="temp",
        plan="temp_cleanup_plan",
        apply="temp_cleanup",
        shown_as="file",
        modules=_FILE_MODULES,
        plan_text="Which temporary files below cleanup.temp_roots would be removed, and the directories that "
        "they leave empty. `freed_bytes` counts hard links once.",
        apply_text="Temporary files that were removed: exactly the plan of one digest, each file checked again before.",
    ),
    Group(
        kind="cache",
        plan="cache_cleanup_plan",
        apply="cache_cleanup",
        shown_as="redis",
        modules=("synapse_ops.domain.cleanup.cache", "synapse_ops.operations.cleanup.cache"),
        plan_text="Which keys that match cleanup.cache_patterns were not used for cleanup.cache.retention. "
        "`estimated_bytes` is their memory, estimated from a sample.",
        apply_text="Idle keys that were removed: exactly the plan of one digest; a key that was used since stays. "
        "`freed_bytes` is by how much the server's memory shrank meanwhile.",
        store="redis",
    ),
    Group(
        kind="snapshots",
        plan="snapshot_cleanup_plan",
        apply="snapshot_cleanup",
        shown_as="qdrant",
        modules=("synapse_ops.operations.cleanup.node_snapshots", "synapse_ops.operations.vectors.left_overs"),
        plan_text="Which snapshots that killed runs left on Qdrant's nodes would be removed: files that such a run "
        "named as its own, an hour old. What may be another tool's is listed and stays. `delete_bytes` is the size of "
        "what is removed.",
        apply_text="Left-over snapshots that were removed from Qdrant's nodes: exactly the plan of one digest, "
        "each checked again under the lease of its collection.",
        store="qdrant",
    ),
    Group(
        kind="history",
        plan="run_history_cleanup_plan",
        apply="run_history_cleanup",
        shown_as="dagster",
        modules=("synapse_ops.operations.cleanup.run_history", "synapse_ops.systems.dagster_storage"),
        plan_text="Which of Dagster's own runs, output, ticks and events outside of runs would be removed by age. The "
        "newest event of each asset, partition and check, failover records and records of existing backups stay.",
        apply_text="Dagster's own records that were removed: exactly the plan of one digest.",
    ),
)


Kind = Enum("Kind", {group.kind: group.kind for group in GROUPS})  # type: ignore[misc]


class CleanupConfig(dg.Config):
    """Which plan is carried out."""

    kind: Kind = Field(description=f"What is cleaned up: {', '.join(Kind.__members__)}.")
    plan_digest: str = Field(
        description="The plan_digest on the page of the plan: the approval of exactly that plan. Refused when no plan "
        "has it; a used one does nothing."
    )


def cleanup_definitions(spec: "Spec", place: "Place") -> dg.Definitions:
    """Return the group's assets, check, jobs and schedules."""
    freshness = freshness_of(spec.cleanup.schedule.longest_gap(spec.time_zone))
    plan = dg.define_asset_job(
        "cleanup_plan",
        selection=dg.AssetSelection.assets(*(group.plan for group in GROUPS)),
        description="Plan a cleanup of each kind: what it would do, and why. Changes nothing; the plans' pages show "
        "the digests for cleanup_apply.",
        tags=run_tags(CLEANUP_LIMIT, lane=LANE_REPORT),
    )
    both = _cleanup()
    schedules = [
        _schedule("cleanup_plan_schedule", plan, spec, is_running=not place.is_embedded),
        _schedule("cleanup_schedule", both, spec, is_running=place.is_embedded),
    ]
    assets = [asset for group in GROUPS for asset in _assets(group, freshness)]
    return dg.Definitions(
        assets=assets, asset_checks=[_redis_check()], jobs=[plan, _apply(), both], schedules=schedules
    )


def _assets(group: Group, freshness: dg.FreshnessPolicy) -> list[Any]:
    @dg.asset(
        name=group.plan,
        deps=group.reads,
        group_name=GROUP_CLEANUP,
        owners=OWNERS,
        kinds={group.shown_as},
        code_version=code_version(*group.modules),
        freshness_policy=freshness,
        description=group.plan_text,
    )
    def plan(context: dg.AssetExecutionContext, stack: StackResource) -> dg.MaterializeResult[None]:
        made = make_plan(context, stack, group.kind)
        return dg.MaterializeResult(metadata=plan_metadata(made), data_version=dg.DataVersion(made.digest))

    applied = dg.AssetSpec(
        group.apply,
        deps=[group.plan],
        group_name=GROUP_CLEANUP,
        owners=OWNERS,
        kinds={group.shown_as},
        description=f"{group.apply_text} Reported by the jobs cleanup_apply and cleanup; it cannot be materialized by "
        "itself.",
    )
    return [plan, applied]


def _apply() -> dg.JobDefinition:
    @dg.op(name="apply_cleanup", pool=POOL_CLEANUP, out=dg.Out(dg.Nothing))
    def apply(context: dg.OpExecutionContext, config: CleanupConfig, stack: StackResource) -> None:
        group = next(group for group in GROUPS if group.kind == config.kind.value)
        context.log_event(recorded(dg.AssetKey(group.apply), carry_out(context, stack, group, config.plan_digest)))

    @dg.job(
        description="Apply exactly the cleanup plan with the given digest.",
        tags=run_tags(CLEANUP_LIMIT, lane=LANE_REMOVAL),
    )
    def cleanup_apply() -> None:
        apply()

    return cleanup_apply


def _cleanup() -> dg.JobDefinition:
    @dg.job(
        description="Plan a cleanup of each kind, and carry out these plans at once: what cleanup_schedule starts "
        "where an operator switched it on.",
        tags=run_tags(CLEANUP_LIMIT, lane=LANE_REMOVAL),
    )
    def cleanup() -> None:
        for group in GROUPS:
            _plan_and_apply(group)()  # each by itself: what one refuses stops no other

    return cleanup


def _plan_and_apply(group: Group) -> dg.OpDefinition:
    @dg.op(name=f"clean_up_{group.kind}", pool=POOL_CLEANUP, out=dg.Out(dg.Nothing))
    def plan_and_apply(context: dg.OpExecutionContext, stack: StackResource) -> None:
        plan = make_plan(context, stack, group.kind)
        context.log_event(recorded(dg.AssetKey(group.plan), plan_metadata(plan), version=plan.digest))
        context.log_event(recorded(dg.AssetKey(group.apply), carry_out(context, stack, group, plan.digest)))

    return plan_and_apply


def make_plan(context: Any, stack: StackResource, kind: str) -> "StoredPlan":
    """Make the plan of one kind; its warnings are in the log."""
    with operation_of(context.run.run_id, context.instance):
        plan = _verbs(stack.open(), kind, context)[0]()
    for warning in plan.warnings:
        context.log.warning(warning)
    return plan


def carry_out(context: Any, stack: StackResource, group: Group, digest: str) -> Metadata:
    """Apply the plan of a digest and return what the asset page shows of it."""
    with operation_of(context.run.run_id, context.instance):
        outcome = _verbs(stack.open(), group.kind, context)[1](digest)
    return outcome_metadata(digest, outcome)


def _verbs(stack: "Stack", kind: str, context: Any) -> "tuple[Callable[[], StoredPlan], Callable[[str], Outcome]]":
    spec, state_dir, now, progress = stack.spec, stack.state_dir, datetime.now(UTC), progress_into(context.log)
    if kind == "cache":
        from synapse_ops.operations.cleanup.cache import apply_cache_plan, make_cache_plan

        return (
            lambda: make_cache_plan(spec, state_dir, now, progress=progress),
            lambda digest: apply_cache_plan(digest, spec, state_dir, now, progress=progress),
        )
    if kind == "history":
        from synapse_ops.operations.cleanup.run_history import apply_history_plan, make_history_plan

        return (
            lambda: make_history_plan(stack, context.instance, now, progress=progress),
            lambda digest: apply_history_plan(digest, stack, context.instance, now, progress=progress),
        )
    if kind == "snapshots":
        from synapse_ops.operations.cleanup.node_snapshots import apply_snapshots_plan, make_snapshots_plan

        return (
            lambda: make_snapshots_plan(stack, state_dir, now, progress=progress),
            lambda digest: apply_snapshots_plan(digest, stack, state_dir, now, progress=progress),
        )
    from synapse_ops.operations.cleanup.files import apply_cleanup, make_cleanup_plan

    return (
        lambda: make_cleanup_plan(kind, spec, state_dir, now, progress=progress),
        lambda digest: apply_cleanup(kind, digest, spec, state_dir, now, progress=progress),
    )


def _redis_check() -> Any:
    @dg.asset_check(
        name=REDIS_CHECK,
        asset="cache_cleanup_plan",
        metadata=runbook_of_check(REDIS_CHECK),
        description="Red while the running Redis cannot do what the spec expects of it: connections, memory, policy of "
        "eviction, time-outs, databases. A setting that it does not report counts as a warning.",
    )
    def redis_fits_spec(context: dg.AssetCheckExecutionContext, stack: StackResource) -> dg.AssetCheckResult:
        with operation_of(context.run.run_id, context.instance):
            from synapse_ops.operations.cleanup.cache import read_redis_findings

            findings = read_redis_findings(stack.open().spec)
        rows = [
            {"level": str(row.level), "setting": row.setting, "found": row.found, "reason": row.reason}
            for row in findings
        ]
        levels = {row["level"] for row in rows}
        return dg.AssetCheckResult(
            passed=not levels & {"fault", "warning", "unknown"},
            severity=dg.AssetCheckSeverity.ERROR if "fault" in levels else dg.AssetCheckSeverity.WARN,
            description=_redis_sentence(rows),
            metadata={
                "findings": table(rows, dict.fromkeys(("level", "setting", "found", "reason"), "string")),
                **runbook_of_check(REDIS_CHECK),
            },
        )

    return redis_fits_spec


def _redis_sentence(rows: Sequence[Mapping[str, str]]) -> str:
    bad = [f"{row['setting']} is {row['found']}: {row['reason']}" for row in rows if row["level"] != "note"]
    return "; ".join(bad) or "Redis can do what the spec expects of it."


def plan_metadata(plan: "StoredPlan") -> Metadata:
    """Return totals and first rows of a plan, each with its reason; what it acts on comes first."""
    from synapse_ops.operations.cleanup.plan_file import subject_of

    rows = (
        {
            "action": row["action"],
            "what": subject_of(row, plan.policy),
            "reason": row["reason"],
            "size_bytes": row.get("size_bytes", 0),
        }
        for row in plan.first_rows
    )
    columns = dict.fromkeys(("action", "what", "reason"), "string") | {"size_bytes": "int"}
    return {
        "plan_digest": plan.digest,
        **_numbers(plan.totals),
        "entries": table(rows, columns),
        "plan": dg.MetadataValue.path(str(plan.path)),
        **(
            {"warnings": dg.MetadataValue.md("\n".join(f"- {line}" for line in plan.warnings))} if plan.warnings else {}
        ),
    }


def outcome_metadata(digest: str, outcome: "Outcome") -> Metadata:
    """Return what an apply did, and what it left alone because it had changed since the plan."""
    from synapse_ops.operations.cleanup.plan_file import subject_of

    rows = (
        {"action": row["action"], "what": subject_of(row, {}), "reason": row["skipped_because"]} for row in outcome.rows
    )
    return {
        "plan_digest": digest,
        **{f"done_{action.replace('-', '_')}": count for action, count in outcome.done.items()},
        "skipped": outcome.skipped,
        "freed_bytes": outcome.freed_bytes,
        "left_alone": table(rows, dict.fromkeys(("action", "what", "reason"), "string")),
    }


def _numbers(totals: Mapping[str, Any]) -> Metadata:
    return {name: dg.MetadataValue.json(value) if isinstance(value, dict) else value for name, value in totals.items()}


def _schedule(name: str, job: Any, spec: "Spec", *, is_running: bool) -> dg.ScheduleDefinition:
    """Return a schedule. What applies runs on the embedded stack, elsewhere once an operator switched it on."""

    def requests(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        at = context.scheduled_execution_time.isoformat()
        return dg.RunRequest(run_key=at, tags={TAG_TRIGGER: "schedule"})

    return dg.ScheduleDefinition(
        name=name,
        job=job,
        cron_schedule=str(spec.cleanup.schedule),
        execution_timezone=spec.time_zone,
        execution_fn=requests,
        default_status=dg.DefaultScheduleStatus.RUNNING if is_running else dg.DefaultScheduleStatus.STOPPED,
        description=f"{job.description} At {spec.cleanup.schedule} in {spec.time_zone}.",
    )
