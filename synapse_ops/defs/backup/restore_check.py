"""`restore_proven`, of what is backed up: can it be restored? `newest_proof_passed`, of its proof: did the last pass?

Both judge all subjects of a kind, from the repository alone.

Dagster keeps only the last evaluation of a check, so a verdict on one partition would let a green one hide a red one.
Unknown is never good: an unproven, differing, void or aged proof is a failure, and so is a database without any backup.
A proof that could not be attempted fails a backup that has no other, and is a warning beside one that passed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from synapse_ops.defs.backup.kinds import AssetKind
from synapse_ops.defs.event_metadata import Metadata, table
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.runbook_links import runbook_of_check
from synapse_ops.domain.backup.faults import fault_of, newest_proof_fault_of, warning_of
from synapse_ops.domain.first_of_many import MOST, first_of_many

if TYPE_CHECKING:
    from synapse_ops.domain.backup.catalog import CatalogEntry
    from synapse_ops.operations.backup.catalog import Catalog
    from synapse_ops.operations.stack import Stack

CHECK_NAME = "restore_proven"
PROOF_CHECK_NAME = "newest_proof_passed"


@dataclass(frozen=True)
class Judgement:
    """check: whose verdict it is. failing, warned: (database, reason).

    waiting: databases whose newest backup has had no proof yet.
    proven: (database, backup id, proven at, outcome in words) of the newest proven backup of each database.
    """

    check: dg.AssetCheckKey
    failing: tuple[tuple[str, str], ...]
    warned: tuple[tuple[str, str], ...]
    waiting: tuple[str, ...]
    proven: tuple[tuple[str, str, datetime, str], ...]

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing to judge, which is not a pass: for example, no collection was ever discovered."""
        return not (self.failing or self.warned or self.waiting or self.proven)

    @property
    def is_due(self) -> bool:
        """Whether it is reported now: nothing waits for its first proof, or something else fails meanwhile."""
        waits_only = all(name in self.waiting for name, _ in self.failing)
        return not self.is_empty and not (self.waiting and waits_only)

    @property
    def passed(self) -> bool:
        return not self.failing and not self.warned

    @property
    def severity(self) -> dg.AssetCheckSeverity:
        return dg.AssetCheckSeverity.ERROR if self.failing or not self.warned else dg.AssetCheckSeverity.WARN

    @property
    def newest_proven(self) -> tuple[tuple[str, str, datetime, str], ...]:
        """Of few all that are proven, in order; of many the newest, so that each new proof is among them."""
        if len(self.proven) <= MOST:
            return self.proven
        return tuple(sorted(self.proven, key=lambda row: row[2], reverse=True))

    @property
    def sentence(self) -> str:
        """The verdict in words: what cannot be counted on and why, or what was restored; ids of backups after it.

        Of many subjects it names some.
        """
        reasons = first_of_many([f"{name}: {reason}" for name, reason in (*self.failing, *self.warned)], "; ")
        if self.failing:
            names = first_of_many([name for name, _ in self.failing])
            return f"Do not count on the newest backup of {names}. {reasons}"
        proven: dict[str, list[str]] = {}
        for name, found, _, outcome in self.newest_proven:
            proven.setdefault(f"{outcome[:1].upper()}{outcome[1:]}", []).append(f"{name} ({found})")
        return reasons or " ".join(f"{outcome}: {first_of_many(names)}." for outcome, names in proven.items())


def judge_repository(
    check: dg.AssetCheckKey,
    catalog: "Catalog",
    databases: Sequence[str],
    proof_max_age: timedelta,
    now: datetime,
    judge: "Callable[[Sequence[CatalogEntry], timedelta, datetime], str]" = fault_of,
) -> Judgement:
    """Return the verdict on every database of the spec. judge: why its backups fail, newest first, or ""."""
    failing, warned, waiting, proven = [], [], [], []
    for database in databases:
        entries = catalog.of_subject(database)
        reason = judge(entries, proof_max_age, now)
        if reason:
            failing.append((database, reason))
        warning = warning_of(entries, proof_max_age, now)
        if warning:
            warned.append((database, warning))
        if entries and not entries[0].was_tried:
            waiting.append(database)
        newest = next((entry for entry in entries if entry.proven_at is not None), None)
        if newest is not None and newest.proven_at is not None:
            proven.append((database, newest.place.backup_id, newest.proven_at, newest.outcome))
    return Judgement(check, tuple(failing), tuple(warned), tuple(waiting), tuple(proven))


def judge_now(
    kind: AssetKind, stack: "Stack", instance: dg.DagsterInstance, catalog: "Catalog | None" = None
) -> Judgement:
    """Return whether all subjects of a kind can be restored, read from the repository now."""
    catalog, check = catalog or kind.catalog(stack), dg.AssetCheckKey(kind.backup_key, CHECK_NAME)
    expected, max_age = kind.expected(stack, instance), kind.proof_max_age(stack)
    return judge_repository(check, catalog, expected, max_age, datetime.now(UTC))


