"""Schedules: from the spec's crons, in the spec's time zone, one run a database under one set id."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from dagster._utils.schedules import schedule_execution_time_iterator

from synapse_ops.defs.everything import merged_definitions

WEEKLY = "0 2 * * 0"


def _definitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, embedded: bool = False) -> dg.Definitions:
    spec = tmp_path / "infrastructure.yaml"
    spec.write_text(
        f'time_zone: Europe/Berlin\ndatabase: {{databases: [a, b]}}\nbackup: {{database: {{schedule: "{WEEKLY}"}}}}\n'
    )
    monkeypatch.setenv("SYNAPSE_SPEC", str(spec))
    monkeypatch.setenv("SYNAPSE_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("SYNAPSE_EMBEDDED", "1" if embedded else "0")
    return merged_definitions()


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        ("2026-03-28T12:00:00", "2026-03-29T03:00:00+02:00"),  # 02:00 does not exist: the next moment that does
        ("2026-10-24T12:00:00", "2026-10-25T02:00:00+01:00"),  # 02:00 comes twice: the second
    ],
)
def test_a_change_of_clock_fires_the_schedule_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, since: str, expected: str
) -> None:
    """`0 2 * * 0` in Berlin: 03:00 in spring, the second 02:00 in autumn, and then a week later."""
    defs = _definitions(tmp_path, monkeypatch)
    schedule = defs.resolve_schedule_def("database_backup_schedule")
    begin = datetime.fromisoformat(since).replace(tzinfo=UTC).timestamp()

    ticks = schedule_execution_time_iterator(begin, schedule.cron_schedule, schedule.execution_timezone, ascending=True)
    first, second = next(ticks), next(ticks)

    assert first.isoformat() == expected
    assert second.date().toordinal() - first.date().toordinal() == 7


def test_one_run_for_each_database_under_one_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The set of a tick is complete when all its members are; two evaluations of one tick ask for the same runs."""
    defs = _definitions(tmp_path, monkeypatch)
    schedule = defs.resolve_schedule_def("database_backup_schedule")
    at = datetime(2026, 11, 22, 1, 0, tzinfo=UTC)

    def evaluate() -> list[dg.RunRequest]:
        context = dg.build_schedule_context(scheduled_execution_time=at, repository_def=defs.get_repository_def())
        return list(schedule.evaluate_tick(context).run_requests or [])

    first, again = evaluate(), evaluate()

    assert [request.partition_key for request in first] == ["a", "b"]
    assert {request.tags["synapse/set_id"] for request in first} == {"20261122T010000Z"}
    assert {request.tags["synapse/trigger"] for request in first} == {"schedule"}
    assert [request.run_key for request in first] == [request.run_key for request in again]


def test_deletion_is_switched_off_outside_the_embedded_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backup and proof run everywhere; expiry waits for the operator, except on the embedded stack."""
    stopped = dg.DefaultScheduleStatus.STOPPED

    def status(name: str, *, embedded: bool) -> dg.DefaultScheduleStatus:
        return _definitions(tmp_path, monkeypatch, embedded=embedded).resolve_schedule_def(name).default_status

    assert status("expiry_schedule", embedded=False) is stopped
    assert status("expiry_schedule", embedded=True) is not stopped
    assert status("database_backup_schedule", embedded=False) is not stopped
    assert status("database_proof_schedule", embedded=False) is not stopped
