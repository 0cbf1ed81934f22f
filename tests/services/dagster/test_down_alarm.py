"""What no sensor could tell leaves by the supervisor: a program of Dagster that does not stay up."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from synapse_ops.errors import Unreachable
from synapse_ops.operations.recovery.last_tick import last_tick_file, touch_last_tick
from synapse_ops.services.dagster.down_alarm import SILENT_AFTER_S, DownAlarm, why_it_ended, why_silent
from synapse_ops.services.dagster.program_keeper import Program, Supervisor
from synapse_ops.systems.alert_outlet import Alarm, AlertOutlet

DEADLINE_S = 120.0
# fails as the code server does with a definition that Dagster refuses, until the file is there
REFUSED = """
import pathlib, sys, time
if not pathlib.Path(sys.argv[1]).exists():
    raise ValueError("Found invalid cron schedule '0 2 * * 5L' for schedule 'database_backup_schedule'")
time.sleep(600)
"""


class Outlet(AlertOutlet):
    """An outlet that keeps what it takes, and refuses the first post."""

    posts: ClassVar[list[list[Alarm]]] = []
    taken: ClassVar[list[Alarm]] = []

    def post(self, alarms: Sequence[Alarm]) -> None:
        self.posts.append(list(alarms))
        if len(self.posts) == 1:
            raise Unreachable("no answer")
        self.taken.extend(alarms)


def test_a_program_that_ends_again_and_again_is_told_with_the_line_of_the_spec_until_it_stays_up(
    tmp_path: Path,
) -> None:
    """Once, and once more when it is up; what the outlet refused is sent again."""
    spec = tmp_path / "infrastructure.yaml"
    spec.write_text('name: synapse\nbackup:\n  database: {schedule: "0 2 * * 5L"}\n')
    argv = [sys.executable, "-c", REFUSED, str(tmp_path / "good")]
    program = Program("code-server", argv, dict(os.environ), tmp_path, tmp_path / "log", lambda: True)
    outlet = Outlet("webhook", "http://127.0.0.1:9")
    alarm = DownAlarm("synapse", find=lambda: outlet, retry_s=0.1)
    supervisor = Supervisor(
        [program],
        on_down=lambda down: alarm.look({name: partial(why_it_ended, log, spec) for name, log in down.items()}),
        up_after_s=0.5,
    )
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        deadline = time.monotonic() + DEADLINE_S
        while len(outlet.taken) < 2:
            assert time.monotonic() < deadline
            if outlet.taken:
                (tmp_path / "good").touch()
            time.sleep(0.05)
    finally:
        supervisor.stop()
        thread.join()

    down, up = outlet.taken
    assert down.labels == up.labels
    assert (down.is_resolved, up.is_resolved) == (False, True)
    assert down.labels["program"] == "code-server"
    assert 'infrastructure.yaml, line 3: database: {schedule: "0 2 * * 5L"}' in down.description


def test_a_log_without_an_error_is_told_by_its_last_line(tmp_path: Path) -> None:
    """And one that is not there by its name."""
    (tmp_path / "spec.yaml").write_text("name: synapse\n")
    (tmp_path / "log").write_text("starting\nout of memory\n\n")

    assert why_it_ended(tmp_path / "log", tmp_path / "spec.yaml").startswith("it ends again and again: out of memory\n")
    assert "could not be read" in why_it_ended(tmp_path / "none", tmp_path / "spec.yaml")


def test_a_daemon_that_hangs_is_told_five_minutes_after_the_last_tick_and_not_before(tmp_path: Path) -> None:
    """It calls itself well, and no process has ended. A Dagster that started just now had no time to tick."""
    last_tick_file(tmp_path).parent.mkdir()
    log = tmp_path / "daemon.log"
    start_s = time.time() - 1000

    assert why_silent(tmp_path, start_s, start_s + SILENT_AFTER_S, log) == ""
    assert why_silent(tmp_path, start_s, start_s + SILENT_AFTER_S + 1, log).startswith("no sensor has ticked for 5 min")
    touch_last_tick(tmp_path)
    tick_s = last_tick_file(tmp_path).stat().st_mtime
    assert why_silent(tmp_path, start_s, tick_s + SILENT_AFTER_S, log) == ""
    told = why_silent(tmp_path, start_s, tick_s + SILENT_AFTER_S + 60, log)
    assert told == f"no sensor has ticked for 6 min; its log is {log}"
