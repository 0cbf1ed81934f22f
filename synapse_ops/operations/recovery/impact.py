"""Looks at what is down and what can be restored, and says what to do. Changes nothing."""

from __future__ import annotations

from datetime import datetime
from functools import partial

from synapse_ops.domain.backup.kinds import BASE, DUMP
from synapse_ops.domain.database.recovery_target import RecoveryTarget
from synapse_ops.domain.health.states import State as Health
from synapse_ops.domain.recovery.drill_score import DrillScore, Of, Scenario, expect_next
from synapse_ops.domain.recovery.impact import Impact, Situation, plan_options
from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.failover.status import read_status
from synapse_ops.operations.health.report import ask_once
from synapse_ops.operations.recovery.place import RecoveryPlace
from synapse_ops.operations.recovery.recoverability import read_recoverability
from synapse_ops.operations.recovery.scores import read_scores
from synapse_ops.operations.stack import Stack
from synapse_ops.operations.stack_probes import stack_probes


def assess_impact(stack: Stack, place: RecoveryPlace, until: str, now: datetime) -> Impact:
    """Return the situation and every way back from it. until: as `--until`; raises ConfigError for another form."""
    target = RecoveryTarget.parse(until)
    place.begin()
    health = ask_once(partial(stack_probes, stack, is_embedded=place.is_embedded))
    found = read_recoverability(stack, now)
    [cluster] = found.of(BASE.word).rows[:1] or [None]
    restored = [row for row in found.rows if row.objectives is not None and row.word != DUMP.word]
    times = [row.evidence.restore_s for row in restored]
    status = read_status(stack.state_dir, now)
    scores = _scores(stack)
    whole = expect_next(scores, Scenario.RECOVERY, Of.SYSTEM)
    drilled = expect_next(scores, Scenario.RECOVERY_DRILL, Of.COPY)
    situation = Situation(
        nodes=place.nodes(),
        down=tuple(
            f"{row.probe.name}: {row.condition.reason}"
            for row in health.rows
            if row.condition.state is not Health.HEALTHY
        ),
        from_at=cluster.evidence.from_at if cluster is not None else None,
        to_at=cluster.evidence.to_at if cluster is not None else None,
        because=cluster.sentence(stack.spec.time_zone) if cluster is not None else "",
        restore=whole if whole.predicted is not None else max(whole, drilled, key=lambda one: one.runs),
        restore_s=sum(one for one in times if one is not None) if None not in times and times else None,
        failover=expect_next(scores, Scenario.FAILOVER, Of.SYSTEM),
        armed=status.is_armed,
        armed_because=status.sentence,
    )
    return plan_options(situation, target, now, stack.spec.time_zone)


def _scores(stack: Stack) -> tuple[DrillScore, ...]:
    """Return the scores; none where the bucket cannot be read, which `down` and the restores say already."""
    try:
        return read_scores(stack.database_repository()).scores
    except SynapseOpsError:
        return ()
