"""Schedules: when a cron fires next, through changes of clock too, and which crons are refused."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_ops.spec.cron import Cron, parse_cron, parse_time_zone

BERLIN = "Europe/Berlin"  # 2026: spring change on 29 March, autumn change on 25 October


@pytest.mark.parametrize("text", ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 31 2 *"])
def test_a_cron_that_never_fires_is_refused(text: str) -> None:
    """A schedule for 30 February is refused with the reason, because its silence looks like one that is not due."""
    with pytest.raises(ValueError, match="never fires"):
        parse_cron(text)


@pytest.mark.parametrize(
    "text", ["", "* * * *", "0 0 0 * * *", "60 0 * * *", "@daily", "a b c d e", "0 0 * * 8", 5, None]
)
def test_a_cron_of_another_form_is_refused(text: object) -> None:
    """Five fields within their ranges, and nothing else."""
    with pytest.raises(ValueError, match="a cron of five fields"):
        parse_cron(text)


def test_a_cron_for_leap_days_is_allowed() -> None:
    """29 February comes, if rarely."""
    assert parse_cron("0 0 29 2 *").next_after(datetime(2026, 1, 1, tzinfo=UTC), "UTC") == datetime(
        2028, 2, 29, tzinfo=UTC
    )


def test_two_in_the_morning_fires_once_when_the_clock_goes_forward() -> None:
    """On the day when 02:00 does not exist, the window opens once, at 03:00."""
    cron = parse_cron("0 2 * * 0")

    first = cron.next_after(datetime(2026, 3, 28, tzinfo=UTC), BERLIN)
    second = cron.next_after(first, BERLIN)

    assert first.isoformat() == "2026-03-29T03:00:00+02:00"
    assert second.isoformat() == "2026-04-05T02:00:00+02:00"


def test_two_in_the_morning_fires_once_when_the_clock_goes_back() -> None:
    """On the day when 02:00 comes twice, the window opens once."""
    cron = parse_cron("0 2 * * 0")

    first = cron.next_after(datetime(2026, 10, 24, tzinfo=UTC), BERLIN)
    second = cron.next_after(first, BERLIN)

    assert first.date().isoformat() == "2026-10-25"
    assert second.isoformat() == "2026-11-01T02:00:00+01:00"


@given(st.integers(946_684_800, 4_102_444_800), st.sampled_from(["UTC", BERLIN, "Asia/Kathmandu"]))
def test_the_next_firing_is_later_and_within_the_day(timestamp: int, zone: str) -> None:
    """A daily cron fires within 25 hours (the longest day) of any moment, and never at that moment."""
    now = datetime.fromtimestamp(timestamp, UTC)

    after = parse_cron("30 0 * * *").next_after(now, zone)

    assert timedelta(0) < after - now <= timedelta(hours=25)


def test_a_cron_is_its_text() -> None:
    """A cron can be handed on as text, and survives pickling as a cron."""
    cron = parse_cron("  0   0 * * *")

    assert cron == "0 0 * * *"
    assert isinstance(pickle.loads(pickle.dumps(cron)), Cron)


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "utc+1", "../../etc/passwd", "/etc/localtime", "Europe", None, 1])
def test_an_unknown_time_zone_is_refused(name: object) -> None:
    """Only names of the IANA database are time zones; a path is not one."""
    with pytest.raises(ValueError, match="IANA"):
        parse_time_zone(name)
