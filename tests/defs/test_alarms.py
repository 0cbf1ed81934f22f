"""Alarms leave Dagster, each once it happened, and none is lost while nobody takes them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorTick,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._utils.error import SerializableErrorInfo

from synapse_ops.defs import alarms
from synapse_ops.defs.alarms import alarm_definitions
from synapse_ops.defs.health.active_alerts import outlet_verdict
from synapse_ops.errors import ConfigError, Unreachable
from synapse_ops.systems.alert_outlet import find_outlet

CHECKED = dg.AssetKey("database_dump")


class Receiver:
    """An HTTP server that keeps what is posted to it. status: what it answers."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, list[dict[str, Any]]]] = []
        self.status = 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if receiver.status == 200:
                    receiver.posted.append((self.path, body))
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def labels(self) -> list[dict[str, str]]:
        return [alarm["labels"] for _, alarms in self.posted for alarm in alarms]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    made = Receiver()
    threading.Thread(target=made.server.serve_forever, daemon=True).start()
    monkeypatch.delenv("SYNAPSE_ALERT_WEBHOOK", raising=False)
    monkeypatch.setenv("SYNAPSE_ALERTMANAGER_URL", made.url + "/")
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def tick(name: str, instance: dg.DagsterInstance, cursor: str | None) -> str | None:
    """Evaluate one alarm sensor and return its cursor."""
    sensor = alarm_definitions("synapse").get_repository_def().get_sensor_def(name)
    result = sensor(dg.build_sensor_context(instance=instance, cursor=cursor))
    return result.cursor if isinstance(result, dg.SensorResult) else cursor


def report_check(instance: dg.DagsterInstance, *, passed: bool) -> None:
    words = "one restored" if passed else "orders: differs"
    event = dg.AssetCheckEvaluation(asset_key=CHECKED, check_name="restore_proven", passed=passed, description=words)
    instance.report_runless_asset_event(event)


def test_failed_check_is_posted_and_its_pass_ends_it(receiver: Receiver, instance: dg.DagsterInstance) -> None:
    """Both have the same labels, so that Alertmanager knows them as one alarm; the pass has an end that is past."""
    cursor = tick("failed_check_alarms", instance, None)
    report_check(instance, passed=False)
    cursor = tick("failed_check_alarms", instance, cursor)
    report_check(instance, passed=True)
    cursor = tick("failed_check_alarms", instance, cursor)
    tick("failed_check_alarms", instance, cursor)

    [(path, [failed]), (_, [passed])] = receiver.posted
    assert path == "/api/v2/alerts"
    assert failed["labels"] == passed["labels"]
    assert failed["labels"]["alertname"] == "DagsterCheckFailed"
    assert failed["labels"]["stack"] == "synapse"
    assert failed["annotations"]["description"] == "orders: differs"
    assert failed["annotations"]["runbook_url"] == "docs/runbooks/proof-failed.md"
    assert failed["endsAt"] > failed["startsAt"]
    assert passed["endsAt"] == passed["startsAt"]


def test_outlet_that_is_down_loses_no_alarm(receiver: Receiver, instance: dg.DagsterInstance) -> None:
    """The tick fails, the cursor stays, and the next tick sends what the outlet did not take."""
    cursor = tick("failed_check_alarms", instance, None)
    report_check(instance, passed=False)
    receiver.status = 503

    with pytest.raises(Unreachable, match="Alertmanager answers 503"):
        tick("failed_check_alarms", instance, cursor)
    receiver.status = 200
    cursor = tick("failed_check_alarms", instance, cursor)

    assert [labels["check"] for labels in receiver.labels()] == ["restore_proven"]


