"""Expiry of backups: a plan of each kind as an asset; jobs apply one and report what they removed to another asset.

A plan removes nothing. What removes takes the digest of a plan, which a person gives. The one exception is a job of its
own, which makes its plans and carries them out: its schedule runs only where an operator switched it on.
"""

from collections.abc import Sequence
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from synapse_ops.defs.backup.kinds import AssetKind
from synapse_ops.defs.backup.verbs import apply_plan, plan_expiry
from synapse_ops.defs.in_run import recorded
from synapse_ops.defs.policies import (
    LANE_REMOVAL,
    LANE_REPORT,
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


def expiry_assets(kind: AssetKind, spec: "Spec") -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """Return the plan, and the retention set that jobs report."""

    @dg.asset(
        key=kind.plan_key,
        deps=[kind.proof_key, spec_key("backup"), spec_key("retention")],
        group_name=kind.group,
        owners=OWNERS,
        kinds={"s3"},
        code_version=code_version("synapse_ops.domain.backup.retention", "synapse_ops.domain.backup.expiry_plan"),
        freshness_policy=freshness_of(spec.proof.schedule.longest_gap(spec.time_zone)),
        description=f"What an expiry would do: every backup of a {kind.noun}, kept or expired, with the reason. "
        "Nothing is removed here. `plan_digest` names exactly this plan; the job expire_apply takes it.",
    )
    def expiry_plan(context: dg.AssetExecutionContext, stack: StackResource) -> dg.MaterializeResult[None]:
        digest, metadata = plan_expiry(context, stack, kind)
        return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(digest))

    retention_set = dg.AssetSpec(
        kind.retention_key,
        deps=[kind.plan_key],
        group_name=kind.group,
        owners=OWNERS,
        kinds={"s3"},
        description="What an expiry removed: exactly the plan of one digest, each entry checked again before. Reported "
        "by the jobs expire_apply and expire; it cannot be materialized by itself.",
    )
    return [expiry_plan, retention_set]


def expiry_jobs(kinds: Sequence[AssetKind], spec: "Spec", place: "Place") -> dg.Definitions:
    """Return the jobs that plan, apply, and do both, and the schedule of the last."""
    plan = dg.define_asset_job(
        "expire_plan",
        selection=dg.AssetSelection.assets(*(kind.plan_key for kind in kinds)),
        description="Plan an expiry of each kind of backup: what it would remove, and why. Removes nothing; the plans' "
        "pages show the digests for expire_apply.",
        tags=run_tags(EXPIRY_LIMIT, lane=LANE_REPORT),
    )
    both = _expire(kinds)
    return dg.Definitions(jobs=[plan, _apply(kinds), both], schedules=[_schedule(both, spec, place)])


def _apply(kinds: Sequence[AssetKind]) -> dg.JobDefinition:
    words = {kind.kind.word: kind.kind.word for kind in kinds}
    choice: Any = Enum("Kind", words)  # type: ignore[misc]

    class ExpiryConfig(dg.Config):
        """Which plan an expiry carries out."""

        kind: choice = Field(description=f"What kind of backup expires: {', '.join(words)}.")
        plan_digest: str = Field(
            description="The plan_digest on the page of the expiry plan: the approval of exactly that plan. Refused "
            "when no plan of the last 24 hours has it, and over retention.max_expiry_ratio; a used one does nothing."
        )

    @dg.op(name="apply_expiry", pool=POOL_REPOSITORY_DELETE, out=dg.Out(dg.Nothing))
    def apply(context: dg.OpExecutionContext, config: ExpiryConfig, stack: StackResource) -> None:
        kind = next(kind for kind in kinds if kind.kind.word == config.kind.value)
        context.log_event(recorded(kind.retention_key, apply_plan(context, stack, config.plan_digest, kind)))

    @dg.job(
        description="Apply exactly the expiry plan with the given digest.",
        tags=run_tags(EXPIRY_LIMIT, lane=LANE_REMOVAL),
    )
    def expire_apply() -> None:
        apply()

    return expire_apply


def _expire(kinds: Sequence[AssetKind]) -> dg.JobDefinition:
    @dg.job(
        description="Plan an expiry of each kind of backup, and carry out these plans at once: what expiry_schedule "
        "starts where an operator switched it on.",
        tags=run_tags(EXPIRY_LIMIT, lane=LANE_REMOVAL),
    )
    def expire() -> None:
        for kind in kinds:
            _plan_and_apply(kind)()  # each by itself: what one refuses stops no other

    return expire


def _plan_and_apply(kind: AssetKind) -> dg.OpDefinition:
    @dg.op(name=f"expire_{kind.prefix}", pool=POOL_REPOSITORY_DELETE, out=dg.Out(dg.Nothing))
    def plan_and_apply(context: dg.OpExecutionContext, stack: StackResource) -> None:
        digest, metadata = plan_expiry(context, stack, kind)
        context.log_event(recorded(kind.plan_key, metadata, version=digest))
        context.log_event(recorded(kind.retention_key, apply_plan(context, stack, digest, kind)))

    return plan_and_apply


def _schedule(job: dg.JobDefinition, spec: "Spec", place: "Place") -> dg.ScheduleDefinition:
    """Return the schedule that deletes: running on the embedded stack, elsewhere once an operator switched it on."""

    def requests(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        at = context.scheduled_execution_time.isoformat()
        return dg.RunRequest(run_key=at, tags={TAG_TRIGGER: "schedule"})

    return dg.ScheduleDefinition(
        name="expiry_schedule",
        job=job,
        cron_schedule=str(spec.proof.schedule),
        execution_timezone=spec.time_zone,
        execution_fn=requests,
        default_status=dg.DefaultScheduleStatus.RUNNING if place.is_embedded else dg.DefaultScheduleStatus.STOPPED,
        description="Plan an expiry and carry it out. It starts with the proofs; what they prove counts the next time.",
    )
