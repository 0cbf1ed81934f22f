"""The predicted restore time errs on the careful side and is not bent by one bad day."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from synapse_ops.domain.backup.restore_estimate import disk_needed_bytes, predict_restore_s, wal_limit_for

MIB = 1024 * 1024


def test_without_history_nothing_is_predicted() -> None:
    """A number that nobody measured is not shown."""
    assert predict_restore_s([], 100 * MIB) is None


def test_one_restore_on_a_busy_machine_does_not_bend_the_line() -> None:
    """The line is the median of slopes: an outlier of 20 times the time moves it by less than a tenth."""
    true = [(size * MIB, 2.0 + size * 0.01) for size in (100, 200, 300, 400, 500, 600)]
    spoiled = [*true[:2], (300 * MIB, 100.0), *true[3:]]

    predicted = predict_restore_s(spoiled, 1000 * MIB)

    assert predicted is not None
    assert abs(predicted - 12.0) < 1.2


def test_a_larger_database_than_any_seen_is_scaled_up_when_all_had_one_size() -> None:
    """Without two sizes there is no slope; larger is then taken in proportion."""
    assert predict_restore_s([(100 * MIB, 4.0), (101 * MIB, 5.0), (99 * MIB, 4.5)], 200 * MIB) == 9.0


def test_a_smaller_database_is_not_promised_to_be_quicker_when_all_had_one_size() -> None:
    """The whole time may be start-up, so nothing is promised."""
    assert predict_restore_s([(100 * MIB, 4.0)], 1 * MIB) == 4.0


sizes = st.integers(1, 10**13)
times = st.floats(0, 10**5, allow_nan=False)


@given(st.lists(st.tuples(sizes, times), min_size=1, max_size=30), sizes, sizes)
def test_more_bytes_are_never_predicted_to_take_less_time(
    history: list[tuple[int, float]], one: int, other: int
) -> None:
    """The prediction is never negative and never falls with size, whatever the history says."""
    small, large = sorted((one, other))

    shorter, longer = predict_restore_s(history, small), predict_restore_s(history, large)

    assert shorter is not None
    assert longer is not None
    assert 0 <= shorter <= longer


@given(sizes)
def test_the_disk_asked_for_holds_the_database_and_its_wal(size: int) -> None:
    """Free disk is checked before a restore begins, for the data and for the WAL between two checkpoints."""
    assert disk_needed_bytes(size, wal_limit_bytes=wal_limit_for(size)) > size + min(size, wal_limit_for(size))
