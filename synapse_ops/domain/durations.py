"""Durations and moments as people read them."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo


def format_days(span: timedelta) -> str:
    """Return a policy's duration as people say it: `30 d`, `12 h`, `90 s`."""
    seconds = span.total_seconds()
    for unit_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_s and seconds % unit_s == 0:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:g} s"


def format_age(age: timedelta | None) -> str:
    """Return a span in its two largest units: `3 d 4 h`; a dash for none."""
    if age is None:
        return "-"
    seconds = int(age.total_seconds())
    if seconds < 0:
        return f"-{format_age(-age)}"
    parts: list[str] = []
    for unit_s, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, seconds = divmod(seconds, unit_s)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def format_when(moment: datetime, now: datetime, time_zone: str) -> str:
    """Return a moment as a person says it in the spec's time zone: `22:06:20 UTC`; on another day with its date."""
    zone = ZoneInfo(time_zone)
    there, today = moment.astimezone(zone), now.astimezone(zone)
    day = "" if there.date() == today.date() else f"{there.day} {there:%b} "
    year = "" if there.year == today.year else f"{there.year} "
    return f"{day}{year}{there:%H:%M:%S %Z}"
