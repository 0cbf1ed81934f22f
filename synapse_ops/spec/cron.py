"""Cron expressions: what a schedule says, and when it fires next in a time zone.

The rules are cronsim's, that is Debian cron's: through a change of clock a daily job at a fixed hour fires once.
A cron that never fires (`0 0 30 2 *`) is refused, because its silence would look like a schedule that is not due yet.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

CRON_FORM = 'a cron of five fields (minute hour day month weekday) that fires at some time, such as "0 0 * * *"'
TIME_ZONE_FORM = "a name of the IANA time zone database, such as UTC or Europe/Berlin"

_PROBE_START = datetime(2024, 1, 1, tzinfo=UTC)  # any fixed moment: whether a cron ever fires does not depend on it
_CENTURY = timedelta(days=36_525)  # stands for the gap of what fires less often than once in 50 years


class Cron(str):
    """A cron expression that is known to fire. Equal to its text, so that it can be handed on as it is."""

    __slots__ = ()

    def next_after(self, now: datetime, tz: str) -> datetime:
        """Return the first firing after `now` (aware), as an aware time in the zone named `tz`."""
        if now.tzinfo is None:
            raise ValueError("next_after needs an aware time")
        return next(CronSim(str(self), now.astimezone(ZoneInfo(tz))))

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
    if _fires(text):
        return Cron(text)
    minute, hour, day, month, weekday = text.split()
    parts_fire = _fires(f"{minute} {hour} * {month} {weekday}") and _fires(f"{minute} {hour} {day} * {weekday}")
    raise ValueError(f"{CRON_FORM}; this one never fires" if parts_fire else CRON_FORM)


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
