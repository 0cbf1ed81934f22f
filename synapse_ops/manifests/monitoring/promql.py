"""PromQL as text that we write."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

from synapse_ops.spec import Spec
from synapse_ops.spec.units import format_duration

_LEAST_RANGE = timedelta(minutes=5)
_SAMPLES_IN_RANGE = 4  # a rate wants two; one scrape may be late and one lost


def range_of(spec: Spec) -> str:
    """Return the range of rates: five minutes, more where so few samples would fall into it."""
    return format_duration(rate_range(spec))


def rate_range(spec: Spec) -> timedelta:
    return max(_LEAST_RANGE, spec.prometheus.scrape_interval * _SAMPLES_IN_RANGE)


def number(value: Decimal | int) -> str:
    """Return a number without exponent or useless zeros: what a person wrote, in base units."""
    text = f"{Decimal(value):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def seconds(value: timedelta) -> str:
    return number(Decimal(value // timedelta(milliseconds=1)) / 1000)


def quoted(text: str) -> str:
    """Return a PromQL string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
