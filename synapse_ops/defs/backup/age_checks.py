"""`backup_age` and `proof_age`: is each subject backed up, and proven, as its schedules promise? From the repository.

They stand where a freshness policy would: that one is of a whole asset, so one good partition keeps a late one green.
The sensor of `recoverability`, which reads the repository every few minutes, reports them when they change.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from synapse_ops.defs.backup.kinds import AssetKind
from synapse_ops.defs.backup.restore_check import result_of
from synapse_ops.defs.in_run import operation_of
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.runbook_links import runbook_of_check
from synapse_ops.domain.backup.ages import AgeVerdict, backup_ages, proof_ages

if TYPE_CHECKING:
    from synapse_ops.operations.backup.catalog import Catalog
    from synapse_ops.operations.stack import Stack

BACKUP_AGE = "backup_age"
PROOF_AGE = "proof_age"


def age_evaluations(
    kind: AssetKind, stack: "Stack", instance: dg.DagsterInstance, catalog: "Catalog", now: datetime
) -> tuple[dg.AssetCheckEvaluation, ...]:
    """Return the verdicts on all subjects of a kind that must have backups; none where there is nothing to judge."""
    from synapse_ops.systems.dagster_storage import newest_as_target

    spec, wanted = stack.spec, kind.expected(stack, instance)
    if not wanted:
        return ()
    entries = {subject: catalog.of_subject(subject) for subject in wanted}
    zone, proof_gap = spec.time_zone, spec.proof.schedule.longest_gap(spec.time_zone) + spec.proof.timeout
    verdicts: dict[tuple[dg.AssetKey, str], AgeVerdict] = {
        (kind.backup_key, BACKUP_AGE): backup_ages(entries, kind.schedule(spec).longest_gap(zone), now, zone),
        (kind.proof_key, PROOF_AGE): proof_ages(entries, proof_gap, now, zone),
    }
    return tuple(
        dg.AssetCheckEvaluation(
            asset_key=key,
            check_name=name,
            passed=verdict.passed,
            severity=dg.AssetCheckSeverity.ERROR,
            description=verdict.sentence,
            metadata={
                f"late_{kind.noun}s": len(verdict.late),
                f"{kind.noun}s": len(wanted),
                **runbook_of_check(name),
            },
            target_materialization_data=newest_as_target(instance, key),
        )
        for (key, name), verdict in verdicts.items()
        if not verdict.is_empty
    )


def age_checks(kind: AssetKind) -> dg.AssetChecksDefinition:
    """Return the two checks of one kind, for a person who evaluates them."""

    @dg.multi_asset_check(
        name=f"{kind.kind.kind.prefix}_ages",
        specs=[
            dg.AssetCheckSpec(
                BACKUP_AGE,
                asset=kind.backup_key,
                metadata=runbook_of_check(BACKUP_AGE),
                description=f"Red while the newest backup of any {kind.noun} is older than its schedule promises, and "
                "two hours; it names each that is late.",
            ),
            dg.AssetCheckSpec(
                PROOF_AGE,
                asset=kind.proof_key,
                metadata=runbook_of_check(PROOF_AGE),
                description=f"Red while a backup of any {kind.noun} waits for its proof for longer than a window of "
                "proof.schedule, proof.timeout and two hours; it names each that waits.",
            ),
        ],
        can_subset=True,
    )
    def ages(context: dg.AssetCheckExecutionContext, stack: StackResource) -> Iterator[dg.AssetCheckResult]:
        with operation_of(context.run.run_id, context.instance):
            opened = stack.open()
            found = age_evaluations(kind, opened, context.instance, kind.catalog(opened), datetime.now(UTC))
        wanted = {(key.asset_key, key.name) for key in context.selected_asset_check_keys}
        yield from (result_of(one) for one in found if (one.asset_key, one.check_name) in wanted)

    return ages
