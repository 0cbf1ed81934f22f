"""One alert, with what proves it: series under which it fires, and series under which it does not.

The proof is part of the rule, so that no alert exists that was never seen firing; alert_tests.py renders it for
`promtool test rules`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Literal

Severity = Literal["critical", "warning", "info", "none"]
Dashboard = Literal["system", "application", "database", "cache"]

UID_PREFIX = "synapse-ops"


@dataclass(frozen=True, slots=True)
class Series:
    """One input series of a proof. value None: it is missing. per_second: how fast it grows."""

    selector: str
    value: Decimal | int | None
    per_second: Decimal | int = 0


@dataclass(frozen=True, slots=True)
class Proof:
    """bad, good: the same selectors in the same order. bad begins at time 0, and the condition holds `onset` later.

    is_rate: rates are in it, so one more sample is needed at first, and the whole range has to pass for it to resolve.
    """

    bad: tuple[Series, ...]
    good: tuple[Series, ...]
    onset: timedelta = timedelta(0)
    is_rate: bool = False


@dataclass(frozen=True, slots=True)
class AlertRule:
    """hold: how long `expr` must be true. page: the runbook's name below docs/runbooks, without .md.

    fails_safe: it is true of missing series too (absent), so that nobody's silence is taken for good news.
    """

    name: str
    expr: str
    hold: timedelta
    severity: Severity
    summary: str
    description: str
    page: str
    dashboard: Dashboard | None
    proof: Proof
    labels: tuple[tuple[str, str], ...] = field(default=())


def dashboard_uid(dashboard: str) -> str:
    """Return the stable uid of a dashboard: links to it never break."""
    return f"{UID_PREFIX}-{dashboard}"
