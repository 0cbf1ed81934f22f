"""Availability of a whole month: every verdict of it, the hour that a change of clock takes or gives, and the gaps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from synapse_ops.domain.health.availability import month_window
from synapse_ops.domain.health.states import State
from synapse_ops.operations.health.availability import read_availability
from tests.health_history import WrittenHistory

H, F = State.HEALTHY, State.FAILED
NOW = datetime(2027, 1, 1, tzinfo=UTC)
EVERY = timedelta(minutes=5)


@pytest.mark.parametrize(("month", "hours"), [("2026-03", 743), ("2026-10", 745), ("2026-11", 720)])
def test_a_month_that_was_observed_to_its_end_has_no_unobserved_hour(tmp_path: Path, month: str, hours: int) -> None:
    """In Berlin March is an hour short and October an hour long; an outage over the change has its true length."""
    since, until = month_window(month, NOW, "Europe/Berlin")
    verdicts = hours * 12
    change = datetime.fromisoformat(f"{month}-29T00:30").replace(tzinfo=ZoneInfo("Europe/Berlin"))
    before = (change.astimezone(UTC) - since.astimezone(UTC)) // EVERY
    history = WrittenHistory(tmp_path, ["api"], since.astimezone(UTC) - 2 * EVERY, interval=EVERY)
    history.add("api", *([H] * before), *([F] * 48), *([H] * (verdicts - before - 48 + 1)))
    history.close()

    [row] = read_availability(tmp_path, since, until)

    assert row.time.known_s == hours * 3600
    assert row.unobserved_ratio == 0
    assert row.outages.count == 1
    assert row.outages.longest == timedelta(hours=4)
    assert row.time.uptime_ratio == pytest.approx(1 - 4 / hours)


def test_an_outage_ends_where_nobody_looked_any_more(tmp_path: Path) -> None:
    """Failed for an hour, then no prober for the rest of the month: an outage of an hour."""
    since, until = month_window("2026-11", NOW, "UTC")
    history = WrittenHistory(tmp_path, ["api"], since, interval=EVERY)
    history.add("api", *([H] * 12), *([F] * 12))
    history.close()

    [row] = read_availability(tmp_path, since, until)

    assert row.outages.count == 1
    assert timedelta(minutes=55) <= row.outages.longest <= timedelta(minutes=62)
    assert row.unobserved_ratio == pytest.approx(1 - 2 / 720, abs=0.001)
    assert row.time.uptime_ratio == pytest.approx(
        0.5, abs=0.08
    )  # two verdicts decide, and the first finds nothing known


def test_a_month_in_which_nobody_looked_has_no_uptime(tmp_path: Path) -> None:
    """Not one hundred per cent, not zero: none."""
    since, until = month_window("2026-11", NOW, "UTC")
    WrittenHistory(tmp_path, ["api"], since - timedelta(days=60)).close()

    [row] = read_availability(tmp_path, since, until)

    assert row.time.uptime_ratio is None
    assert row.unobserved_ratio == 1
