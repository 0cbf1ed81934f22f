"""The one job that asks the watcher: each action is the operation's, and what cannot be is refused with its reason."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from synapse_ops.defs.failover.steering import ACTIONS, steering_definitions
from synapse_ops.defs.resources import StackResource
from synapse_ops.errors import ConfigError, Refused
from synapse_ops.operations.failover import steering
from synapse_ops.operations.failover.ledger import Ledger, Pause
from synapse_ops.spec import load_spec

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    spec = tmp_path / "infrastructure.yaml"
    spec.write_text('name: tests\ndrills: {switchover: "0 6 1 * *"}\n')
    monkeypatch.setenv("SYNAPSE_SPEC", str(spec))
    monkeypatch.setenv("SYNAPSE_STATE_DIR", str(tmp_path))
    return tmp_path


def run(place: Path, **config: object) -> dg.ExecuteInProcessResult:
    spec = load_spec(place / "infrastructure.yaml").spec
    parts = dg.Definitions(resources={"stack": StackResource()}, executor=dg.in_process_executor)
    job = dg.Definitions.merge(steering_definitions(spec), parts).resolve_job_def("steer_failover")
    with dg.DagsterInstance.ephemeral() as instance:
        run_config = {"ops": {"ask_the_watcher": {"config": config}}}
        return job.execute_in_process(run_config=run_config, instance=instance, raise_on_error=True)


def test_a_pause_and_its_end_are_asked_of_the_ledger(place: Path) -> None:
    ledger = Ledger.of(place)
    ledger.set_pause(Pause(NOW, "an earlier one"))

    assert run(place, action="pause", pause_for="30m", reason="kernel upgrade").success
    paused = ledger.pause()
    assert paused is not None
    assert paused.reason == "kernel upgrade"
    assert timedelta(minutes=29) < paused.until - datetime.now(UTC) <= timedelta(minutes=30)

    assert run(place, action="resume").success
    assert ledger.pause() is None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"action": "pause"}, "a pause needs a reason"),
        ({"action": "pause", "reason": "x", "pause_for": "8d"}, "is not between 1 s and 7 d"),
        ({"action": "fail_over", "accept_loss": "much"}, 'accept_loss "much"'),
        ({"action": "switch_over"}, "nothing was done: NOT armed"),
        ({"action": "fail_over"}, "nothing was done: the primary is not watched"),
        ({"action": "rejoin"}, "nothing to rejoin"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_fails_the_run_with_its_reason(place: Path, config: dict[str, object], words: str) -> None:
    Ledger.of(place).set_pause(Pause(NOW, "an earlier one"))
    with pytest.raises(dg.Failure, match=words):
        run(place, **config)


def test_an_unknown_action_is_refused_with_the_choices(place: Path) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError) as refused:
        run(place, action="kill")
    assert all(name in str(refused.value.errors) for name in ACTIONS), refused.value.errors


def test_the_systems_own_drill_is_a_schedule_only_where_the_spec_has_it(place: Path) -> None:
    """A second without writes is nobody's default."""
    [schedule] = steering_definitions(load_spec(place / "infrastructure.yaml").spec).schedules or ()
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert schedule.cron_schedule == "0 6 1 * *"
    (place / "infrastructure.yaml").write_text("name: tests\n")
    assert not steering_definitions(load_spec(place / "infrastructure.yaml").spec).schedules


def test_no_ledger_is_made_for_a_directory_without_a_watcher(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no watcher has worked in"):
        steering.pause(tmp_path, timedelta(hours=1), "x", NOW)
    with pytest.raises(Refused, match="nothing to rejoin"):
        steering.rejoin(tmp_path)
    assert list(tmp_path.iterdir()) == []
