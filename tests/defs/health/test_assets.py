"""The prober's history as Dagster shows it: each change at once, one event an hour, red when nobody knows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from synapse_ops.defs.everything import merged_definitions
from synapse_ops.defs.health.events import CHECK_NAME, HealthTick, health_key
from synapse_ops.defs.resources import StackResource
from synapse_ops.domain.health.states import State
from synapse_ops.operations.health.availability import read_availability
from synapse_ops.operations.health.report import read_health
from synapse_ops.systems.dagster_storage import last_evaluation
from tests.health_history import WrittenHistory, watched

H, F = State.HEALTHY, State.FAILED
START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class Reported:
    """A Dagster instance that the sensor reports to."""

    def __init__(self, instance: dg.DagsterInstance, state_dir: Path) -> None:
        self.instance = instance
        self.state_dir = state_dir
        self.cursor: str | None = None

    def tick(self, now: datetime) -> int:
        tick = HealthTick(self.instance, self.cursor, self.state_dir)
        self.cursor = tick.run(now)
        for event in tick.events:
            self.instance.report_runless_asset_event(event)
        return len(tick.events)

    def pages(self, name: str) -> list[dg.AssetMaterialization]:
        """Return what the asset's page showed, the newest first."""
        records = self.instance.fetch_materializations(health_key(name), limit=100).records
        return [record.asset_materialization for record in records if record.asset_materialization is not None]

    def changes(self, name: str) -> list[str]:
        return [text for page in reversed(self.pages(name)) if "->" in (text := str(page.description))]

    def hours(self, name: str) -> int:
        return len(self.pages(name)) - len(self.changes(name))

    def is_green(self, name: str) -> bool | None:
        found = last_evaluation(self.instance, health_key(name), CHECK_NAME)
        return None if found is None else found.passed


@pytest.fixture
def reported(tmp_path: Path) -> Iterator[Reported]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Reported(instance, tmp_path)


def test_each_change_is_reported_once_and_turns_the_check(reported: Reported) -> None:
    """healthy -> failed -> healthy: two observations, whatever the number of ticks between."""
    history = WrittenHistory(reported.state_dir, ["api"], START)
    with watched(reported.state_dir):
        reported.tick(history.add("api", H))
        green = reported.is_green("api")
        now = history.add("api", F, F)
        reported.tick(now)
        reported.tick(now)
        red = reported.is_green("api")
        reported.tick(history.add("api", H, H))

    assert (green, red, reported.is_green("api")) == (True, False, True)
    assert reported.changes("api") == ["healthy -> failed: it said no", "failed -> healthy"]


def test_an_hour_is_one_event_however_often_the_sensor_ticks(reported: Reported) -> None:
    """Two hours without a change: one event at the start, then one for each whole hour with what was measured in it."""
    names, pause = ["api", "server/redis"], timedelta(minutes=3)
    history = WrittenHistory(reported.state_dir, names, START, interval=pause)
    with watched(reported.state_dir):
        for _ in range(40):
            history.add("server/redis", H)
            reported.tick(history.add("api", H))

    assert reported.hours("api") == reported.hours("server/redis") == 3
    metadata = reported.pages("api")[0].metadata
    assert metadata["verdicts"].value == 20
    assert metadata["uptime_ratio"].value == pytest.approx(1.0)


def test_the_page_of_what_is_down_says_so_as_soon_as_its_check(reported: Reported) -> None:
    """A page that shows the last hour's "healthy" beside a red check is not believed the next time."""
    history = WrittenHistory(reported.state_dir, ["api"], START)
    with watched(reported.state_dir):
        reported.tick(history.add("api", H))
        reported.tick(history.add("api", F, F))

    page = reported.pages("api")[0]
    assert reported.is_green("api") is False
    assert page.metadata["state"].value == "failed"
    assert page.metadata["reason"].value == "it said no"


