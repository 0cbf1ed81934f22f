"""Drills in Dagster: four weeks of the schedule, what the page says of them, and what a failed one leaves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._utils.schedules import schedule_execution_time_iterator

from synapse_ops.defs.recovery import drills
from synapse_ops.defs.recovery.drills import CHECK_NAME, SCORES_KEY, drill_definitions, refresh
from synapse_ops.domain.recovery.drill_score import DrillScore, Of, Scenario
from synapse_ops.operations.recovery.scores import read_scores
from synapse_ops.operations.stack import Stack, open_stack
from synapse_ops.systems.s3.store import StoreAccess
from tests.dagster_instances import shared_definitions

BEGIN = datetime(2026, 11, 2, 12, 0, tzinfo=UTC)
SCORE = DrillScore(
    Scenario.FAILOVER_DRILL,
    Of.COPY,
    BEGIN,
    "",
    (("detected", 0.25), ("first write", 2.25)),
    None,
    0,
    2.5,
    0.0,
    8 << 20,
    "0.1.0",
)


@dataclass
class Weeks:
    """A store, the definitions of drills, and an instance. next: what the next drill of each scenario measures."""

    stack: Stack
    definitions: dg.Definitions
    instance: dg.DagsterInstance
    next: dict[Scenario, DrillScore]
    cursor: str | None = None

    def look(self, now: datetime) -> dict[str, Any] | None:
        """Evaluate the sensor once; return the page's metadata and what the check said, None where it was skipped."""
        found = refresh(self.cursor, self.stack, list(self.next), now.timestamp())
        if isinstance(found, dg.SkipReason):
            return None
        self.cursor = found.cursor
        page, verdict = found.asset_events
        assert isinstance(page, dg.AssetMaterialization)
        assert isinstance(verdict, dg.AssetCheckEvaluation)
        return {**page.metadata, "passed": verdict.passed, "says": verdict.description}

    def run(self, job: str) -> bool:
        found = self.definitions.resolve_job_def(job)
        return found.execute_in_process(instance=self.instance, raise_on_error=False).success


@pytest.fixture
def weeks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, object_store_access: StoreAccess, bucket_url: str
) -> Iterator[Weeks]:
    monkeypatch.setenv("WEEKS_ACCESS_KEY_ID", object_store_access.access_key or "")
    monkeypatch.setenv("WEEKS_SECRET_ACCESS_KEY", object_store_access.secret_key or "")
    spec = tmp_path / "infrastructure.yaml"
    spec.write_text(
        "time_zone: Europe/Berlin\nobjectives: {rto: 1m}\n"
        f"backup: {{database: {{destination: '{bucket_url}'}}}}\n"
        f"object_store: {{endpoint: '{object_store_access.endpoint}', credentials: 'env:WEEKS'}}\n"
    )
    stack = open_stack(spec, tmp_path)
    scores = {SCORE.scenario: SCORE, Scenario.RECOVERY_DRILL: replace(SCORE, scenario=Scenario.RECOVERY_DRILL)}
    monkeypatch.setattr(drills, "_failover", lambda: lambda *_: scores[Scenario.FAILOVER_DRILL])
    monkeypatch.setattr(drills, "_recovery", lambda: lambda *_: scores[Scenario.RECOVERY_DRILL])
    definitions = dg.Definitions.merge(
        shared_definitions(monkeypatch, stack), drill_definitions(stack.spec, has_programs=True)
    )
    with dg.instance_for_test() as instance:
        yield Weeks(stack, definitions, instance, scores)


def test_four_weeks_of_the_schedule_fill_the_page(weeks: Weeks) -> None:
    """Two drills each Saturday, an hour apart, in the spec's time zone; between them only ages change."""
    fresh = weeks.look(BEGIN)
    assert fresh is not None
    assert fresh["passed"]
    assert "no drill yet" in fresh["says"]
    ticks = []
    for scenario, job in ((Scenario.FAILOVER_DRILL, "drill_failover"), (Scenario.RECOVERY_DRILL, "drill_recovery")):
        schedule = weeks.definitions.resolve_schedule_def(f"{job}_schedule")
        times = schedule_execution_time_iterator(
            BEGIN.timestamp(), schedule.cron_schedule, schedule.execution_timezone, ascending=True
        )
        ticks += [(next(times), scenario, job) for _ in range(4)]

    for at, scenario, job in sorted(ticks):
        weeks.next[scenario] = replace(weeks.next[scenario], at=at)
        assert weeks.run(job)
        assert weeks.look(at + timedelta(minutes=5)) is not None
        assert weeks.look(at + timedelta(minutes=10)) is None
    page = weeks.look(max(ticks)[0] + timedelta(days=3))

    assert [f"{at:%a %H:%M}" for at, _, _ in sorted(ticks)] == ["Sat 04:00", "Sat 05:00"] * 4
    assert page is not None
    assert page["passed"]
    assert "failover: code on a copy: 3 days ago; this system: never" in page["says"]
    assert len(page["scores"].records) == page["kept_scores"].value == 8
    assert page["measured"].value.startswith("![drills](")
    silent = weeks.look(max(ticks)[0] + timedelta(days=36))
    assert silent is not None
    assert not silent["passed"]
    assert "that passed was 36 days ago, limit 35 d" in silent["says"]


def test_a_failed_drill_fails_its_run_keeps_its_score_and_turns_the_page_red(weeks: Weeks) -> None:
    """The alarm of the failed run is at once; the page says why, also next week."""
    weeks.next[Scenario.FAILOVER_DRILL] = replace(SCORE, reason="not failed over (refused): it is behind")

    assert not weeks.run("drill_failover")
    page = weeks.look(BEGIN + timedelta(days=1))

    assert page is not None
    assert not page["passed"]
    assert "The last failover drill failed 1 day ago: not failed over (refused): it is behind" in page["says"]
    assert [one.passed for one in read_scores(weeks.stack.database_repository()).scores] == [False]


def test_an_unreachable_store_turns_the_page_red_once(weeks: Weeks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown is never good, and not news every five minutes."""
    monkeypatch.setenv("WEEKS_SECRET_ACCESS_KEY", "wrong")
    found = refresh(None, weeks.stack, [], BEGIN.timestamp())

    assert isinstance(found, dg.SensorResult)
    [said] = found.asset_events
    assert isinstance(said, dg.AssetCheckEvaluation)
    assert (said.asset_key, said.check_name, said.passed) == (SCORES_KEY, CHECK_NAME, False)
    assert isinstance(refresh(found.cursor, weeks.stack, [], BEGIN.timestamp()), dg.SkipReason)


def test_what_is_off_or_not_possible_has_no_schedule_and_is_not_waited_for(weeks: Weeks, tmp_path: Path) -> None:
    """The drills stay as buttons; without the programs of an embedded stack there is no copy to fail over."""

    def made(text: str, *, has_programs: bool = True) -> tuple[set[str], set[str]]:
        path = tmp_path / "other.yaml"
        path.write_text(text)
        found = drill_definitions(open_stack(path, tmp_path).spec, has_programs=has_programs)
        return {job.name for job in found.jobs or ()}, {str(one.name) for one in found.schedules or ()}

    both = {"drill_failover", "drill_recovery"}
    assert made('drills: {failover: "off", recovery: "off"}\n') == (both, set())
    assert made("name: a\n", has_programs=False) == ({"drill_recovery"}, {"drill_recovery_schedule"})
    assert made("failover: {standby: null}\n")[0] == {"drill_recovery"}
    assert made('backup: {database: {wal_archiving: "off"}}\n')[0] == {"drill_failover"}
