"""How long the next run of a scenario takes, by what former runs took; and an interval that holds 9 of 10. Pure.

The time is that of the line which also predicts a restore. Then each of the last runs is predicted from the others: by
what factor was the line wrong? The interval is the predicted time, divided and multiplied by the worst of these
factors. That needs no distribution, only ranks: of n + 1 runs that are alike each is the worst with the same chance, so
the next one stays inside n times of n + 1 (conformal prediction, Vovk 2005; by leaving one out, Barber et al. 2021).
Nine runs are the fewest that promise 9 of 10, so the tenth is the first with a prediction. Eighteen promise 18 of 19,
which pays for what is not alike: a database that grows, a new disk. After such a step the first run misses, then the
interval is wide, and when eighteen runs have passed the former ones are forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from synapse_ops.domain.backup.restore_estimate import predict_restore_s

FEWEST, WINDOW = 9, 18  # former runs
_LEAST_S = 1e-3  # a time of zero is no factor of anything


@dataclass(frozen=True, slots=True)
class Measured:
    """One former run: how much there was, and how long it took."""

    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """seconds: most likely. low_s, high_s: 9 of 10 runs take between these."""

    seconds: float
    low_s: float
    high_s: float

    def holds(self, seconds: float) -> bool:
        """Whether a measured time lies inside the interval."""
        return self.low_s <= seconds <= self.high_s


def predict(history: Sequence[Measured], size_bytes: int) -> Prediction | None:
    """Return how long a run of this size takes; None: no prediction yet, for fewer than nine runs.

    history: of one scenario, in the order in which they ran; the last `WINDOW` count.
    """
    recent = [Measured(max(1, one.size_bytes), max(_LEAST_S, one.seconds)) for one in history[-WINDOW:]]
    if len(recent) < FEWEST:
        return None
    wrong = max(
        abs(math.log(one.seconds / _line([*recent[:number], *recent[number + 1 :]], one.size_bytes)))
        for number, one in enumerate(recent)
    )
    seconds, factor = _line(recent, size_bytes), math.exp(wrong)
    return Prediction(round(seconds, 3), round(seconds / factor, 3), round(seconds * factor, 3))


def _line(runs: Sequence[Measured], size_bytes: int) -> float:
    predicted = predict_restore_s([(one.size_bytes, one.seconds) for one in reversed(runs)], max(1, size_bytes))
    return max(_LEAST_S, predicted or 0.0)