def test_a_change_of_state_makes_the_report_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hourly report would say "10 of 10" for up to an hour. A tick without a change writes none."""
    spec = tmp_path / "infrastructure.yaml"
    spec.write_text("name: synapse\nwatch: {servers: []}\n")
    for name, value in {"SYNAPSE_SPEC": spec, "SYNAPSE_STATE_DIR": tmp_path, "SYNAPSE_EMBEDDED": 0}.items():
        monkeypatch.setenv(name, str(value))
    history = WrittenHistory(tmp_path, ["api"], datetime.now(UTC) - timedelta(minutes=2))
    history.add("api", H)
    sensor = merged_definitions().resolve_sensor_def("health_sensor")

    def written(cursor: str | None) -> tuple[list[tuple[str, object]], str]:
        context = dg.build_sensor_context(instance=instance, cursor=cursor, resources={"stack": StackResource()})
        result = sensor(context)
        assert isinstance(result, dg.SensorResult)
        events = [event for event in result.asset_events if event.asset_key == dg.AssetKey("health_report")]
        return [(type(event).__name__, event.description) for event in events], str(result.cursor)

    with dg.DagsterInstance.ephemeral() as instance, watched(tmp_path):
        first, cursor = written(None)
        same, cursor = written(cursor)
        history.add("api", F, F)
        changed, _ = written(cursor)

    assert [kind for kind, _ in first] == ["AssetMaterialization", "AssetCheckEvaluation"]
    assert same == []
    assert changed == [(kind, "0 of 1 healthy; failed: api") for kind, _ in first]


def test_a_prober_that_is_gone_turns_everything_red_and_makes_nothing_fresh(reported: Reported) -> None:
    """Old good news is not reported as news."""
    history = WrittenHistory(reported.state_dir, ["api"], START)
    with watched(reported.state_dir):
        now = history.add("api", H)
        reported.tick(now)
    before = reported.hours("api")

    for minutes in (10, 70, 130):
        reported.tick(now + timedelta(minutes=minutes))

    assert reported.is_green("api") is False
    assert reported.hours("api") == before
    assert len(reported.changes("api")) == 1
    assert reported.changes("api")[-1].startswith("healthy -> unknown: no verdict since")


def test_a_lost_cursor_repeats_no_change(reported: Reported) -> None:
    """It begins now, with the state of every probe."""
    history = WrittenHistory(reported.state_dir, ["api"], START)
    with watched(reported.state_dir):
        reported.tick(history.add("api", H))
        reported.tick(history.add("api", F, F))
        reported.cursor = None
        reported.tick(history.add("api", F))

    assert reported.changes("api") == ["healthy -> failed: it said no"]


def test_availability_counts_outages_of_the_window(tmp_path: Path) -> None:
    """Uptime is of the known time; what the window does not cover is told."""
    history = WrittenHistory(tmp_path, ["api"], START)
    history.add("api", *([H] * 20), *([F] * 10), *([H] * 10))

    [row] = read_availability(tmp_path, START, START + timedelta(minutes=40))

    assert row.outages.count == 1
    assert row.outages.longest == timedelta(minutes=5)
    assert row.time.failed_s == 300
    assert row.coverage_ratio == pytest.approx(39 * 30 / 2400)  # the first span was unknown


def test_reports_are_assets_with_the_table_and_the_last_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Materialised in a run: what people open in the morning."""
    spec = tmp_path / "infrastructure.yaml"
    spec.write_text("name: synapse\nwatch: {servers: []}\n")
    for name, value in {"SYNAPSE_SPEC": spec, "SYNAPSE_STATE_DIR": tmp_path, "SYNAPSE_EMBEDDED": 0}.items():
        monkeypatch.setenv(name, str(value))
    now = datetime.now(UTC)
    history = WrittenHistory(tmp_path, ["api", "db"], now - timedelta(minutes=3))
    history.add("api", *([H] * 6))
    history.add("db", H, *([F] * 5))
    defs = merged_definitions()

    with dg.DagsterInstance.ephemeral() as instance, watched(tmp_path):
        report = defs.resolve_job_def("report_health").execute_in_process(instance=instance)
        month = defs.resolve_job_def("report_availability").execute_in_process(
            instance=instance, run_config={"ops": {"availability_report": {"config": {"month": "current"}}}}
        )
        made = instance.get_latest_materialization_event(dg.AssetKey("health_report"))
        monthly = instance.get_latest_materialization_event(dg.AssetKey("availability_report"))
        [check] = report.get_asset_check_evaluations()

    assert report.success
    assert month.success
    assert made is not None
    assert monthly is not None
    metadata = made.asset_materialization.metadata  # type: ignore[union-attr]
    assert metadata["summary"].value == "1 of 2 healthy; failed: db"
    probes = metadata["probes"].value  # what is wrong, and why, is seen without scrolling
    assert [column.name for column in probes.schema.columns][:3] == ["what", "state", "why"]
    assert [record.data["why"] for record in probes.records] == ["it said no", ""]
    assert metadata["last_day"].value.records[0].data["change"] == "healthy -> failed"
    assert check.passed is False
    assert check.description == "1 of 2 healthy; failed: db"
    assert monthly.asset_materialization.metadata["outages"].value == 1  # type: ignore[union-attr]


def test_the_last_day_is_the_last_day(tmp_path: Path) -> None:
    """An outage of two days ago is not in it."""
    history = WrittenHistory(tmp_path, ["api"], START - timedelta(days=2))
    history.add("api", H, *([F] * 20), H)
    history.close()

    report = read_health(tmp_path, START)

    assert report.rows[0].day.failed_s == 0
    assert report.changes == ()
