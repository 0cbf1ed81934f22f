"""What is cleaned up: log files, temporary files, idle cache keys, left-over snapshots, and Dagster's own history.

Each kind is a plan asset and an apply asset that takes the plan's digest; the history's plan and apply are one asset,
because what it removes is the record that this graph shows. A plan only looks; an apply does exactly that plan.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from synapse_ops.defs.event_metadata import Metadata, table
from synapse_ops.defs.in_run import operation_of, progress_into
from synapse_ops.defs.policies import (
    GROUP_CLEANUP,
    LANE_REMOVAL,
    OWNERS,
    POOL_CLEANUP,
    TAG_TRIGGER,
    code_version,
    freshness_of,
    run_tags,
)
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.spec.assets import spec_key
from synapse_ops.errors import Refused

if TYPE_CHECKING:
    from synapse_ops.defs.place import Place
    from synapse_ops.operations.cleanup.plan_file import Outcome, StoredPlan
    from synapse_ops.operations.stack import Stack
    from synapse_ops.spec import Spec

CLEANUP_LIMIT = timedelta(hours=6)
AUTOMATIC = {"schedule"}  # triggers that an operator switched on: this approves the plan of their own run
HISTORY = "run_history_cleanup"
REDIS_CHECK = "redis_fits_spec"


@dataclass(frozen=True)
class Group:
    """The two assets of one kind. modules: what they do. store: the block of the spec that says where, if any."""

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
)


class CleanupConfig(dg.Config):
    """Which plan is carried out."""

    plan_digest: str = Field(
        "",
        description="The plan_digest that the plan asset printed: the approval of exactly that plan. "
        "Empty is refused, except in a run of the cleanup schedule, which makes its plan itself.",
    )


class HistoryConfig(dg.Config):
    """Which plan is carried out, if any."""

    plan_digest: str = Field(
        "",
        description="The plan_digest that an earlier run printed: the approval of exactly that plan. Empty: a plan is "
        "made and nothing is removed, except in a run of the cleanup schedule, which carries its own plan out.",
    )


def cleanup_definitions(spec: "Spec", place: "Place") -> dg.Definitions:
    """Return the group's assets, check, jobs and schedules."""
    freshness = freshness_of(spec.cleanup.schedule.longest_gap(spec.time_zone))
    assets = [_history(freshness), *(asset for group in GROUPS for asset in _pair(group, freshness))]
    plans, applies = [group.plan for group in GROUPS], [group.apply for group in GROUPS]
    look = _job(
        "cleanup_plan", plans, "Plan a cleanup: what it would do, and why. Changes nothing; prints the digests."
    )
    whole = _job("cleanup", [*plans, *applies, HISTORY], "Plan, and carry out those plans: what the schedule starts.")
    jobs = [look, whole]
    jobs.append(
        _job("run_history_cleanup_job", [HISTORY], "Plan what is removed of Dagster's history, or carry out a plan.")
    )
    jobs += [_job(f"{name}_apply", [name], "Apply exactly the plan with the given digest.") for name in applies]
    schedules = [
        _schedule("cleanup_plan_schedule", look, spec, is_running=not place.is_embedded),
        _schedule("cleanup_schedule", whole, spec, is_running=place.is_embedded),
    ]
    return dg.Definitions(assets=assets, asset_checks=[_redis_check()], jobs=jobs, schedules=schedules)


def _pair(group: Group, freshness: dg.FreshnessPolicy) -> list[Any]:
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

    @dg.asset(
        name=group.apply,
        deps=[group.plan],
        pool=POOL_CLEANUP,
        group_name=GROUP_CLEANUP,
        owners=OWNERS,
        kinds={group.shown_as},
        code_version=code_version(*group.modules),
        description=group.apply_text,
    )
    def apply(
        context: dg.AssetExecutionContext, config: CleanupConfig, stack: StackResource
    ) -> dg.MaterializeResult[None]:
        digest = config.plan_digest or _plan_of_same_run(context, dg.AssetKey(group.plan))
        return dg.MaterializeResult(metadata=carry_out(context, stack, group, digest))

    return [plan, apply]


def _history(freshness: dg.FreshnessPolicy) -> Any:
    @dg.asset(
        name=HISTORY,
        deps=[spec_key("cleanup")],
        pool=POOL_CLEANUP,
        group_name=GROUP_CLEANUP,
        owners=OWNERS,
        kinds={"dagster"},
        code_version=code_version("synapse_ops.operations.cleanup.run_history", "synapse_ops.systems.dagster_storage"),
        freshness_policy=freshness,
        description="Dagster's own runs, output, ticks and events outside of runs by age. The newest event of each "
        "asset, partition and check, failover records and records of existing backups stay. Without the digest "
        "of a plan it makes one and removes nothing, except in the schedule's run.",
    )
    def run_history_cleanup(
        context: dg.AssetExecutionContext, config: HistoryConfig, stack: StackResource
    ) -> dg.MaterializeResult[None]:
        digest, metadata = config.plan_digest, {}
        if not digest:
            plan = make_plan(context, stack, "history")
            metadata = plan_metadata(plan)
            if context.run.tags.get(TAG_TRIGGER) not in AUTOMATIC:
                return dg.MaterializeResult(metadata=metadata)
            digest = plan.digest
        with operation_of(context.run.run_id, context.instance):
            outcome = _verbs(stack.open(), "history", context)[1](digest)
        return dg.MaterializeResult(metadata={**metadata, **outcome_metadata(digest, outcome)})

    return run_history_cleanup


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
        if not digest:
            raise Refused(
                "a cleanup needs the digest of the plan that it carries out",
                hint=f"Read the plan on the page of {group.plan}, then start {group.apply}_apply with its plan_digest.",
            )
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
            metadata={"findings": table(rows, dict.fromkeys(("level", "setting", "found", "reason"), "string"))},
        )

    return redis_fits_spec


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


def _plan_of_same_run(context: dg.AssetExecutionContext, plan_key: dg.AssetKey) -> str:
    """Return the digest of the plan made in this very run, when a schedule started it; else ""."""
    if context.run.tags.get(TAG_TRIGGER) not in AUTOMATIC:
        return ""
    event = context.instance.get_latest_materialization_event(plan_key)
    made = event.asset_materialization if event is not None else None
    if event is None or made is None or event.run_id != context.run.run_id:
        return ""
    return str(made.metadata["plan_digest"].value)


def _job(name: str, assets: list[str], description: str) -> Any:
    selection = dg.AssetSelection.assets(*assets)
    return dg.define_asset_job(
        name, selection=selection, description=description, tags=run_tags(CLEANUP_LIMIT, lane=LANE_REMOVAL)
    )


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
