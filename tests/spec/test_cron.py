"""Schedules: when a cron fires next, through changes of clock too, and which crons are refused."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from dagster._utils.schedules import is_valid_cron_schedule, schedule_execution_time_iterator
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from synapse_ops.spec.cron import Cron, parse_cron, parse_time_zone

BERLIN = "Europe/Berlin"  # 2026: spring change on 29 March, autumn change on 25 October


@pytest.mark.parametrize("text", ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 31 2 *"])
def test_a_cron_that_never_fires_is_refused(text: str) -> None:
    """A schedule for 30 February is refused with the reason, because its silence looks like one that is not due."""
    with pytest.raises(ValueError, match="never fires"):
        parse_cron(text)


NOT_CRON = [
    "",
    "* * * *",
    "0 0 0 * * *",
    "60 0 * * *",
    "@daily",
    "a b c d e",
    "0 0 * * 8",
    5,
    None,
    "0 0 ¹ * *",
    "0 0 1- * *",
]
NOT_STANDARD = ["0 2 * * 5L", "0 0 LW * *", "0 0 * * MON#2", "0 0 ? * *", "0 0 4-4 * *", "0 22-2 * * *", "0 */0 * * *"]
NOT_STANDARD += ["0 0 *,3 * *", "0 0 * * FRI-MON", "0 5/2 * * *"]


@pytest.mark.parametrize("text", [*NOT_CRON, *NOT_STANDARD])
def test_a_cron_of_another_form_is_refused(text: object) -> None:
    """Five fields within their ranges, and nothing else."""
    with pytest.raises(ValueError, match="a cron of five fields"):
        parse_cron(text)


@pytest.mark.parametrize("text", ["0 0 */2 * MON", "0 0 1 * */2", "0 0 1,*/10 * 1-5"])
def test_a_step_in_one_day_field_beside_the_other_is_refused(text: str) -> None:
    """To Debian's cron both must hold, to Dagster one: 262 more firings in 17 months."""
    with pytest.raises(ValueError, match="together: programs disagree"):
        parse_cron(text)


def _items(least: int, most: int, names: tuple[str, ...] = ()) -> st.SearchStrategy[str]:
    value = st.integers(least, most).map(str)
    bounds = st.tuples(st.integers(least, most), st.integers(least, most)).filter(lambda pair: pair[0] < pair[1])
    ranges = bounds.flatmap(
        lambda pair: st.sampled_from(["", *(f"/{step}" for step in range(1, pair[1] - pair[0] + 1))]).map(
            lambda step: f"{pair[0]}-{pair[1]}{step}"
        )
    )
    steps = st.integers(1, most - least).map(lambda step: f"*/{step}")
    named = [st.sampled_from(names)] if names else []
    return st.lists(st.one_of(value, ranges, steps, *named), min_size=1, max_size=3).map(",".join)


def _field(least: int, most: int, *names: str) -> st.SearchStrategy[str]:
    return st.one_of(st.just("*"), _items(least, most, names))


allowed_texts = st.tuples(
    _field(0, 59), _field(0, 23), _field(1, 31), _field(1, 12, "JAN", "dec"), _field(0, 7, "MON", "sun")
).map(" ".join)


def _of_dagster(text: str, after: datetime, zone: str) -> list[datetime]:
    moments = schedule_execution_time_iterator(after.timestamp() + 1, text, zone, ascending=True)
    return [moment.astimezone(UTC) for moment in islice(moments, 12)]


@settings(max_examples=50, deadline=None)
@given(allowed_texts, st.integers(28_401_120, 33_661_440))
def test_every_allowed_cron_fires_in_dagster_when_we_say(text: str, minute: int) -> None:
    """One judge: what Dagster refuses would stop all of it, and what it reads otherwise would fire at other times."""
    after = datetime.fromtimestamp(minute * 60, UTC)
    try:
        cron = parse_cron(text)
    except ValueError as refused:
        assume("never fires" not in str(refused) and "together" not in str(refused))
        raise

    assert is_valid_cron_schedule(text)
    ours, moment = [], after
    for _ in range(12):
        moment = cron.next_after(moment, "UTC")
        ours.append(moment)
    assert ours == _of_dagster(text, after, "UTC")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 59),
    st.sampled_from(["*", "1", "2", "3", "1-3", "12"]),
    st.sampled_from([BERLIN, "America/New_York", "Australia/Sydney"]),
    st.sampled_from([(3, 7), (3, 28), (4, 4), (10, 3), (10, 24), (10, 31)]),
)
def test_through_a_change_of_clock_it_fires_when_dagster_does(
    minute: int, hour: str, zone: str, day: tuple[int, int]
) -> None:
    """Once at a fixed hour, at the later of two equal times; at every hour that passes else."""
    after = datetime(2026, *day, hour=3, tzinfo=UTC)
    ours, moment = [], after
    for _ in range(12):
        moment = parse_cron(f"{minute} {hour} * * *").next_after(moment, zone)
        ours.append(moment.astimezone(UTC))

    assert ours == _of_dagster(f"{minute} {hour} * * *", after, zone)


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
