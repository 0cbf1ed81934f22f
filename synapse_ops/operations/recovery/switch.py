"""Puts a restored stack into service, and tries it as the application does. A person has approved its digest.

The old nodes are fenced first, or a person states that they are gone; the end of their timeline is claimed in the
store, so that no failover promotes what is left of it. Each effect may be repeated from wherever it was cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from synapse_ops import __version__
from synapse_ops.domain.backup.layout import Identity
from synapse_ops.domain.failover.transitions import ENDS, TRANSITIONS, State
from synapse_ops.domain.health.states import State as Health
from synapse_ops.domain.progress import Progress, ReportProgress
from synapse_ops.domain.recovery.drill_score import DrillScore, Of, Scenario
from synapse_ops.domain.recovery.recovery_record import (
    INTEGRITY,
    RESTORED,
    SWITCH,
    VALIDATION,
    RecoveryRecord,
)
from synapse_ops.errors import Refused, SynapseOpsError, Unhealthy, counted
from synapse_ops.operations.backup_kinds import BASES
from synapse_ops.operations.failover.claims import Claim, take_claim
from synapse_ops.operations.failover.ledger import Ledger
from synapse_ops.operations.health.report import ask_once
from synapse_ops.operations.recovery.drills import keep_score
from synapse_ops.operations.recovery.journal import Journal
from synapse_ops.operations.recovery.place import RecoveryPlace
from synapse_ops.operations.recovery.restored_stack import CLUSTER
from synapse_ops.operations.stack import Stack
from synapse_ops.operations.stack_probes import stack_probes

HEALTHY_LIMIT_S = 60.0  # probes of a server that has just started
POLL_S = 0.5
OF_THE_HOST = frozenset({"server/disk"})  # it was as full before the recovery


def apply_recovery(
    stack: Stack,
    place: RecoveryPlace,
    digest: str,
    gone: str,
    progress: ReportProgress,
    tell: Callable[[RecoveryRecord], None] = lambda switched: None,
) -> RecoveryRecord:
    """Put the copy that a person approves into service, and try it. tell: is given the recovery after the switch.

    Raises PlanChanged for an unknown digest, and what `switch_traffic` and `validate_system` raise.
    """
    journal = Journal.of(stack.state_dir)
    place.begin()
    with journal.held():
        record = journal.find(digest)
        if record.is_switched and not record.is_done:  # its servers may have ended since
            place.start(progress)
        record = switch_traffic(stack, place, record, gone, progress)
        tell(record)
        return validate_system(stack, place, record, progress)


def switch_traffic(
    stack: Stack, place: RecoveryPlace, record: RecoveryRecord, gone: str, progress: ReportProgress
) -> RecoveryRecord:
    """Return the recovery with what the switch came to; nothing is done where it was done before.

    Raises Refused where the copy was found wanting, or an old node may still take writes.
    """
    if record.is_switched:
        return record
    if record.faults:
        raise Refused(
            f"the copy is not put into service: {counted(len(record.faults), 'fault')}",
            detail="\n".join(record.faults[:20]),
            hint="`synapse-ops recover --plan --until time:...` restores an earlier moment.",
        )
    begun, now, folder = time.monotonic(), datetime.now(UTC), place.folder(record.id)
    place.refuse_unless_replaceable(record, folder, gone)
    end_incidents(Ledger.of(stack.state_dir), f"recovery {record.id} restored PostgreSQL", now)
    claimed = _claim(stack, record, now)
    progress(Progress("fencing the old nodes", 0, None, "nodes"))
    facts = place.switch(record, folder, progress)
    facts |= {"gone": gone, "claim": claimed or "taken", "seconds": round(time.monotonic() - begun, 3)}
    return Journal.of(stack.state_dir).add(record, SWITCH, facts)


def _claim(stack: Stack, record: RecoveryRecord, now: datetime) -> str:
    """Claim the end of the old timeline; return why not. Another holder has ended it, which is as good."""
    timeline = record.steps[RESTORED]["parts"][CLUSTER].get("timeline")
    if timeline is None:
        return "the timeline is not known: the restore was taken up"
    system = Identity.parse(record.identity).system_identifier
    return take_claim(stack.database_repository(), Claim(system, timeline, f"recovery-{record.id}", frozenset(), now))


def end_incidents(ledger: Ledger, reason: str, now: datetime) -> None:
    """End every open incident: the servers that it is about are replaced."""
    for incident in ledger.incidents():
        while incident.is_open:
            ways = [(event, to) for (at, event), to in TRANSITIONS.items() if at is incident.state]
            event = next((event for event, to in ways if to in ENDS and to is not State.DONE), ways[0][0])
            ledger.append(incident.followed_by(event, now, {"reason": reason}))
            incident = ledger.find(incident.id)


def validate_system(
    stack: Stack, place: RecoveryPlace, record: RecoveryRecord, progress: ReportProgress
) -> RecoveryRecord:
    """Write, read, search, ask every probe, and take a base backup; return the recovery with the report.

    Raises Unhealthy, with what is wrong; a later call tries again.
    """
    if record.is_done:
        return record
    progress(Progress("writing, reading and searching as the application does", 0, None, "requests"))
    found = place.validate(record)
    first_write_at = datetime.now(UTC)
    faults = [*found.pop("faults"), *_unhealthy(stack, place)]
    if faults:
        raise Unhealthy(
            f"the restored system is not whole: {counted(len(faults), 'fault')}",
            detail="\n".join(faults),
            hint=f"Correct it, then: synapse-ops recover --apply {record.digest}",
        )
    report = {**found, **_measured(stack, record, first_write_at)}
    keep_score(stack.database_repository(), _score(record, report))
    if BASES.is_on(stack.spec):
        progress(Progress("taking a base backup of the restored server", 0, None, "bytes"))
        try:
            report["base_backup"] = BASES.verbs().take(stack, BASES.word, progress=progress).record.backup_id
        except SynapseOpsError as error:  # the system serves all the same; `recoverability` is red without one
            report["base_backup_fault"] = error.message
    return Journal.of(stack.state_dir).add(record, VALIDATION, report)


def _score(record: RecoveryRecord, report: Mapping[str, Any]) -> DrillScore:
    parts = record.steps[RESTORED]["parts"]
    return DrillScore(
        scenario=Scenario.RECOVERY,
        of=Of.SYSTEM,
        at=record.begun_at,
        reason="",
        phases=tuple((name, float(record.steps[name].get("seconds", 0.0))) for name in (RESTORED, INTEGRITY, SWITCH)),
        predicted=None,
        lost_writes=report["lost_writes"],
        rto_s=report["since_begun_s"],
        rpo_s=None,
        size_bytes=int(parts[CLUSTER].get("bytes", 0)),
        code_version=__version__,
    )


def _unhealthy(stack: Stack, place: RecoveryPlace) -> list[str]:
    """Return what is not there after the time that servers need to start; what answers slowly is there."""
    deadline_s = time.monotonic() + HEALTHY_LIMIT_S
    probes = partial(stack_probes, stack, is_embedded=place.is_embedded)
    while True:
        rows = [row for row in ask_once(probes).rows if row.probe.name not in OF_THE_HOST]
        away = [row for row in rows if row.condition.state not in {Health.HEALTHY, Health.DEGRADED}]
        bad = [f"{row.probe.name}: {row.condition.reason}" for row in away]
        if not bad or time.monotonic() > deadline_s:
            return bad
        time.sleep(POLL_S)


def _measured(stack: Stack, record: RecoveryRecord, first_write_at: datetime) -> dict[str, Any]:
    """Return what it took beside what was promised and predicted. work_s: without the time that a person took."""
    work_s = sum(float(record.steps[name].get("seconds", 0.0)) for name in (RESTORED, INTEGRITY, SWITCH))
    rto, rpo = stack.spec.objectives.rto, stack.spec.objectives.rpo
    return {
        "since_begun_s": round((first_write_at - record.begun_at).total_seconds(), 3),
        "work_s": round(work_s, 3),
        "restore_s": record.steps[RESTORED].get("seconds"),
        "predicted_s": record.predicted_s,
        "rto_s": rto.total_seconds(),
        "rto_met": (first_write_at - record.begun_at) <= rto,
        "rpo_s": rpo.total_seconds() if rpo is not None else None,
    }
