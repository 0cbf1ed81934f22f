"""Quantities: what is read, what is refused, and that writing and reading are inverses."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_ops.spec.condition import Condition, parse_condition
from synapse_ops.spec.units import (
    format_cores,
    format_duration,
    format_size,
    parse_cores,
    parse_duration,
    parse_size,
)


@given(st.integers(0, 36_600 * 86_400_000))
def test_a_duration_written_and_read_is_the_same(milliseconds: int) -> None:
    """Every whole number of milliseconds up to a century survives writing and reading."""
    duration = timedelta(milliseconds=milliseconds)

    assert parse_duration(format_duration(duration)) == duration


@given(st.integers(0, 1 << 60))
def test_a_size_written_and_read_is_the_same(size: int) -> None:
    """Every whole number of bytes up to 1 EiB survives writing and reading."""
    assert parse_size(format_size(size)) == size


@given(st.integers(0, 10**8))
def test_cores_written_and_read_are_the_same(thousandths: int) -> None:
    """Every whole number of thousandths of a core survives writing and reading."""
    cores = Decimal(thousandths) / 1000

    assert parse_cores(format_cores(cores)) == cores


@given(
    st.from_regex(r"[a-z_][a-z0-9_]{0,20}", fullmatch=True),
    st.sampled_from([">", ">=", "<", "<=", "==", "!="]),
    st.decimals(0, 100, places=3),
    st.sampled_from(["", "%", "ms", "s", "m", "h", "d", "Ki", "Mi", "Gi", "Ti"]),
)
def test_a_condition_written_and_read_is_the_same(measure: str, operator: str, threshold: Decimal, unit: str) -> None:
    """A condition's text is read back as the condition that wrote it."""
    condition = Condition(measure, operator, threshold, unit)

    assert parse_condition(str(condition)) == condition


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("1h30m", 5400), ("500ms", 0.5), ("7d", 604_800), ("1w", 604_800), (60, 60), (0.5, 0.5)],
)
def test_durations_are_read_as_prometheus_writes_them(text: object, seconds: float) -> None:
    """Units are those of Prometheus; a bare number is seconds."""
    assert parse_duration(text) == timedelta(seconds=seconds)


def test_a_bare_number_in_a_retention_is_days() -> None:
    """A vector `retention: 7` is seven days."""
    assert parse_duration(7, bare_unit="d") == timedelta(days=7)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        " ",
        "-5s",
        "5 s",
        "5sec",
        "5S",
        "30m1h",
        "1m1m",
        "1.5h",
        "1y",
        "0.0001",
        True,
        None,
        [],
        "5Gi",
        "9" * 16,
    ],
)
def test_a_duration_of_another_form_is_refused(text: object) -> None:
    """Capital units, repeated or rising units, signs, and parts of a millisecond are refused, not guessed."""
    with pytest.raises(ValueError, match="a duration such as"):
        parse_duration(text)


def test_a_duration_over_a_century_is_refused() -> None:
    """A century is the limit, so that no arithmetic on times overflows."""
    assert parse_duration("36600d") == timedelta(days=36600)
    with pytest.raises(ValueError, match="at most 36600d"):
        parse_duration("36601d")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4Gi", 4 << 30),
        ("1MiB", 1 << 20),
        ("10MB", 10_000_000),
        ("1k", 1000),
        ("1.5Ki", 1536),
        (512, 512),
        ("7 GiB", 7 << 30),
    ],
)
def test_sizes_are_read_in_powers_of_1000_and_1024(text: object, size: int) -> None:
    """Ki is 1024, k is 1000; `Mi` and `MiB` are the same."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "4gi", "4GiBs", "-1", "1.5", "0.3Ki", "1e9", 1.5, True, None, "2000Pi", "5m"])
def test_a_size_of_another_form_is_refused(text: object) -> None:
    """A part of a byte, a lower-case unit, a float and a sign are refused."""
    with pytest.raises(ValueError, match="a size such as"):
        parse_size(text)


@pytest.mark.parametrize(("text", "cores"), [(2, "2"), ("500m", "0.5"), (0.5, "0.5"), ("1.25", "1.25"), ("2000m", "2")])
def test_cores_are_read_as_kubernetes_writes_them(text: object, cores: str) -> None:
    """`500m` is half a core."""
    assert parse_cores(text) == Decimal(cores)


@pytest.mark.parametrize("text", ["", "half", "0.0001", "-1", "1e3", True, None, "500M", float("nan"), float("inf")])
def test_cores_of_another_form_are_refused(text: object) -> None:
    """Less than a thousandth of a core, capitals and what is not a number are refused."""
    with pytest.raises(ValueError, match="a number of CPU cores"):
        parse_cores(text)


@pytest.mark.parametrize(
    "text", ["cpu", "cpu > ", "> 80%", "cpu is high", "cpu > 80% and up == 0", "cpu => 1", "cpu > 101%", 5]
)
def test_a_condition_of_another_form_is_refused(text: object) -> None:
    """A condition is one measure, one comparison and one number, and a part is at most 100 %."""
    with pytest.raises(ValueError, match="a condition such as"):
        parse_condition(text)
