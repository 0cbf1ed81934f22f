"""Scores as documents: read back as they were written, and refused in words when somebody else wrote them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from synapse_ops.domain.recovery.drill_score import (
    DrillScore,
    Of,
    Scenario,
    expect_next,
    is_score_key,
    predict_next,
    score_key,
)
from synapse_ops.domain.recovery.prediction import Prediction
from synapse_ops.errors import DocumentUnreadable

SCORE = DrillScore(
    scenario=Scenario.FAILOVER_DRILL,
    of=Of.COPY,
    at=datetime(2026, 11, 28, 4, 0, tzinfo=UTC),
    reason="",
    phases=(("verified", 1.5), ("detected", 0.25)),
    predicted=Prediction(2.0, 1.5, 2.75),
    lost_writes=0,
    rto_s=1.75,
    rpo_s=0.0,
    size_bytes=1 << 30,
    code_version="0.1.0",
)


@pytest.mark.parametrize(
    "score",
    [SCORE, replace(SCORE, predicted=None, lost_writes=None, rto_s=None, rpo_s=None, reason="not armed", phases=())],
    ids=["of a drill that passed", "of one that failed at once"],
)
def test_a_score_is_read_as_it_was_written(score: DrillScore) -> None:
    """Phases keep their order, and what is not known stays unknown."""
    assert DrillScore.from_bytes(score.to_bytes(), "drills/x") == score


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("at", "2026-11-28T04:00:00"),
        ("scenario", "fire"),
        ("result", "failed"),
        ("rto_s", -1),
        ("rto_s", True),
        ("rpo_s", "0"),
        ("lost_writes", 1.5),
        ("phases", [["detected"]]),
        ("phases", 7),
        ("predicted_interval_s", None),
        ("reason", "x" * 3000),
        ("format_version", 2),
        ("more", 1),
    ],
)
def test_what_is_no_score_is_named_and_says_why(field: str, value: object) -> None:
    """Whoever may write into the bucket chooses these bytes: an unknown field or version is refused, not guessed."""
    body = json.loads(SCORE.to_bytes()) | {field: value}
    with pytest.raises(DocumentUnreadable, match=r"drills/x\.json"):
        DrillScore.from_bytes(json.dumps(body).encode(), "drills/x.json")


def test_only_keys_of_our_form_are_scores() -> None:
    """A foreign object below drills/ is left alone."""
    key = score_key(SCORE, b"\x01\x02\x03\x04")
    assert key == "drills/20261128T040000Z-010203.json"
    assert is_score_key(key)
    assert not any(
        is_score_key(one) for one in (key + ".bak", "drills/20261399T040000Z-010203.json", "drills/", "x/" + key)
    )


def test_a_prediction_is_of_one_scenario_on_one_kind_of_system_and_of_runs_that_passed() -> None:
    """A restore says nothing of a failover, a small copy nothing of this system, a failed drill nothing of time."""
    runs = [replace(SCORE, at=SCORE.at + timedelta(weeks=week)) for week in range(9)]
    noise = [replace(SCORE, scenario=Scenario.RECOVERY_DRILL), replace(SCORE, of=Of.SYSTEM), replace(SCORE, reason="x")]

    def predicted(scores: list[DrillScore]) -> Prediction | None:
        return predict_next(scores, Scenario.FAILOVER_DRILL, Of.COPY, SCORE.size_bytes)

    assert predicted(runs) is not None
    assert predicted(runs[:8] + noise) is None

    assert SCORE.is_inside
    assert replace(SCORE, rto_s=9.0).is_inside is False
    assert replace(SCORE, rto_s=None).is_inside is None


def test_the_time_that_a_person_took_to_approve_a_recovery_is_not_predicted() -> None:
    """From the first look to the first write it was an hour; the steps took 30 s, and so will the next ones."""
    recovery = replace(SCORE, scenario=Scenario.RECOVERY, of=Of.SYSTEM, rto_s=3600.0, phases=(("a", 20.0), ("b", 10.0)))
    runs = [replace(recovery, at=SCORE.at + timedelta(days=day)) for day in range(9)]

    found = expect_next([SCORE, *runs[::-1]], Scenario.RECOVERY, Of.SYSTEM)

    assert found.predicted == Prediction(30.0, 30.0, 30.0)
    assert found.words == "30.0 s (30.0 to 30.0), by 9 recoveries"
    assert expect_next(runs[1:], Scenario.RECOVERY, Of.SYSTEM).words == "no prediction yet: 8 recoveries, 9 are needed"
    assert replace(recovery, predicted=Prediction(30.0, 29.0, 31.0)).is_inside
