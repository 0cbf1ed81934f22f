"""The recovery of the whole stack: two jobs, because a run cannot wait for a person, and the five assets they report.

`recover_plan` restores a copy beside what runs, checks it and shows its digest; `recover_switch` puts exactly that copy
into service. The assets are external, so that no button materializes a recovery by the way.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from synapse_ops.defs.event_metadata import Metadata, summary, table
from synapse_ops.defs.in_run import operation_of, progress_into, recorded
from synapse_ops.defs.policies import GROUP_RECOVERY, OWNERS, PRIORITY_RESTORE, run_tags
from synapse_ops.defs.resources import StackResource
from synapse_ops.domain.recovery.recovery_record import IMPACT, INTEGRITY, RESTORED, STEPS, SWITCH, VALIDATION

if TYPE_CHECKING:
    from synapse_ops.domain.recovery.impact import Impact
    from synapse_ops.domain.recovery.recovery_record import RecoveryRecord

LIMIT = timedelta(hours=24)
_SAYS = {
    IMPACT: "What is down, what can be restored to when, and each way back with its time and its loss. The job "
    "recover_plan reports it; nothing is changed.",
    RESTORED: "PostgreSQL at the moment, each collection from its newest proven backup before it, restored beside what "
    "runs. `restore_s` is of all of them.",
    INTEGRITY: "What the copy holds: rows by database, pages and indexes that were read, rows without a vector and "
    "vectors without a row. `digest` is what a person approves: recover_switch takes it.",
    SWITCH: "The old nodes fenced, or stated to be gone; the copy in their place. Reported by recover_switch.",
    VALIDATION: "A write, a read and a search through the application, every probe, a base backup; and the time it all "
    "took beside objectives.rto and beside what was predicted.",
}


class PlanConfig(dg.Config):
    """To which moment the stack is to be brought."""

    until: str = Field(
        "latest",
        description="latest, or time:2026-11-30T08:15:00Z. A moment that cannot be reached is refused with the nearest "
        "one.",
    )


class SwitchConfig(dg.Config):
    """Which copy is put into service."""

    digest: str = Field(
        description="The digest on the page of integrity_report: the approval of exactly that copy. Another one is "
        "refused with the newest; a used one does nothing."
    )
    old_nodes_gone: str = Field(
        "",
        description="Of servers that are not on this host: your statement that the old nodes cannot come back, such as "
        '"powered off at 10:41, by anna". Not needed on the embedded stack, where both are fenced.',
    )


def recovery_plan_definitions() -> dg.Definitions:
    """Return the five external assets and the two jobs."""
    assets = [
        dg.AssetSpec(
            name,
            group_name=GROUP_RECOVERY,
            owners=OWNERS,
            kinds={"postgres", "qdrant"},
            deps=[before] if before is not None else [],
            description=_SAYS[name],
        )
        for before, name in zip((None, *STEPS), STEPS, strict=False)
    ]
    return dg.Definitions(assets=assets, jobs=[_plan_job(), _switch_job()])


def _plan_job() -> dg.JobDefinition:
    @dg.op(name="prepare_recovery", out=dg.Out(dg.Nothing))
    def prepare(context: dg.OpExecutionContext, config: PlanConfig, stack: StackResource) -> None:
        with operation_of(context.run.run_id, context.instance):
            from synapse_ops.local.recovery_place import place_of
            from synapse_ops.operations.recovery.prepare import prepare_recovery

            opened = stack.open()

            def tell(impact: "Impact") -> None:
                context.log_event(recorded(dg.AssetKey(IMPACT), impact_metadata(impact)))

            record = prepare_recovery(opened, place_of(opened), config.until, tell, progress_into(context.log))
        context.log_event(recorded(dg.AssetKey(RESTORED), restored_metadata(record)))
        context.log_event(recorded(dg.AssetKey(INTEGRITY), integrity_metadata(record), version=record.digest))
        if record.faults:
            raise dg.Failure(f"the copy has faults: {'; '.join(record.faults[:5])}", allow_retries=False)

    @dg.job(
        description="Restore the whole stack to a moment beside what runs, check the copy, and show its digest. "
        "Replaces nothing. Cut anywhere, it goes on from there when it is started again.",
        tags=run_tags(LIMIT, priority=PRIORITY_RESTORE),
    )
    def recover_plan() -> None:
        prepare()

    return recover_plan


def _switch_job() -> dg.JobDefinition:
    @dg.op(name="switch_to_recovery", out=dg.Out(dg.Nothing))
    def switch(context: dg.OpExecutionContext, config: SwitchConfig, stack: StackResource) -> None:
        with operation_of(context.run.run_id, context.instance):
            from synapse_ops.local.recovery_place import place_of
            from synapse_ops.operations.recovery.switch import apply_recovery

            opened = stack.open()

            def tell(switched: "RecoveryRecord") -> None:
                context.log_event(recorded(dg.AssetKey(SWITCH), switch_metadata(switched)))

            progress = progress_into(context.log)
            record = apply_recovery(opened, place_of(opened), config.digest, config.old_nodes_gone, progress, tell)
        context.log_event(recorded(dg.AssetKey(VALIDATION), validation_metadata(record)))

    @dg.job(
        description="Put exactly the copy of a digest into service: fence the old nodes, exchange the servers, try the "
        "system as the application does, take a base backup.",
        tags=run_tags(LIMIT, priority=PRIORITY_RESTORE),
    )
    def recover_switch() -> None:
        switch()

    return recover_switch


def impact_metadata(impact: "Impact") -> Metadata:
    rows = [one.row() for one in impact.options]
    return {
        "recommended": summary(f"{impact.recommended or 'nothing'}: {impact.because}"),
        **({"next_step": impact.command} if impact.command else {}),
        "options": table(rows, dict.fromkeys(rows[0], "string")),
        "down": len(impact.situation.down),
        "what_is_down": dg.MetadataValue.md("\n".join(f"- {line}" for line in impact.situation.down) or "nothing"),
    }


def restored_metadata(record: "RecoveryRecord") -> Metadata:
    parts: Mapping[str, Any] = record.steps[RESTORED]["parts"]
    rows = (
        {
            "store": one.what,
            "backup": one.backup_id,
            "as_of": str(parts[one.what].get("last_commit_at") or one.at or ""),
            "seconds": float(parts[one.what]["seconds"]),
            "note": one.note,
        }
        for one in record.chosen
    )
    columns = {"store": "string", "backup": "string", "as_of": "string", "seconds": "float", "note": "string"}
    return {
        "recovery": record.id,
        "until": record.until,
        "restore_s": record.steps[RESTORED]["seconds"],
        **({"predicted_restore_s": record.predicted_s} if record.predicted_s is not None else {}),
        "stores": table(rows, columns),
        "begins_empty": dg.MetadataValue.md("\n".join(f"- {what}: {why}" for what, why in record.empty.items())),
    }


def integrity_metadata(record: "RecoveryRecord") -> Metadata:
    from synapse_ops.domain.recovery.sentences import prepared_lines

    found = record.steps[INTEGRITY]
    databases = ({"database": name, **facts} for name, facts in found["databases"].items())
    columns = {"database": "string", "tables": "int", "rows": "int", "relations_checked": "int"}
    stores = ({name: value for name, value in one.items() if name != "sentence"} for one in found["stores"])
    shown = dict.fromkeys(("table", "collection"), "string") | dict.fromkeys(
        ("rows", "points", "rows_without_point", "points_without_row"), "int"
    )
    return {
        "digest": record.digest,
        "recovery": record.id,
        "faults": len(record.faults),
        "summary": dg.MetadataValue.md("  \n".join(prepared_lines(record))),
        "databases": table(databases, columns),
        **({"stores": table(stores, shown)} if found["stores"] else {}),
        "rows": sum(facts["rows"] for facts in found["databases"].values()),
        "check_s": found["seconds"],
    }


def switch_metadata(record: "RecoveryRecord") -> Metadata:
    found = record.steps[SWITCH]
    fenced = ({"node": one["node"], "killed": one["killed"], "kept": one["kept"]} for one in found.get("fenced", ()))
    return {
        "recovery": record.id,
        "digest": record.digest,
        "switch_s": found["seconds"],
        "fenced": table(fenced, {"node": "string", "killed": "int", "kept": "string"}),
        **({"old_nodes_gone": found["gone"]} if found["gone"] else {}),
        "claim": found["claim"],
    }


def validation_metadata(record: "RecoveryRecord") -> Metadata:
    from synapse_ops.domain.recovery.sentences import done_lines

    found = record.steps[VALIDATION]
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float) and name != "rto_met"}
    return {
        "summary": dg.MetadataValue.md("  \n".join(done_lines(record))),
        "rto_met": "met" if found["rto_met"] else "MISSED",
        **numbers,
        **({"base_backup": found["base_backup"]} if "base_backup" in found else {}),
    }
