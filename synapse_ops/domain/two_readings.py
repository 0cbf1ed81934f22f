"""What two readings of something that changes say together: bounds that a copy of it has to keep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

LEAST_SLACK_RATIO = 0.01  # of the points: how far the count of a sampled copy may lie outside the window's two counts


class TwoReadings(Protocol):
    """What two readings of a live store show about the copy taken between them; points here are keys elsewhere."""

    @property
    def scope(self) -> Literal["all", "sample"]: ...
    @property
    def has_window(self) -> bool: ...
    @property
    def count_before(self) -> int: ...
    @property
    def count_after(self) -> int: ...
    @property
    def still(self) -> Mapping[str, Any]: ...
    @property
    def moved(self) -> Sequence[str]: ...


def count_bounds(expected: TwoReadings) -> tuple[int, int]:
    """Return the least and the most points that a copy may hold.

    All points known: those that stood still, and those that moved; passing ones come on top where there was a window.
    A sample: the two counts, with slack for what came and went in between, as the sample and the ids show it.
    """
    low, high = sorted((expected.count_before, expected.count_after))
    if not expected.has_window:
        return low, high
    if expected.scope == "all":
        return len(expected.still), len(expected.still) + len(expected.moved)
    sampled = max(1, len(expected.still) + len(expected.moved))
    moved_ratio = max(LEAST_SLACK_RATIO, 3 * len(expected.moved) / sampled)
    slack = math.ceil(moved_ratio * high) + high - low
    return max(0, low - slack), high + slack
