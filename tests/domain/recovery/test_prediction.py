"""The interval of a prediction: nine of ten measured times lie inside, for what drills really look like."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from synapse_ops.domain.recovery.prediction import Measured, Prediction, predict

GIB = 1 << 30
Load = Callable[[int], tuple[float, float]]  # run -> (GiB, seconds without noise)


def test_the_tenth_run_is_the_first_with_a_prediction() -> None:
    """Of fewer than nine former runs, no interval can promise nine of ten."""
    runs = [Measured(GIB, 10 + number / 10) for number in range(9)]

    assert predict(runs[:-1], GIB) is None
    assert predict(runs, GIB) is not None


def constant(_: int) -> tuple[float, float]:
    return 0.1, 3.0


def growing(run: int) -> tuple[float, float]:
    return 1.02**run, 3 + 20 * 1.02**run


@pytest.mark.parametrize(
    ("load", "noise", "outliers"),
    [
        pytest.param(constant, 0.15, 0.05, id="a failover: the same each time"),
        pytest.param(growing, 0.15, 0.0, id="a database that grows by 2 % a week"),
        pytest.param(growing, 0.5, 0.0, id="it grows on a busy host"),
        pytest.param(lambda run: (1.0, 60.0 if run < 30 else 30.0), 0.15, 0.0, id="a new disk, twice as fast"),
        pytest.param(lambda run: (1.02**run, (20 if run < 30 else 40) * 1.02**run), 0.15, 0.0, id="twice as slow"),
    ],
)
def test_nine_of_ten_measured_times_lie_inside_the_interval(load: Load, noise: float, outliers: float) -> None:
    """Over sixty weeks with lognormal noise, and one run in twenty three times as slow: predicted before each ran."""
    inside = []
    for seed in range(6):
        chance, history = random.Random(seed), list[Measured]()
        for run in range(60):
            gib, seconds = load(run)
            seconds *= chance.lognormvariate(0, noise) * (3 if chance.random() < outliers else 1)
            found = Measured(round(gib * GIB * chance.uniform(0.98, 1.02)), seconds)
            predicted = predict(history, found.size_bytes)
            if predicted is not None:
                inside.append(predicted.holds(seconds))
            history.append(found)

    assert sum(inside) / len(inside) >= 0.9


def test_each_run_of_a_history_lies_inside_what_the_others_predict() -> None:
    """Leave one out: of any eighteen runs at most one in ten is outside of what the other seventeen say of it."""
    chance, outside = random.Random(7), 0
    for _ in range(20):
        runs = [Measured(chance.randrange(GIB, 4 * GIB), 0.0) for _ in range(18)]
        runs = [
            Measured(one.size_bytes, (5 + 9 * one.size_bytes / GIB) * chance.lognormvariate(0, 0.3)) for one in runs
        ]
        for number, one in enumerate(runs):
            predicted = predict(runs[:number] + runs[number + 1 :], one.size_bytes)
            outside += predicted is None or not predicted.holds(one.seconds)

    assert outside <= 36


def test_after_a_step_the_interval_is_wide_and_then_narrow_again() -> None:
    """A host that is four times as fast: one run misses, and eighteen runs later the slow ones are forgotten."""
    steady = [Measured(GIB, 40.0 + run % 3) for run in range(20)]
    after = [Measured(GIB, 10.0 + run % 3) for run in range(20)]
    hits = [
        bool((found := predict([*steady, *after[:run]], GIB)) and found.holds(after[run].seconds)) for run in range(20)
    ]

    assert hits == [False] + [True] * 19
    wide, narrow = predict([*steady, *after[:1]], GIB), predict([*steady, *after], GIB)
    assert wide is not None
    assert wide.high_s / wide.low_s > 10
    assert narrow is not None
    assert narrow.high_s / narrow.low_s < 1.6


def test_equal_times_are_predicted_as_they_are_and_a_time_of_zero_breaks_nothing() -> None:
    """A coarse clock, an empty database: the arithmetic of logarithms must not end the drill."""
    assert predict([Measured(GIB, 7.0)] * 12, GIB) == Prediction(7.0, 7.0, 7.0)
    assert predict([Measured(0, 0.0)] * 12, 0) is not None
