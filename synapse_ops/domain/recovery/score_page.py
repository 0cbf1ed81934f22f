"""The page of drills: what was rehearsed when, how long it took, whether that is what was promised. Pure.

Code that works on a copy is one thing, a system that has failed over another: both ages are told, each by itself.
Silence turns red: where no drill of a scheduled scenario has passed for 35 days, counted from the first look at this
repository where none ever has, so that a new installation is neither red on its first day nor green for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from synapse_ops.domain.durations import format_age, format_days
from synapse_ops.domain.recovery.drill_score import DrillScore, Of, Scenario
from synapse_ops.domain.recovery.recoverability import Objectives
from synapse_ops.errors import counted

MAX_AGE = timedelta(days=35)
SHOWN = 10  # runs in the picture, which has to stay under a thousand characters
COLUMNS = ("scenario", "at", "result", "seconds", "predicted_s", "lost", "phases")
FAMILIES = {
    "failover": (Scenario.FAILOVER_DRILL, Scenario.FAILOVER, Scenario.SWITCHOVER),
    "recovery": (Scenario.RECOVERY_DRILL, Scenario.RECOVERY),
}
_WIDTH, _HEIGHT, _LEFT, _STEP = 320, 64, 8, 26


@dataclass(frozen=True, slots=True)
class ScorePage:
    """What the page judges.

    scores: newest first. unreadable: what could not be read. expected: drills that the spec schedules. begun_at: since
    when drills are waited for; None: nobody can say.
    """

    scores: tuple[DrillScore, ...]
    unreadable: tuple[str, ...]
    expected: tuple[Scenario, ...]
    objectives: Objectives
    begun_at: datetime | None
    now: datetime

    def newest(self, *scenarios: Scenario, of: Of | None = None, passed: bool = False) -> DrillScore | None:
        """Return the newest score of some scenarios; passed: that passed. None: never."""
        return next(
            (
                one
                for one in self.scores
                if one.scenario in scenarios and of in {None, one.of} and (one.passed or not passed)
            ),
            None,
        )

    @property
    def faults(self) -> tuple[str, ...]:
        """What makes the page red, a clause each."""
        return tuple(self._faults())

    def _faults(self) -> Iterator[str]:
        for scenario in self.expected:
            passed, last = self.newest(scenario, passed=True), self.newest(scenario)
            if last is not None and not last.passed:
                yield f"the last {scenario} failed {self._ago(last)}: {last.reason}"
            since = passed.at if passed is not None else self.begun_at
            if since is None:
                yield f"no {scenario} has passed, and since when one is due is not known"
            elif self.now - since > MAX_AGE:
                limit = format_days(MAX_AGE)
                if passed is None:
                    yield f"no {scenario} has passed in {counted((self.now - since).days, 'day')}, limit {limit}"
                else:
                    yield f"the last {scenario} that passed was {self._ago(passed)}, limit {limit}"
        for scenario in Scenario:
            last = self.newest(scenario, passed=True)
            if last is not None and self.now - last.at <= MAX_AGE:
                yield from self._missed(last)

    def _missed(self, score: DrillScore) -> Iterator[str]:
        rto_s, rpo_s = self.objectives.rto.total_seconds(), self.objectives.rpo.total_seconds()
        if score.rto_s is not None and score.rto_s > rto_s:
            yield f"the {score.scenario} took {score.rto_s:.1f} s, objectives.rto is {format_days(self.objectives.rto)}"
        if score.rpo_s is not None and score.rpo_s > rpo_s:
            limit = format_days(self.objectives.rpo)
            yield f"the {score.scenario} lost {score.rpo_s:.1f} s of work, objectives.rpo is {limit}"

    @property
    def is_met(self) -> bool:
        return not self.faults

    @property
    def sentence(self) -> str:
        """Return both ages in words, and what is wrong."""
        said = [f"{name}: {self.ages(name)}" for name in FAMILIES]
        if self.faults:
            said = [f"{fault[0].upper()}{fault[1:]}" for fault in self.faults] + said
        elif not self.scores and self.expected and self.begun_at is not None:
            left = MAX_AGE - (self.now - self.begun_at)
            said.append(f"no drill yet; this is red in {format_age(left)} unless one passes")
        if self.unreadable:
            said.append(f"{counted(len(self.unreadable), 'score')} could not be read: {self.unreadable[0]}")
        return ". ".join(said) + "."

    def ages(self, family: str) -> str:
        """Return how long ago the code worked on a copy, and how long ago this system did."""
        copy = self.newest(*FAMILIES[family], of=Of.COPY, passed=True)
        system = self.newest(*FAMILIES[family], of=Of.SYSTEM, passed=True)
        return f"code on a copy: {self._ago(copy)}; this system: {self._ago(system)}"

    def _ago(self, score: DrillScore | None) -> str:
        if score is None:
            return "never"
        days = (self.now - score.at).days
        return counted(days, "day") + " ago" if days >= 1 else "today"

    def rows(self) -> list[dict[str, Any]]:
        """Return the table, newest first, in words. A drill is of a copy, all else of this system. lost: writes."""
        return [
            {
                "scenario": str(one.scenario),
                "at": f"{one.at:%Y-%m-%d %H:%M}Z",
                "result": "passed" if one.passed else f"failed: {one.reason}",
                "seconds": "-" if one.took_s is None else f"{one.took_s:.1f}",
                "predicted_s": f"{found.low_s:.1f} to {found.high_s:.1f}" if (found := one.predicted) else "none yet",
                "lost": "-" if one.lost_writes is None else str(one.lost_writes),
                "phases": ", ".join(f"{name} {seconds:.1f}" for name, seconds in one.phases),
            }
            for one in self.scores
        ]

    def picture(self) -> str:
        """Return the last drills as SVG: measured times as marks, the predicted intervals as bars behind them.

        Green lies inside its interval, orange outside, gray had no prediction yet.
        """
        drawn = [
            (scenario, runs)
            for scenario in (Scenario.FAILOVER_DRILL, Scenario.RECOVERY_DRILL)
            if (runs := [one for one in self.scores if one.scenario is scenario and one.rto_s is not None][:SHOWN])
        ]
        rows = "".join(_row(number, scenario, runs[::-1]) for number, (scenario, runs) in enumerate(drawn))
        return f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{_HEIGHT * len(drawn)}'>{rows}</svg>"


def _row(number: int, scenario: Scenario, runs: Sequence[DrillScore]) -> str:
    top, bottom = _HEIGHT * number + 16, _HEIGHT * (number + 1) - 4
    most = max(max(one.took_s or 0.0, one.predicted.high_s if one.predicted else 0.0) for one in runs) or 1.0

    def y(seconds: float) -> int:
        return bottom - round((bottom - top) * seconds / most)

    def marks(is_inside: bool | None) -> str:
        return "".join(
            f"M{_LEFT + _STEP * place} {y(one.took_s or 0.0)}h8"
            for place, one in enumerate(runs)
            if one.is_inside is is_inside
        )

    bars = "".join(
        f"M{_LEFT + _STEP * place + 4} {y(one.predicted.low_s) + 1}V{y(one.predicted.high_s)}"
        for place, one in enumerate(runs)
        if one.predicted is not None
    )
    paths = ((bars, "#9d9", 8), (marks(True), "green", 4), (marks(False), "orange", 4), (marks(None), "gray", 4))
    drawn = "".join(f"<path stroke='{color}' stroke-width='{width}' d='{d}'/>" for d, color, width in paths if d)
    return f"<text y='{top - 4}'>{scenario}, up to {most:.1f} s</text>{drawn}"