def judge_proofs(
    kind: AssetKind, stack: "Stack", instance: dg.DagsterInstance, catalog: "Catalog | None" = None
) -> Judgement:
    """Return whether the newest proof of each subject of a kind passed and stands. One never tried is no fault."""
    catalog, check = catalog or kind.catalog(stack), dg.AssetCheckKey(kind.proof_key, PROOF_CHECK_NAME)
    expected, max_age = kind.expected(stack, instance), kind.proof_max_age(stack)
    judged = judge_repository(check, catalog, expected, max_age, datetime.now(UTC), newest_proof_fault_of)
    return replace(judged, waiting=())


def proof_check_spec(kind: AssetKind) -> dg.AssetCheckSpec:
    """Return what the proof of a kind is checked for, in its own run and whenever the repository says otherwise."""
    return dg.AssetCheckSpec(
        PROOF_CHECK_NAME,
        asset=kind.proof_key,
        metadata=runbook_of_check(PROOF_CHECK_NAME),
        description=f"Red while the newest proof of any {kind.noun} did not pass, whoever made it; a warning while it "
        f"could not be attempted. The page above shows the last that passed. Lists the failing ones.",
    )


def evaluation_of(
    judgement: Judgement,
    *,
    kind: AssetKind,
    instance: dg.DagsterInstance,
    backup_id: str | None = None,
    run_id: str | None = None,
) -> dg.AssetCheckEvaluation:
    """Return the verdict as an event of its asset, with the backup and run that led to it.

    Its table holds what fails or warns, and of what is proven the newest: each proof writes one.
    """
    rows = [{kind.noun: name, "verdict": "failing", "what": reason} for name, reason in judgement.failing]
    rows += [{kind.noun: name, "verdict": "warning", "what": reason} for name, reason in judgement.warned]
    rows += [
        {kind.noun: name, "verdict": "proven", "what": f"{found} at {at.isoformat(timespec='seconds')}, {outcome}"}
        for name, found, at, outcome in judgement.newest_proven[:MOST]
    ]
    from synapse_ops.systems.dagster_storage import newest_as_target

    metadata: Metadata = {
        f"failing_{kind.noun}s": len(judgement.failing),
        f"proven_{kind.noun}s": len(judgement.proven),
        f"{kind.noun}s": table(rows, {kind.noun: "string", "verdict": "string", "what": "string"}),
        **runbook_of_check(judgement.check.name),
    }
    if backup_id is not None:
        metadata["backup_id"] = backup_id
    if run_id is not None:
        metadata["run"] = dg.MetadataValue.dagster_run(run_id)
    return dg.AssetCheckEvaluation(
        asset_key=judgement.check.asset_key,
        check_name=judgement.check.name,
        passed=judgement.passed,
        severity=judgement.severity,
        description=judgement.sentence,
        metadata=metadata,
        target_materialization_data=newest_as_target(instance, judgement.check.asset_key),
    )


def restore_check(kind: AssetKind) -> dg.AssetChecksDefinition:
    """Return the check of one kind, for a run that materializes or checks its asset."""

    @dg.multi_asset_check(
        name=f"{kind.prefix}_{CHECK_NAME}",
        specs=[
            dg.AssetCheckSpec(
                CHECK_NAME,
                asset=kind.backup_key,
                metadata=runbook_of_check(CHECK_NAME),
                description=f"Red while the newest proof of any {kind.noun} is anything but a pass, or is older than "
                "retention.proof_max_age; a warning while a later one could not be attempted. "
                f"Judges each {kind.noun} from the repository and lists the failing ones. "
                "Not evaluated: the newest backup has had no proof yet.",
            )
        ],
        can_subset=True,
    )
    def restore_proven(context: dg.AssetCheckExecutionContext, stack: StackResource) -> Iterator[dg.AssetCheckResult]:
        judgement = judge_now(kind, stack.open(), context.instance)
        if not judgement.is_due:
            context.log.info(f"not proven yet: {', '.join(judgement.waiting) or 'there is nothing to prove'}")
            return
        yield result_of(evaluation_of(judgement, kind=kind, instance=context.instance, run_id=context.run.run_id))

    return restore_proven


def result_of(found: dg.AssetCheckEvaluation) -> dg.AssetCheckResult:
    """Return an evaluation as what a check yields in a run."""
    return dg.AssetCheckResult(
        asset_key=found.asset_key,
        check_name=found.check_name,
        passed=found.passed,
        severity=found.severity,
        description=found.description,
        metadata=found.metadata,
    )
