"""Cron expressions: what a schedule says, and when it fires next in a time zone.

Dagster fires them, so what is allowed is what Dagster and the standard read alike; tests/spec/test_cron.py holds every
allowed form to Dagster's own firings. Refused are extensions (`5L`, `LW`, `MON#2`), ranges without a length (`4-4` is
every value to Dagster), and a step in one of the two day fields beside the other: some programs want both to hold.
A daily job at a fixed hour fires once through a change of clock, at the later of two equal times.
A cron that never fires (`0 0 30 2 *`) is refused, because its silence would look like a schedule that is not due yet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

CRON_FORM = 'a cron of five fields (minute hour day month weekday) that fires at some time, such as "0 0 * * *"'
TIME_ZONE_FORM = "a name of the IANA time zone database, such as UTC or Europe/Berlin"

_FIELDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))  # minute, hour, day, month, weekday: least and most
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_NAMES: tuple[Mapping[str, int], ...] = (
    {},
    {},
    {},
    dict(zip(_MONTHS, range(1, 13), strict=True)),
    dict(zip(_DAYS, range(7), strict=True)),
)
_ITEM = re.compile(r"(?P<first>\w+)(?:-(?P<last>\w+)(?:/(?P<step>\d+))?)?")
_PROBE_START = datetime(2024, 1, 1, tzinfo=UTC)  # any fixed moment: whether a cron ever fires does not depend on it
_CENTURY = timedelta(days=36_525)  # stands for the gap of what fires less often than once in 50 years


class Cron(str):
    """A cron expression that is known to fire. Equal to its text, so that it can be handed on as it is."""

    __slots__ = ()

    def next_after(self, now: datetime, tz: str) -> datetime:
        """Return the first firing after `now` (aware), as an aware time in the zone named `tz`."""
        if now.tzinfo is None:
            raise ValueError("next_after needs an aware time")
        return next(
            moment for moment in self._moments(now.astimezone(ZoneInfo(tz))) if moment.timestamp() > now.timestamp()
        )

    def _moments(self, after: datetime) -> Iterator[datetime]:
        """Yield the firings after a moment of a zone; of two equal times of a fixed hour the later one."""
        has_fixed_hour = self.split()[1] != "*"
        for moment in CronSim(str(self), after - timedelta(hours=2)):
            yield moment.replace(fold=1) if has_fixed_hour else moment

    def longest_gap(self, tz: str) -> timedelta:
        """Return the longest time between two of 60 firings, from a fixed day: the same at each call."""
        return max(_gaps(self, tz, 60), default=_CENTURY)

    def shortest_gap(self) -> timedelta:
        """Return the shortest time between two of 50 firings, in UTC: a change of clock is not a shorter window."""
        return min(_gaps(self, "UTC", 50), default=_CENTURY)


@lru_cache(maxsize=256)  # many alerts and panels ask for the same schedule's
def _gaps(cron: str, tz: str, firings: int) -> tuple[timedelta, ...]:
    """Return the times between so many firings; fewer, or none, of a schedule that hardly ever fires."""
    ticks = CronSim(str(cron), _PROBE_START.astimezone(ZoneInfo(tz)))
    moments = [moment.astimezone(UTC) for _, moment in zip(range(firings), ticks, strict=False)]
    return tuple(later - earlier for earlier, later in pairwise(moments))


def parse_cron(value: object) -> Cron:
    """Return the cron; raises ValueError for another form and for one that never fires."""
    if not isinstance(value, str) or len(value.split()) != 5:
        raise ValueError(CRON_FORM)
    text = " ".join(value.split())
    minute, hour, day, month, weekday = fields = text.split()
    unread = [field for number, field in enumerate(fields) if not _is_field(field, number)]
    if unread:
        raise ValueError(f'{CRON_FORM}; cannot read "{unread[0]}"')
    if "*" not in {day, weekday} and "*" in day + weekday:
        raise ValueError(
            f'{CRON_FORM}; day "{day}" and weekday "{weekday}" together: programs disagree whether both must hold'
        )
    if not _fires(f"{minute} {hour} {day} {month} *"):
        raise ValueError(f"{CRON_FORM}; this one never fires" if _fires(f"0 0 {day} * *") else CRON_FORM)
    return Cron(text)


def _is_field(text: str, number: int) -> bool:
    """Return whether a field is `*`, or a list of values, ranges and steps that mean the same to every program."""
    return text == "*" or all(_is_item(item, number) for item in text.split(","))


def _is_item(text: str, number: int) -> bool:
    least, most = _FIELDS[number]
    if text.startswith("*/"):
        return text[2:].isdecimal() and 1 <= int(text[2:]) <= most - least
    found = _ITEM.fullmatch(text)
    if found is None:
        return False
    first, last = (_value(found[group], number) for group in ("first", "last"))
    if first is None or not least <= first <= most:
        return False
    if found["last"] is None:
        return True
    return last is not None and last <= most and 1 <= int(found["step"] or 1) <= last - first


def _value(text: str | None, number: int) -> int | None:
    if text is None:
        return None
    return int(text) if text.isdecimal() and text.isascii() else _NAMES[number].get(text.upper())


def _fires(text: str) -> bool:
    try:
        next(CronSim(text, _PROBE_START))
    except (StopIteration, CronSimError, ValueError):
        return False
    return True


@cache
def _is_time_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        return False
    return True


def parse_time_zone(value: object) -> str:
    """Return the zone's name; raises ValueError for a name that the database does not hold."""
    if not isinstance(value, str) or not _is_time_zone(value):
        raise ValueError(TIME_ZONE_FORM)
    return value
