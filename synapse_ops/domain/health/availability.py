"""How available a probed thing was over a time: from seconds in states and from changes of state. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from synapse_ops.domain.health.states import State


@dataclass(frozen=True, slots=True)
class Outages:
    """Spans in which a thing was failed. longest: zero when there was none; one that goes on ends with the window."""

    count: int
    longest: timedelta


def outages(changes: Iterable[tuple[datetime, State, State]], since: datetime, until: datetime) -> Outages:
    """Return the outages within [since, until). changes: (at, old state, new state), the oldest first.

    An outage that began before the window counts in it from its start.
    """
    begun: datetime | None = None
    lengths: list[timedelta] = []
    for number, (at, old, new) in enumerate(changes):
        if number == 0 and old is State.FAILED:
            begun = since
        if begun is not None and new is not State.FAILED:
            lengths.append(at - begun)
            begun = None
        elif begun is None and new is State.FAILED:
            begun = at
    if begun is not None:
        lengths.append(until - begun)
    return Outages(len(lengths), max(lengths, default=timedelta()))


def month_window(month: str, now: datetime, time_zone: str) -> tuple[datetime, datetime]:
    """Return the first moments of a month ("2026-11") and of the next one; "" is the last month that has ended.

    now: aware. Raises ValueError for text that is not a month.
    """
    zone = ZoneInfo(time_zone)
    if month:
        first = datetime.strptime(month, "%Y-%m").replace(tzinfo=zone)
    else:
        local = now.astimezone(zone)
        first = _first_of(local.year, local.month - 1, zone)
    return first, _first_of(first.year, first.month + 1, zone)


def _first_of(year: int, month: int, zone: ZoneInfo) -> datetime:
    """Return the first moment of a month; month 0 is December of the year before, 13 January of the next."""
    years, index = divmod(month - 1, 12)
    return datetime(year + years, index + 1, 1, tzinfo=zone)
