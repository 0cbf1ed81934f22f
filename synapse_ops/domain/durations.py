"""Durations as people read them."""

from __future__ import annotations

from datetime import timedelta


def format_days(span: timedelta) -> str:
    """Return a policy's duration as people say it: `30 d`, `12 h`, `90 s`."""
    seconds = span.total_seconds()
    for unit_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_s and seconds % unit_s == 0:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:g} s"
