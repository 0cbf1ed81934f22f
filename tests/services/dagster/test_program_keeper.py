"""The supervisor: what crashes comes back, what is stopped is gone, and a killed supervisor leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from synapse_ops.errors import DeadlineExceeded
from synapse_ops.services.dagster.process_tree import SUPERVISOR_VARIABLE, format_mark, left_by_dead_supervisors
from synapse_ops.services.dagster.program_keeper import Program, Supervisor, rotate_log
from synapse_ops.systems.host.processes import ProcessMark

Answer = TypeVar("Answer")
DEADLINE_S = 180.0
# writes its pid, starts a child of its own that writes its pid, and sleeps
PARENT = """
import os, subprocess, sys, pathlib, time
folder = pathlib.Path(sys.argv[1])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
(folder / "child").write_text(str(child.pid))
(folder / "parent").write_text(str(os.getpid()))
time.sleep(600)
"""
# a run worker: a grandchild that ties itself to the supervisor
WORKER = """
import subprocess, sys, pathlib, time, os
if len(sys.argv) == 2:
    worker = subprocess.Popen([sys.executable, __file__, sys.argv[1], "worker"], start_new_session=True)
    time.sleep(600)
from synapse_ops.services.dagster.process_tree import end_with_supervisor
end_with_supervisor()
(pathlib.Path(sys.argv[1]) / "worker").write_text(str(os.getpid()))
time.sleep(600)
"""
SUPERVISE = """
import signal, sys, pathlib
from synapse_ops.services.dagster.process_tree import become_subreaper
from synapse_ops.services.dagster.program_keeper import Program, Supervisor
folder = pathlib.Path(sys.argv[1])
become_subreaper()
program = Program("program", [sys.executable, sys.argv[2], str(folder)], dict(__import__("os").environ), folder,
                  folder / "log", lambda: True)
supervisor = Supervisor([program])
if sys.argv[3:] == ["stop"]:
    signal.signal(signal.SIGTERM, lambda *_: supervisor.stop())
supervisor.run()
"""
# a run worker that has no descriptor to spare when it looks for its supervisor, three times
EXHAUSTED = """
import sys, pathlib, time, os, resource
from synapse_ops.services.dagster import process_tree
from synapse_ops.systems.host.processes import ProcessMark
looks, is_alive = [], ProcessMark.is_alive
def look(mark):
    looks.append(mark)
    return is_alive(mark)
ProcessMark.is_alive, process_tree._WATCH_INTERVAL_S = look, 0.05
resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
process_tree.end_with_supervisor()
while len(looks) < 3:
    time.sleep(0.01)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
