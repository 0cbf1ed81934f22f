"""From the first look to a copy that is restored and checked: all that comes before a person's approval."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from synapse_ops.domain.progress import ReportProgress
from synapse_ops.domain.recovery.impact import Impact
from synapse_ops.domain.recovery.recovery_record import RecoveryRecord
from synapse_ops.operations.recovery.impact import assess_impact
from synapse_ops.operations.recovery.integrity import check_integrity
from synapse_ops.operations.recovery.journal import Journal
from synapse_ops.operations.recovery.place import RecoveryPlace
from synapse_ops.operations.recovery.restored_stack import begin_recovery, restore_stack
from synapse_ops.operations.stack import Stack


def prepare_recovery(
    stack: Stack, place: RecoveryPlace, until: str, tell: Callable[[Impact], None], progress: ReportProgress
) -> RecoveryRecord:
    """Return a recovery whose copy was checked. tell: is given the impact before anything is restored.

    A copy that is there and holds all that another one would hold is returned as it is, with the digest that it has.
    """
    with Journal.of(stack.state_dir).held():
        now = datetime.now(UTC)
        impact, choice = assess_impact(stack, place, until, now)
        tell(impact)
        record = begin_recovery(stack, place, until, impact.as_json(), choice, now)
        if record.is_prepared:
            return record
        record = restore_stack(stack, place, record, now, progress)
        return check_integrity(stack, place, record, progress)
