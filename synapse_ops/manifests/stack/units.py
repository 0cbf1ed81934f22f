"""Quantities of the spec as the rendered formats write them."""

from __future__ import annotations

from datetime import timedelta


def whole_seconds(value: timedelta, *, least: int = 1) -> int:
    """Return seconds, rounded up: for formats that know no part of one. A limit never becomes tighter by rounding."""
    return max(least, -(-(value // timedelta(milliseconds=1)) // 1000))


def milliseconds(value: timedelta) -> int:
    return value // timedelta(milliseconds=1)
