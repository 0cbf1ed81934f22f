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
    """bad begins at time 0, and the condition holds from then on. A series of only one of the two is missing else.

    is_rate: rates are in it, so a whole range has to pass until the condition surely holds, or surely does not.
    """

    bad: tuple[Series, ...]
    good: tuple[Series, ...]
    is_rate: bool = False


@dataclass(frozen=True, slots=True)
class AlertRule:
    """hold: how long `expr` must be true. page: the runbook's name below docs/runbooks, without .md."""

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
