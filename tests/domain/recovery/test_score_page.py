"""The page of drills: silence, failures and broken promises are red; a new installation is neither red nor green."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from synapse_ops.defs.event_metadata import MOST_MARKDOWN
from synapse_ops.domain.recovery.drill_score import DrillScore, Of, Scenario
from synapse_ops.domain.recovery.prediction import Prediction
from synapse_ops.domain.recovery.recoverability import Objectives
from synapse_ops.domain.recovery.score_page import MAX_AGE, ScorePage
from synapse_ops.domain.recovery.window_picture import as_markdown

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
DAY = timedelta(days=1)
FAILOVER = DrillScore(
    Scenario.FAILOVER_DRILL, Of.COPY, NOW - 3 * DAY, "", (("first write", 2.5),), None, 0, 2.5, 0.0, 1, "0.1.0"
)
RECOVERY = replace(FAILOVER, scenario=Scenario.RECOVERY_DRILL, rto_s=40.0, lost_writes=None)
PAGE = ScorePage(
    scores=(FAILOVER, RECOVERY),
    unreadable=(),
    expected=(Scenario.FAILOVER_DRILL, Scenario.RECOVERY_DRILL),
    objectives=Objectives(rpo=timedelta(minutes=1), rto=timedelta(minutes=1)),
    begun_at=NOW - 300 * DAY,
    now=NOW,
)


def test_the_age_of_the_code_on_a_copy_is_told_apart_from_that_of_this_system() -> None:
    """A copy that fails over shows nothing of this system's network, disks and operators."""
    assert PAGE.is_met
    assert "failover: code on a copy: 3 days ago; this system: never" in PAGE.sentence
    switched = replace(FAILOVER, scenario=Scenario.SWITCHOVER, of=Of.SYSTEM, at=NOW - 400 * DAY)
    assert "this system: 400 days ago" in replace(PAGE, scores=(FAILOVER, RECOVERY, switched)).sentence


def test_a_new_installation_is_not_red_on_its_first_day_and_not_green_for_ever() -> None:
    """35 days from the first look; since when nobody knows is red; a scenario that is off is not waited for."""
    fresh = replace(PAGE, scores=(), begun_at=NOW - timedelta(hours=1))

    assert fresh.is_met
    assert "no drill yet; this is red in 34 d 23 h" in fresh.sentence
    late = replace(fresh, begun_at=NOW - MAX_AGE - timedelta(hours=1))
    assert [fault.partition(" has")[0] for fault in late.faults] == ["no failover drill", "no recovery drill"]
    assert not replace(fresh, begun_at=None).is_met
    assert replace(late, expected=()).is_met


@pytest.mark.parametrize(
    ("score", "says"),
    [
        (replace(FAILOVER, at=NOW - MAX_AGE - DAY), "the last failover drill that passed was 36 days ago, limit 35 d"),
        (replace(FAILOVER, reason="not armed"), "the last failover drill failed 3 days ago: not armed"),
        (replace(FAILOVER, rto_s=61.0), "the failover drill took 61.0 s, objectives.rto is 1 min"),
        (replace(FAILOVER, rpo_s=90.0), "the failover drill lost 90.0 s of work, objectives.rpo is 1 min"),
    ],
)
def test_what_a_drill_did_not_show_turns_the_page_red(score: DrillScore, says: str) -> None:
    """Age, result, time and loss are judged, each with both values."""
    assert says in replace(PAGE, scores=(score, RECOVERY)).faults


def test_an_old_failover_of_this_system_is_judged_for_35_days_only() -> None:
    """A slow night of last year must not keep the page red."""
    slow = replace(FAILOVER, scenario=Scenario.FAILOVER, of=Of.SYSTEM, rto_s=600.0)
    assert "the failover took 600.0 s, objectives.rto is 1 min" in replace(PAGE, scores=(*PAGE.scores, slow)).faults
    assert replace(PAGE, scores=(*PAGE.scores, replace(slow, at=NOW - MAX_AGE - DAY))).is_met


def test_the_picture_shows_a_year_of_drills_in_place() -> None:
    """Dagster hides Markdown of a thousand characters; a time outside of its interval has a color of its own."""
    scores = [
        replace(one, at=NOW - week * 7 * DAY, predicted=Prediction(30.0, 22.25, 41.75), rto_s=23.0 + week)
        for week in range(52)
        for one in (FAILOVER, RECOVERY)
    ]
    scores[0] = replace(scores[0], rto_s=99.0)
    scores[2] = replace(scores[2], predicted=None)
    drawn = as_markdown(replace(PAGE, scores=tuple(scores)).picture(), "drills")

    assert len(drawn) < MOST_MARKDOWN
    assert all(color in drawn for color in ("green", "orange", "gray"))
    assert "failover drill, up to 99.0 s" in drawn


def test_a_score_that_cannot_be_read_is_named_and_judges_nothing() -> None:
    """It may be of a newer version; the others still count."""
    page = replace(PAGE, unreadable=("cannot read the score drills/x.json: it is cut",))
    assert page.is_met
    assert "1 score could not be read: cannot read the score drills/x.json" in page.sentence
