"""What an alert's condition can be about: each measure, what kind of quantity it is, and which values it can take.

The PromQL of a measure is in manifests/monitoring/alert_measures.py, which has an entry for each name here.
Units become base units: seconds, bytes, and parts between 0 and 1.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Literal

from synapse_ops.spec.condition import Condition

Kind = Literal["part", "time", "size", "number", "state"]

SCALES: Mapping[str, Decimal] = {
    "": Decimal(1),
    "%": Decimal("0.01"),
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
    "Ki": Decimal(1 << 10),
    "Mi": Decimal(1 << 20),
    "Gi": Decimal(1 << 30),
    "Ti": Decimal(1 << 40),
}
UNITS: Mapping[Kind, tuple[str, ...]] = {
    "part": ("%",),
    "time": ("ms", "s", "m", "h", "d"),
    "size": ("Ki", "Mi", "Gi", "Ti"),
    "number": ("",),
    "state": ("",),
}
OPERATORS: Mapping[str, Callable[[Decimal, Decimal], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True, slots=True)
class Measure:
    """kind decides the units and the range: a part lies in 0..1, a state is 0 or 1, the others start at 0."""

    kind: Kind
    description: str


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "up": Measure("state", "whether Prometheus could scrape a target"),
        "health": Measure("state", "whether a probe of Synapse Ops succeeds: 0 is failed"),
        "cpu": Measure("part", "CPU time of a host that is not idle"),
        "memory": Measure("part", "memory of a host that is not available"),
        "disk": Measure("part", "space of a file system that is used"),
        "load": Measure("number", "load of the last 5 minutes per CPU of a host"),
        "request_rate": Measure("number", "requests per second that the API answers"),
        "error_rate": Measure("part", "the API's answers with a status of 500 or above"),
        "latency": Measure("time", "mean time of an answer of the API"),
        "p50_latency": Measure("time", "time in which half of the API's answers are given"),
        "p95_latency": Measure("time", "time in which 95 % of the API's answers are given"),
        "p99_latency": Measure("time", "time in which 99 % of the API's answers are given"),
        "connections": Measure("part", "connections to a PostgreSQL node, of the most it takes"),
        "replication_lag": Measure("time", "how old what a standby has replayed is"),
        "replication_lag_bytes": Measure("size", "WAL that a standby has not replayed"),
        "oldest_transaction": Measure("time", "age of the oldest open transaction"),
        "wraparound": Measure("part", "transaction ids used since the oldest one kept"),
        "redis_memory": Measure("part", "memory that Redis uses, of the most it may"),
        "cache_hit_rate": Measure("part", "reads of Redis that found their key"),
        "backup_age": Measure("time", "age of the last backup of a database or collection"),
        "proof_age": Measure("time", "age of the last restore proof of a database or collection"),
        "certificate_left": Measure("time", "time for which a certificate is still valid"),
    }
)


def threshold_of(condition: Condition) -> Decimal:
    """Return the threshold in the measure's base unit."""
    return condition.threshold * SCALES[condition.unit]


def check_measure(condition: Condition) -> Condition:
    """Return the condition. Raises ValueError with what is allowed for an unknown measure, a unit that is not the
    measure's, an exact comparison of something measured, and a condition that always or never holds.
    """
    measure = MEASURES.get(condition.measure)
    if measure is None:
        raise ValueError(f"a condition on one of the measures {', '.join(MEASURES)}")
    units = UNITS[measure.kind]
    if condition.unit not in units and condition.threshold != 0:
        wanted = f"one of {' '.join(units)}" if units != ("",) else "none"
        raise ValueError(f"a condition on {condition.measure} with its unit: {wanted} ({measure.description})")
    if condition.operator in ("==", "!=") and measure.kind != "state":
        raise ValueError(f"a condition with > >= < or <=: {condition.measure} is measured and never exactly a number")
    holds = {OPERATORS[condition.operator](value, threshold_of(condition)) for value in sample_values(condition)}
    if len(holds) == 1:
        always = "always" if holds == {True} else "never"
        raise ValueError(f"a condition that holds sometimes; {condition} {always} does ({measure.description})")
    return condition


def sample_values(condition: Condition) -> tuple[Decimal, ...]:
    """Return values that the measure can take, on both sides of the threshold where there are two, in base units."""
    zero, one = Decimal(0), Decimal(1)
    threshold = threshold_of(condition)
    kind = MEASURES[condition.measure].kind
    if kind == "state":
        return (zero, one)
    top = one if kind == "part" else 2 * abs(threshold) + 1
    values = {zero, threshold / 2, (threshold + top) / 2, top, threshold}
    return tuple(sorted(value for value in values if zero <= value <= top))
