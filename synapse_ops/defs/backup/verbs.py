"""One function per verb, shared by assets, launchpad jobs and sensors: run the operation, tag the run, report."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from synapse_ops.defs.backup.kinds import AssetKind
from synapse_ops.defs.backup.restore_check import PROOF_CHECK_NAME, evaluation_of, judge_now
from synapse_ops.defs.event_metadata import BACKUP_ID, Metadata, backup_metadata, table
from synapse_ops.defs.in_run import operation_of, progress_into, tag_run, yield_processor
from synapse_ops.defs.policies import TAG_BACKUP_ID, TAG_SET_ID
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.runbook_links import runbook_of_check
from synapse_ops.errors import PlanChanged, Refused

if TYPE_CHECKING:
    from synapse_ops.domain.backup.expiry_plan import ExpiryPlan
    from synapse_ops.operations.backup.expire import ExpiryReport
    from synapse_ops.operations.backup.proving import ProofReport

_TAG_BACKFILL = "dagster/backfill"


def back_up(context: Any, stack: StackResource, kind: AssetKind) -> tuple[str, Metadata]:
    """Take a backup of the run's partition; return its id and what the asset page shows of it.

    What a schedule's tick or a backfill started belongs together: their name is the set id.
    """
    yield_processor()
    with operation_of(context.run.run_id, context.instance):
        set_id = context.run.tags.get(TAG_SET_ID) or context.run.tags.get(_TAG_BACKFILL)
        report = kind.kind.verbs().take(
            stack.open(), context.partition_key, set_id=set_id, progress=progress_into(context.log)
        )
    tag_run(context.instance, context.run.run_id, {TAG_BACKUP_ID: report.record.backup_id})
    for warning in report.warnings:
        context.log.warning(warning)
    metadata = backup_metadata(report.record, report.url, report.tables())
    metadata.pop("correlation_id", None)  # it is the id of this run
    if report.warnings:
        metadata["warnings"] = _md(report.warnings)
    return report.record.backup_id, metadata


class ProofConfig(dg.Config):
    """Which backup a proof restores."""

    backup_id: str = Field(
        "",
        description="Id of the backup to restore, as `synapse-ops backup list` prints it; an unknown one is refused "
        "with the nearest ids. Empty: the newest backup that has not been proven.",
    )
    only_untried: bool = Field(
        False, description="Do nothing when the backup already has a proof, whatever its verdict."
    )


def prove(context: Any, stack: StackResource, kind: AssetKind, config: ProofConfig) -> "ProofReport | None":
    """Prove a backup, the newest unproven one where no id is given, and report the verdict on all of its kind.

    Returns None when there is nothing to prove. The proof is written and reported whatever its verdict; the caller
    fails the run afterwards. The verdict is read anew: a proof may take an hour, and others prove meanwhile.
    """
    yield_processor()
    with operation_of(context.run.run_id, context.instance):
        opened = stack.open()
        report = kind.kind.prove(
            kind.kind.repository(opened),
            backup_id=config.backup_id or None,
            subject=context.partition_key,
            only_untried=config.only_untried,
            identities=opened.age_identities(),
            work_dir=opened.state_dir / "proof",
            timeout_s=opened.spec.proof.timeout.total_seconds(),
            progress=progress_into(context.log),
        )
        if report is None:
            context.log.info("there is nothing to prove: every backup is proven, or was tried")
            return None
        if report.not_recorded is not None:
            raise report.not_recorded
        tag_run(context.instance, context.run.run_id, {TAG_BACKUP_ID: report.record.backup_id})
        judgement = judge_now(kind, opened, context.instance)
        if not judgement.is_empty:
            evaluation = evaluation_of(
                judgement,
                kind=kind,
                instance=context.instance,
                backup_id=report.record.backup_id,
                run_id=context.run.run_id,
            )
            context.instance.report_runless_asset_event(evaluation)
    return report


def refuse_unless_proven(report: "ProofReport") -> None:
    """Fail the run of a proof whose verdict is anything but proven. The event and the check are recorded already."""
    record = report.record
    if not report.is_proven:
        reasons = [record.reason, *record.differences[:10]]
        raise dg.Failure(
            f"backup {record.backup_id} is {record.verdict}: " + "; ".join(reason for reason in reasons if reason),
            metadata={
                BACKUP_ID: record.backup_id,
                "verdict": str(record.verdict),
                "url": report.url,
                **runbook_of_check(PROOF_CHECK_NAME),
            },
            allow_retries=False,
        )


def plan_expiry(context: Any, stack: StackResource, kind: AssetKind) -> tuple[str, Metadata]:
    """Make an expiry plan; return its digest, and totals and first entries with reasons for the asset page."""
    with operation_of(context.run.run_id, context.instance):
        from synapse_ops.operations.backup.expire import make_expiry_plan
        from synapse_ops.operations.backup_kinds import read_wal

        opened = stack.open()
        policy = kind.kind.policy(opened.spec)
        plan = make_expiry_plan(
            kind.kind.repository(opened), policy, datetime.now(UTC), kind=kind.kind.name, wal=read_wal
        )
    return plan.digest, plan_metadata(plan, kind)


def apply_plan(context: Any, stack: StackResource, plan_digest: str, kind: AssetKind) -> Metadata:
    """Do exactly the plan of that digest. Each entry is checked again by the operation.

    A digest that names no plan is refused with the newest one; a used digest does nothing and says when it was used.
    """
    with operation_of(context.run.run_id, context.instance):
        from synapse_ops.operations.backup.expire import apply_expiry
        from synapse_ops.operations.backup.expiry_plans import is_plan_digest
        from synapse_ops.operations.backup_kinds import read_wal

        choices = _last_plan(context.instance, kind)
        hint = (
            f"Read the plan on the page of {kind.plan_key.to_user_string()}, "
            "then start expire_apply with its plan_digest."
        )
        if not is_plan_digest(plan_digest):
            raise Refused(
                f'"{plan_digest}" is not the digest of a plan: it has 16 hex digits', detail=choices, hint=hint
            )
        try:
            report = apply_expiry(kind.kind.repository(stack.open()), plan_digest, datetime.now(UTC), wal=read_wal)
        except PlanChanged as error:
            raise PlanChanged(error.message, detail=choices, hint=hint) from error
    return report_metadata(report)


def restore_backup(
    context: Any, stack: StackResource, kinds: Sequence[AssetKind], *, backup_id: str, target: str, until: str = ""
) -> dg.AssetObservation:
    """Restore a backup, of whichever kind, into a target that does not exist yet; return the event for its asset."""
    with operation_of(context.run.run_id, context.instance):
        from synapse_ops.operations.backup.catalog import locate_backup
        from synapse_ops.operations.backup.restoring import RestoreRequest
        from synapse_ops.operations.backup_kinds import BASES
        from synapse_ops.operations.database.restore_cluster import newest_place

        opened = stack.open()
        by_url = {found.url: found for found in (kind.kind.repository(opened) for kind in kinds)}
        if backup_id == BASES.word:
            until = until or "latest"
            repository = opened.database_repository()
            place = newest_place(repository, until, None, opened.age_identities())
        else:
            repository, place = locate_backup(list(by_url.values()), backup_id)
        kind = next(kind for kind in kinds if kind.kind.name == place.kind)
        request = RestoreRequest(
            repository=repository,
            place=place,
            target=target,
            open_stack=lambda: opened,
            until=until or None,
            work_dir=opened.state_dir / "proof",
            identities=opened.age_identities(),
            progress=progress_into(context.log),
        )
        report = kind.kind.apply_restore(request, kind.kind.plan_restore(request))
    tag_run(context.instance, context.run.run_id, {TAG_BACKUP_ID: place.backup_id})
    metadata: Metadata = {
        BACKUP_ID: place.backup_id,
        "restored_to": report.plan.where,
        "restore_s": report.restore_s,
        kind.kind.items: report.item_count,
        **{f"{name}_phase_s": value for name, value in report.phase_s.items()},
        **({"notes": _md(report.notes)} if report.notes else {}),
    }
    return dg.AssetObservation(kind.backup_key, partition=place.subject, metadata=metadata)


def plan_metadata(plan: "ExpiryPlan", kind: AssetKind) -> Metadata:
    """Return totals and first entries of an expiry plan, each with its reason; what it removes comes first."""
    entries = sorted(plan.entries, key=lambda entry: not entry.removes)  # stable: the plan's own order within each
    rows = (
        {
            "action": str(entry.action),
            kind.noun: entry.place.subject,
            "backup": entry.place.backup_id,
            "reason": entry.reason,
            "size_bytes": entry.size_bytes,
            "taken_at": _time(entry.taken_at),
            "proven_at": _time(entry.proven_at) or entry.doubt,
        }
        for entry in entries
    )
    columns = dict.fromkeys(("action", kind.noun, "backup", "reason"), "string")
    columns |= {"size_bytes": "int", "taken_at": "string", "proven_at": "string"}
    return {
        "plan_digest": plan.digest,
        **plan.totals.as_json(),
        "foreign_objects": plan.foreign_count,
        "entries": table(rows, columns),
        **({"warnings": _md(plan.warnings)} if plan.warnings else {}),
        **({"notes": _md(plan.notes)} if plan.notes else {}),
    }


def report_metadata(report: "ExpiryReport") -> Metadata:
    """Return what an expiry removed, and what it left because it had changed since the plan was made."""
    removed = (
        {"action": str(entry.action), "backup": entry.place.backup_id, "size_bytes": entry.size_bytes}
        for entry in report.removed
    )
    return {
        "plan_digest": report.digest,
        "removed": len(report.removed),
        "skipped": len(report.skipped),
        "freed_bytes": report.freed_bytes,
        "report": str(report),
        "entries": table(removed, {"action": "string", "backup": "string", "size_bytes": "int"}),
        **({"warnings": _md(report.warnings)} if report.warnings else {}),
    }


def _md(lines: Sequence[str]) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md("\n".join(f"- {line}" for line in lines))


def _time(moment: datetime | None) -> str:
    return moment.isoformat(timespec="seconds") if moment is not None else ""


def _last_plan(instance: dg.DagsterInstance, kind: AssetKind) -> str:
    """Return one line that names the newest plan and when it was made."""
    event = instance.get_latest_materialization_event(kind.plan_key)
    made = event.asset_materialization if event is not None else None
    if event is None or made is None:
        return "no plan has been made yet"
    digest = made.metadata["plan_digest"].value
    return f"newest plan: {digest}, made {datetime.fromtimestamp(event.timestamp, UTC).isoformat(timespec='seconds')}"
