"""`drills/*.json`: what one drill measured, or one real failover, switchover or recovery. Frozen, written once.

A drill on a copy shows that the code works and how long it takes here; only the system itself shows that the system
works. So each score says which of the two it is of, and their ages are told apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from synapse_ops.domain.backup.layout import format_time, parse_time
from synapse_ops.domain.canonical_json import canonical_json, reading
from synapse_ops.domain.recovery.prediction import FEWEST, Measured, Prediction, predict
from synapse_ops.errors import counted

PREFIX = "drills/"
BEGUN = "drills/begun.json"  # since when drills are waited for
VERSION = 1
_OWN_KEY = re.compile(r"drills/(\d{8}T\d{6}Z)-[0-9a-f]{6}\.json", re.ASCII)
_MOST_PHASES, _MOST_TEXT = 40, 2000


class Scenario(StrEnum):
    """What happened, on purpose or not."""

    FAILOVER_DRILL = "failover drill"
    RECOVERY_DRILL = "recovery drill"
    FAILOVER = "failover"
    SWITCHOVER = "switchover"
    RECOVERY = "recovery"


class Of(StrEnum):
    """What was tried: the code on a disposable copy, or this system itself."""

    COPY = "copy"
    SYSTEM = "this system"


@dataclass(frozen=True, slots=True)
class DrillScore:
    """One score.

    at: when it began, aware UTC. reason: why it failed; empty when it passed. phases: (name, seconds) in order, each
    from the end of the one before. predicted: before it began; None: no prediction yet. lost_writes: acknowledged and
    not there afterwards; None: nobody counted. rto_s: from the fault to the first write, or to the end of a restore;
    rpo_s: how much work was lost, in time; None: not known. size_bytes: of the data.
    """

    scenario: Scenario
    of: Of
    at: datetime
    reason: str
    phases: tuple[tuple[str, float], ...]
    predicted: Prediction | None
    lost_writes: int | None
    rto_s: float | None
    rpo_s: float | None
    size_bytes: int
    code_version: str

    @property
    def passed(self) -> bool:
        return not self.reason

    @property
    def took_s(self) -> float | None:
        """What is predicted: `rto_s`, of a recovery without the time that a person took to approve it."""
        if self.scenario is Scenario.RECOVERY and self.rto_s is not None:
            return round(sum(seconds for _, seconds in self.phases), 3)
        return self.rto_s

    @property
    def is_inside(self) -> bool | None:
        """Whether it took as long as predicted; None where nothing was predicted or measured."""
        return self.predicted.holds(self.took_s) if self.predicted is not None and self.took_s is not None else None

    @property
    def expected(self) -> str:
        """What was predicted, in words."""
        found = self.predicted
        if found is None:
            return "no prediction yet"
        return f"predicted {found.seconds:.2f} s ({found.low_s:.2f} to {found.high_s:.2f})"

    def to_bytes(self) -> bytes:
        """Return the document."""
        predicted = self.predicted
        return canonical_json(
            VERSION,
            {
                "scenario": str(self.scenario),
                "of": str(self.of),
                "at": self.at.isoformat(),
                "result": "passed" if self.passed else "failed",
                "reason": self.reason,
                "phases": [[name, seconds] for name, seconds in self.phases],
                "predicted_s": predicted.seconds if predicted else None,
                "predicted_interval_s": [predicted.low_s, predicted.high_s] if predicted else None,
                "lost_writes": self.lost_writes,
                "rto_s": self.rto_s,
                "rpo_s": self.rpo_s,
                "size_bytes": self.size_bytes,
                "code_version": self.code_version,
            },
        )

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> DrillScore:
        """Return the score. Raises DocumentUnreadable, naming the key, for whatever else it is."""
        with reading(data, f"the score {key}", VERSION) as body:
            at, reason = datetime.fromisoformat(body.pop("at")), _text(body.pop("reason"))
            if at.tzinfo is None:
                raise ValueError("at has no time zone")
            if body.pop("result") != ("failed" if reason else "passed"):
                raise ValueError("result and reason contradict each other")
            score = cls(
                scenario=Scenario(body.pop("scenario")),
                of=Of(body.pop("of")),
                at=at,
                reason=reason,
                phases=tuple((_text(name), _seconds(value)) for name, value in body.pop("phases")[:_MOST_PHASES]),
                predicted=_prediction(body.pop("predicted_s"), body.pop("predicted_interval_s")),
                lost_writes=_count(body.pop("lost_writes")),
                rto_s=_optional(body.pop("rto_s")),
                rpo_s=_optional(body.pop("rpo_s")),
                size_bytes=_count(body.pop("size_bytes")) or 0,
                code_version=_text(body.pop("code_version")),
            )
            if body:
                raise ValueError(f"it has the field {min(body)}, which version {VERSION} does not know")
        return score


def score_key(score: DrillScore, entropy: bytes) -> str:
    """Return the key of a new score: sorts by the second of its beginning, unique by 3 bytes of entropy."""
    return f"{PREFIX}{format_time(score.at)}-{entropy[:3].hex()}.json"


def is_score_key(key: str) -> bool:
    """Whether a key of the repository is one that we give to a score."""
    found = _OWN_KEY.fullmatch(key)
    try:
        return found is not None and format_time(parse_time(found[1])) == found[1]
    except ValueError:
        return False


def predict_next(scores: Iterable[DrillScore], scenario: Scenario, of: Of, size_bytes: int) -> Prediction | None:
    """Return how long the next run of a scenario will take, by the ones that passed; None: no prediction yet.

    scores: in any order.
    """
    return predict(_alike(scores, scenario, of), size_bytes)


@dataclass(frozen=True, slots=True)
class Expected:
    """How long something takes by its former runs. runs: how many passed; predicted: None: too few."""

    scenario: Scenario
    of: Of
    runs: int
    predicted: Prediction | None

    @property
    def words(self) -> str:
        name = str(self.scenario)
        runs = counted(self.runs, name, f"{name.removesuffix('y')}ies" if name.endswith("y") else "")
        found = self.predicted
        if found is None:
            return f"no prediction yet: {runs}, {FEWEST} are needed"
        return f"{found.seconds:.1f} s ({found.low_s:.1f} to {found.high_s:.1f}), by {runs}"


def expect_next(scores: Sequence[DrillScore], scenario: Scenario, of: Of) -> Expected:
    """Return what the next run takes, with as much data as the newest of them had. scores: in any order."""
    runs = _alike(scores, scenario, of)
    return Expected(scenario, of, len(runs), predict(runs, runs[-1].size_bytes) if runs else None)


def _alike(scores: Iterable[DrillScore], scenario: Scenario, of: Of) -> list[Measured]:
    """Return what the passed runs of a scenario took, in the order in which they ran."""
    passed = (one for one in scores if one.scenario is scenario and one.of is of and one.passed)
    return [
        Measured(one.size_bytes, one.took_s) for one in sorted(passed, key=lambda one: one.at) if one.took_s is not None
    ]


def _prediction(seconds: Any, interval: Any) -> Prediction | None:
    if seconds is None and interval is None:
        return None
    low, high = interval
    return Prediction(_seconds(seconds), _seconds(low), _seconds(high))


def _optional(value: Any) -> float | None:
    return None if value is None else _seconds(value)


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r} is no number of seconds")
    return float(value)


def _count(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError(f"{value!r} is no count")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MOST_TEXT:
        raise ValueError("a text is none, or too long")
    return value