(pathlib.Path(sys.argv[1]) / "worker").write_text(str(os.getpid()))
time.sleep(600)
"""


def wait_for(what: Callable[[], Answer | None]) -> Answer:
    """Return the first true answer. Fails after DEADLINE_S."""
    deadline = time.monotonic() + DEADLINE_S
    while not (answer := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return answer


def pid_in(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def is_gone(pid: int) -> bool:
    return ProcessMark.of(pid) is None


@pytest.fixture
def run_in_thread() -> Iterator[Callable[[Supervisor], None]]:
    """Run supervisors in threads, as the demo does, and stop them all after the test."""
    started: list[tuple[Supervisor, threading.Thread]] = []

    def start(supervisor: Supervisor) -> None:
        thread = threading.Thread(target=supervisor.run)
        thread.start()
        started.append((supervisor, thread))

    yield start
    for supervisor, thread in started:
        supervisor.stop()
        thread.join(DEADLINE_S)


def program(folder: Path, code: str, is_ready: Callable[[], bool] = lambda: True, name: str = "program") -> Program:
    script = folder / f"{name}.py"
    script.write_text(code)
    argv = [sys.executable, str(script), str(folder)]
    return Program(name, argv, dict(os.environ), folder, folder / f"{name}.log", is_ready, stop_grace_s=2.0)


def test_killed_program_comes_back(tmp_path: Path, run_in_thread: Callable[[Supervisor], None]) -> None:
    """kill -9 of a program is a crash: it is started again after a pause."""
    supervisor = Supervisor([program(tmp_path, PARENT)])
    run_in_thread(supervisor)
    first = wait_for(lambda: pid_in(tmp_path / "parent"))

    os.kill(first, signal.SIGKILL)

    assert wait_for(lambda: (found := pid_in(tmp_path / "parent")) != first and found)


def test_what_a_killed_program_had_started_goes_on_and_ends_with_the_supervisor(tmp_path: Path) -> None:
    """A run outlives a replaced code server; nothing outlives the supervisor."""
    (tmp_path / "program.py").write_text(PARENT)
    supervise = tmp_path / "supervise.py"
    supervise.write_text(SUPERVISE)
    supervisor = subprocess.Popen([sys.executable, str(supervise), str(tmp_path), str(tmp_path / "program.py"), "stop"])
    orphan = None
    try:
        first, orphan = wait_for(lambda: pid_in(tmp_path / "parent")), wait_for(lambda: pid_in(tmp_path / "child"))
        os.kill(first, signal.SIGKILL)
        second = wait_for(lambda: (found := pid_in(tmp_path / "parent")) != first and found)
        adopted_by = psutil.Process(orphan).ppid()

        supervisor.send_signal(signal.SIGTERM)
        supervisor.wait(DEADLINE_S)
        left = [pid for pid in (second, orphan) if not is_gone(pid)]
    finally:
        supervisor.kill()
        for pid in (pid_in(tmp_path / "child"), orphan):
            if pid is not None and not is_gone(pid):
                os.kill(pid, signal.SIGKILL)

    assert adopted_by == supervisor.pid
    assert left == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_supervisor_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    """However the supervisor ends: its programs are killed by the kernel, and run workers end by themselves."""
    (tmp_path / "program.py").write_text(WORKER)
    supervise = tmp_path / "supervise.py"
    supervise.write_text(SUPERVISE)
    supervisor = subprocess.Popen([sys.executable, str(supervise), str(tmp_path), str(tmp_path / "program.py")])
    worker = wait_for(lambda: pid_in(tmp_path / "worker"))
    above = psutil.Process(worker).ppid()

    supervisor.send_signal(number)
    supervisor.wait(DEADLINE_S)

    wait_for(lambda: is_gone(above))
    wait_for(lambda: is_gone(worker))


def test_a_run_worker_that_cannot_look_for_its_supervisor_looks_again(tmp_path: Path) -> None:
    """Without a descriptor to look with it neither ends, nor forgets to end with its supervisor later."""
    (tmp_path / "worker.py").write_text(EXHAUSTED)
    supervisor = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    mark = ProcessMark.of(supervisor.pid)
    assert mark is not None
    environment = {**os.environ, SUPERVISOR_VARIABLE: format_mark(mark)}
    worker = subprocess.Popen([sys.executable, str(tmp_path / "worker.py"), str(tmp_path)], env=environment)
    try:
        wait_for(lambda: pid_in(tmp_path / "worker") or worker.poll() is not None)
        alive_with_it = worker.poll() is None
        supervisor.kill()
        supervisor.wait()
        status = worker.wait(DEADLINE_S)
    finally:
        worker.kill()
        supervisor.kill()

    assert alive_with_it
    assert status == -signal.SIGTERM


def test_left_overs_of_a_dead_supervisor_are_found_and_those_of_others_are_not(tmp_path: Path) -> None:
    """Only processes whose environment names our directory and a supervisor that is gone are ours to end."""
    script = "import time; time.sleep(600)"

    def start(folder: Path, supervisor: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "TEST_HOME": str(folder), SUPERVISOR_VARIABLE: supervisor}
        return subprocess.Popen([sys.executable, "-c", script], env=environment)

    alive = psutil.Process()
    mark = ProcessMark.of(alive.pid)
    assert mark is not None
    gone, living, foreign = (
        start(tmp_path, "999999:1.00"),
        start(tmp_path, f"{mark.pid}:{mark.started_s:.2f}"),
        start(tmp_path / "other", "999999:1.00"),
    )
    try:
        found = wait_for(lambda: left_by_dead_supervisors("TEST_HOME", tmp_path))
        assert [process.pid for process in found] == [gone.pid]
    finally:
        for process in (gone, living, foreign):
            process.kill()
            process.wait()


def test_program_that_never_gets_ready_is_named_with_its_last_words(
    tmp_path: Path, run_in_thread: Callable[[Supervisor], None]
) -> None:
    """The message has the program and the end of its log."""
    supervisor = Supervisor([program(tmp_path, "print('the port is taken'); raise SystemExit(3)", lambda: False)])
    run_in_thread(supervisor)
    wait_for(lambda: (tmp_path / "program.log").exists() and (tmp_path / "program.log").read_text())

    with pytest.raises(DeadlineExceeded, match="program was not ready") as raised:
        supervisor.wait_until_ready(1.0)

    assert "the port is taken" in raised.value.detail


def test_a_log_that_grew_is_cut_and_its_program_goes_on_writing_to_it(tmp_path: Path) -> None:
    """Two files of a bounded size, whatever the program does; it holds the file open for appending."""
    path = tmp_path / "daemon.log"
    with path.open("ab", buffering=0) as log:
        log.write(b"x" * 100)
        rotate_log(path, 100)
        kept = path.stat().st_size
        log.write(b"y")
        rotate_log(path, 100)
        log.write(b"z")

    assert kept == 100
    assert path.read_bytes() == b"z"
    assert path.with_name("daemon.log.1").read_bytes() == b"x" * 100 + b"y"