def test_a_check_that_stays_red_is_sent_again_each_hour_and_no_more_once_it_passed(
    receiver: Receiver, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent ends by itself after six hours, and the check is still red."""
    cursor = tick("failed_check_alarms", instance, None)
    report_check(instance, passed=False)
    cursor = tick("failed_check_alarms", instance, cursor)
    begun_s, sent = time.time(), []
    for minutes in (59, 61, 100, 122):
        monkeypatch.setattr(alarms.time, "time", lambda now_s=begun_s + minutes * 60: now_s)
        cursor = tick("failed_check_alarms", instance, cursor)
        sent.append(len(receiver.posted))
    report_check(instance, passed=True)
    cursor = tick("failed_check_alarms", instance, cursor)
    monkeypatch.setattr(alarms.time, "time", lambda: begun_s + 1e6)
    tick("failed_check_alarms", instance, cursor)

    assert sent == [1, 2, 2, 3]
    assert len(receiver.posted) == 4


def begin_tick(instance: dg.DagsterInstance, sensor: str, began_s: float) -> InstigatorTick:
    """Record a tick of a sensor that began then and goes on."""
    location = RegisteredCodeLocationOrigin("synapse_ops")
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), sensor)
    state = InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.RUNNING, SensorInstigatorData())
    if instance.get_instigator_state(state.instigator_origin_id, state.selector_id) is None:
        instance.add_instigator_state(state)
    data = TickData(
        instigator_origin_id=state.instigator_origin_id,
        instigator_name=sensor,
        instigator_type=InstigatorType.SENSOR,
        status=TickStatus.STARTED,
        timestamp=began_s,
        selector_id=state.selector_id,
    )
    return instance.create_tick(data)


def fail_tick(instance: dg.DagsterInstance, sensor: str, began_s: float, message: str, cause: str = "") -> None:
    """cause: what the daemon wraps in a message of its own, which alone does not tell "away" from "too slow"."""
    name = "DagsterUserCodeUnreachableError"
    error = SerializableErrorInfo(message, [], name, SerializableErrorInfo(cause, [], name) if cause else None)
    instance.update_tick(begin_tick(instance, sensor, began_s).with_status(TickStatus.FAILURE, error=error))


def test_a_tick_that_failed_is_posted_once_even_when_it_began_long_before(receiver: Receiver, tmp_path: Path) -> None:
    """A tick that hangs until its time-out began before the last look: it must not pass in silence."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        cursor = tick("failed_tick_alarms", instance, None)
        now_s = time.time()
        hung = begin_tick(instance, "health_sensor", now_s - 70)
        begin_tick(instance, "collection_sensor", now_s - 5)
        cursor = tick("failed_tick_alarms", instance, cursor)
        failure = SerializableErrorInfo("the tick timed out", [], "DagsterUserCodeUnreachableError")
        instance.update_tick(hung.with_status(TickStatus.FAILURE, error=failure))

        cursor = tick("failed_tick_alarms", instance, cursor)
        tick("failed_tick_alarms", instance, cursor)

    [(_, [alarm])] = receiver.posted
    assert (alarm["labels"]["alertname"], alarm["labels"]["instigator"]) == ("DagsterTickFailed", "health_sensor")
    assert "the tick timed out" in alarm["annotations"]["description"]


def test_a_good_tick_ends_the_alarm_of_a_failed_one_and_a_restart_of_the_code_server_is_none(
    receiver: Receiver, tmp_path: Path
) -> None:
    """Every alarm has an end; and eight sensors that met the restart for a new spec are not eight faults."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        cursor = tick("failed_tick_alarms", instance, None)
        now_s = time.time()
        away = "Could not reach user code server. gRPC Error code: UNAVAILABLE"
        fail_tick(instance, "spec_sensor", now_s, away)
        fail_tick(instance, "wal_sensor", now_s, "Unable to reach the user code server", cause=away)
        fail_tick(instance, "disk_sensor", now_s, "Unable to reach", cause=away.replace("UNAVAILABLE", "CANCELLED"))
        fail_tick(instance, "health_sensor", now_s, "Unable to reach the user code server", cause="it took too long")
        cursor = tick("failed_tick_alarms", instance, cursor)
        cursor = tick("failed_tick_alarms", instance, cursor)
        good = begin_tick(instance, "health_sensor", now_s + 30)
        instance.update_tick(good.with_status(TickStatus.SKIPPED))
        cursor = tick("failed_tick_alarms", instance, cursor)
        tick("failed_tick_alarms", instance, cursor)

    [(_, [failed]), (_, [ended])] = receiver.posted
    assert failed["labels"] == ended["labels"]
    assert failed["labels"]["instigator"] == "health_sensor"
    assert failed["annotations"]["description"].endswith("it took too long")
    assert failed["endsAt"] > failed["startsAt"]
    assert ended["endsAt"] == ended["startsAt"]


@pytest.mark.parametrize(("address", "status"), [("http://127.0.0.1:9", "RUNNING"), ("", "STOPPED")])
def test_without_an_address_the_sensors_are_off_and_a_check_says_that_nobody_will_be_told(
    address: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would run for ever to say that there is nobody to tell."""
    monkeypatch.delenv("SYNAPSE_ALERT_WEBHOOK", raising=False)
    monkeypatch.setenv("SYNAPSE_ALERTMANAGER_URL", address)

    sensors = alarm_definitions("synapse").get_repository_def().sensor_defs
    verdict = outlet_verdict()

    assert {sensor.default_status.name for sensor in sensors} == {status}
    assert verdict["passed"] is bool(address)
    assert address or "set SYNAPSE_ALERTMANAGER_URL or SYNAPSE_ALERT_WEBHOOK" in verdict["description"]


def test_failed_run_is_posted_by_job(receiver: Receiver, instance: dg.DagsterInstance) -> None:
    """The labels name the job, never the run: a job that fails each night is one alarm."""
    cursor = tick("failed_run_alarms", instance, None)
    run = dg.DagsterRun(
        job_name="backup_database", run_id=dg.DagsterRun(job_name="x").run_id, status=dg.DagsterRunStatus.STARTED
    )
    instance.add_run(run)
    instance.report_run_failed(run, "the disk is full")
    cursor = tick("failed_run_alarms", instance, cursor)
    tick("failed_run_alarms", instance, cursor)

    assert [(labels["alertname"], labels["job"]) for labels in receiver.labels()] == [
        ("DagsterRunFailed", "backup_database")
    ]


def test_what_happened_before_the_first_tick_is_not_posted(receiver: Receiver, instance: dg.DagsterInstance) -> None:
    """A new sensor does not page for last year's failures."""
    report_check(instance, passed=False)
    cursor = tick("failed_check_alarms", instance, None)

    tick("failed_check_alarms", instance, cursor)

    assert receiver.posted == []


def test_webhook_takes_the_same_alarms_and_its_address_stays_secret(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address may hold a token: it is in no repr and no error."""
    monkeypatch.delenv("SYNAPSE_ALERTMANAGER_URL")
    monkeypatch.setenv("SYNAPSE_ALERT_WEBHOOK", "https://hooks.example/services/s3cret")

    outlet = find_outlet()

    assert outlet is not None
    assert "s3cret" not in repr(outlet)
    monkeypatch.setenv("SYNAPSE_ALERT_WEBHOOK", "s3cret")
    with pytest.raises(ConfigError) as refused:
        find_outlet()
    assert "s3cret" not in refused.value.render()
