"""Looks at what is down and what can be restored, and says what to do. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial

from synapse_ops.domain.health.states import State as Health
from synapse_ops.domain.recovery.drill_score import DrillScore, Of, Scenario, expect_next
from synapse_ops.domain.recovery.impact import Impact, Situation, plan_options
from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.failover.status import read_status
from synapse_ops.operations.health.report import ask_once
from synapse_ops.operations.recovery.choice import LATEST, Choice, choose_backups, parse_moment
from synapse_ops.operations.recovery.place import RecoveryPlace
from synapse_ops.operations.recovery.scores import read_scores
from synapse_ops.operations.stack import Stack
from synapse_ops.operations.stack_probes import stack_probes


def assess_impact(
    stack: Stack, place: RecoveryPlace, until: str, now: datetime
) -> tuple[Impact, Choice | SynapseOpsError]:
    """Return the situation with every way back from it, and what a restore to `until` is made from, or why it is not.

    until: as `--until`; raises ConfigError for another form. The ways back are those that a restore would go: the same
    choice, of base backups that no proof has tried yet, too.
    """
    target = parse_moment(until)
    place.begin()
    health = ask_once(partial(stack_probes, stack, is_embedded=place.is_embedded))
    choice = _tried(lambda: choose_backups(stack, until, now))
    newest = choice if until == LATEST else _tried(lambda: choose_backups(stack, LATEST, now))
    window = newest.base if isinstance(newest, Choice) else None
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
        from_at=window.first_at if window is not None else None,
        to_at=window.last_at if window is not None else None,
        because=_fault(newest),
        moment_because=_fault(choice),
        restore=whole if whole.predicted is not None else max(whole, drilled, key=lambda one: one.runs),
        restore_s=choice.predicted_s if isinstance(choice, Choice) else None,
        failover=expect_next(scores, Scenario.FAILOVER, Of.SYSTEM),
        armed=status.is_armed,
        armed_because=status.sentence,
    )
    return plan_options(situation, target, now, stack.spec.time_zone), choice


def _tried(choose: Callable[[], Choice]) -> Choice | SynapseOpsError:
    try:
        return choose()
    except SynapseOpsError as error:
        return error


def _fault(found: Choice | SynapseOpsError) -> str:
    if isinstance(found, Choice):
        return ""
    return f"{found.message} ({found.detail})" if found.detail and "\n" not in found.detail else found.message


def _scores(stack: Stack) -> tuple[DrillScore, ...]:
    """Return the scores; none where the bucket cannot be read, which `down` and the restores say already."""
    try:
        return read_scores(stack.database_repository()).scores
    except SynapseOpsError:
        return ()
