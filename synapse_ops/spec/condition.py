"""Alert conditions as operators write them: `cpu > 80%`, `up == 0`, `p95_latency > 500ms`. They are not PromQL.

A condition is one measure, one comparison and one number. What the measure means in PromQL is decided where alert rules
are rendered. `str(condition)` is read back by `parse_condition` as the same condition.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

CONDITION_FORM = (
    "a condition such as cpu > 80%, up == 0 or latency >= 500ms: a measure, one of > >= < <= == !=, "
    "a number with or without a unit (% ms s m h d Ki Mi Gi Ti)"
)
_CONDITION = re.compile(
    r"([a-z_][a-z0-9_]{0,62}) {0,5}(>=|<=|==|!=|>|<) {0,5}(-?\d{1,15}(?:\.\d{1,9})?) ?(%|ms|s|m|h|d|Ki|Mi|Gi|Ti)?"
)


@dataclass(frozen=True, slots=True)
class Condition:
    """`measure operator threshold unit`; unit is "" for a plain number. The threshold is in that unit."""

    measure: str
    operator: str
    threshold: Decimal
    unit: str

    def __str__(self) -> str:
        return f"{self.measure} {self.operator} {self.threshold:f}{self.unit}"


def parse_condition(value: object) -> Condition:
    """Return the condition; raises ValueError with the form for anything else, also for a part above 100 %."""
    if isinstance(value, Condition):
        return value
    match = _CONDITION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(CONDITION_FORM)
    threshold = Decimal(match[3])
    if match[4] == "%" and not 0 <= threshold <= 100:
        raise ValueError(f"{CONDITION_FORM}; a part lies between 0% and 100%")
    return Condition(match[1], match[2], threshold, match[4] or "")
