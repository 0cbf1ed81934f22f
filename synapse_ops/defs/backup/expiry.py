"""Expiry of backups of each kind: plan -> retention set, the jobs of the launchpad, and the schedule that deletes.

A plan removes nothing. What removes takes the digest of a plan, which a person gives; only the schedule's own run,
which an operator switched on, carries out the plan that it has just made itself.
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from synapse_ops.defs.backup.kinds import AssetKind
from synapse_ops.defs.backup.verbs import apply_plan, plan_expiry
from synapse_ops.defs.policies import (
    LANE_REMOVAL,
    OWNERS,
    POOL_REPOSITORY_DELETE,
    TAG_TRIGGER,
    code_version,
    freshness_of,
    run_tags,
)
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.spec.assets import spec_key

if TYPE_CHECKING:
    from synapse_ops.defs.place import Place
    from synapse_ops.spec import Spec

EXPIRY_LIMIT = timedelta(hours=4)
AUTOMATIC = {"schedule"}  # triggers that an operator switched on: this approves the plan of their own run


class ExpiryConfig(dg.Config):
    """Which plan an expiry carries out."""

    plan_digest: str = Field(
        "",
        description="The plan_digest on the page of the expiry plan: the approval of exactly that plan. "
        "Empty is refused, except in a run of the expiry schedule, which makes its plan itself.",
    )


def expiry_assets(kind: AssetKind, spec: "Spec") -> list[dg.AssetsDefinition]:
    """Return the plan and the retention set of one kind."""

    @dg.asset(
        key=kind.plan_key,
        deps=[kind.proof_key, spec_key("backup"), spec_key("retention")],
        group_name=kind.group,
        owners=OWNERS,
        kinds={"s3"},
        code_version=code_version("synapse_ops.domain.backup.retention", "synapse_ops.domain.backup.expiry_plan"),
        freshness_policy=freshness_of(spec.proof.schedule.longest_gap(spec.time_zone)),
        description=f"What an expiry would do: every backup of a {kind.noun}, kept or expired, with the reason. "
        f"Nothing is removed here. `plan_digest` names exactly this plan; {kind.job('expire_apply')} takes it.",
    )
    def expiry_plan(context: dg.AssetExecutionContext, stack: StackResource) -> dg.MaterializeResult[None]:
        digest, metadata = plan_expiry(context, stack, kind)
        return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(digest))

    @dg.asset(
        key=kind.retention_key,
        deps=[kind.plan_key],
        pool=POOL_REPOSITORY_DELETE,
        group_name=kind.group,
        owners=OWNERS,
        kinds={"s3"},
        code_version=code_version("synapse_ops.operations.backup.expire"),
        description="What an expiry removed: exactly the plan of one digest, each entry checked again before. "
        "Refused without a digest, for one that names no plan of the last 24 hours, and over "
        "retention.max_expiry_ratio; a used digest does nothing.",
    )
    def retention_set(
        context: dg.AssetExecutionContext, config: ExpiryConfig, stack: StackResource
    ) -> dg.MaterializeResult[None]:
        digest = config.plan_digest or _plan_of_same_run(context, kind)
        return dg.MaterializeResult(metadata=apply_plan(context, stack, digest, kind))

    return [expiry_plan, retention_set]


def expiry_jobs(kind: AssetKind, spec: "Spec", place: "Place") -> dg.Definitions:
    """Return the jobs that plan, apply, and do both, and the schedule of the last."""
    of_kind = f"{kind.noun}s"
    plan = dg.define_asset_job(
        kind.job("expire_plan"),
        selection=dg.AssetSelection.assets(kind.plan_key),
        description=f"Plan an expiry of {of_kind}' backups: what it would remove, and why. Removes nothing; prints the "
        f"digest for {kind.job('expire_apply')}.",
        tags=run_tags(EXPIRY_LIMIT, lane=LANE_REMOVAL),
    )
    apply = dg.define_asset_job(
        kind.job("expire_apply"),
        selection=dg.AssetSelection.assets(kind.retention_key),
        description="Apply exactly the plan with the given digest.",
        tags=run_tags(EXPIRY_LIMIT, lane=LANE_REMOVAL),
    )
    both = dg.define_asset_job(
        kind.job("expire"),
        selection=dg.AssetSelection.assets(kind.plan_key, kind.retention_key),
        description="Plan, and carry out that plan: what the expiry schedule starts where an operator switched it on.",
        tags=run_tags(EXPIRY_LIMIT, lane=LANE_REMOVAL),
    )
    schedule = _schedule(f"{kind.prefix}_expiry_schedule", both, spec, is_running=place.is_embedded)
    return dg.Definitions(jobs=[plan, apply, both], schedules=[schedule])


def _schedule(name: str, job: Any, spec: "Spec", *, is_running: bool) -> dg.ScheduleDefinition:
    """Return the schedule that deletes: running on the embedded stack, elsewhere once an operator switched it on."""

    def requests(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        at = context.scheduled_execution_time.isoformat()
        return dg.RunRequest(run_key=at, tags={TAG_TRIGGER: "schedule"})

    status = dg.DefaultScheduleStatus.RUNNING if is_running else dg.DefaultScheduleStatus.STOPPED
    return dg.ScheduleDefinition(
        name=name,
        job=job,
        cron_schedule=str(spec.proof.schedule),
        execution_timezone=spec.time_zone,
        execution_fn=requests,
        default_status=status,
        description="Plan an expiry and carry it out. It starts with the proofs; what they prove counts the next time.",
    )


def _plan_of_same_run(context: dg.AssetExecutionContext, kind: AssetKind) -> str:
    """Return the digest of the plan made in this very run, when its schedule started it; else ""."""
    if context.run.tags.get(TAG_TRIGGER) not in AUTOMATIC:
        return ""
    event = context.instance.get_latest_materialization_event(kind.plan_key)
    made = event.asset_materialization if event is not None else None
    if event is None or made is None or event.run_id != context.run.run_id:
        return ""
    return str(made.metadata["plan_digest"].value)
