"""Starts programs in order, restarts what crashes with a growing pause, and ends them in the opposite order.

The thread that calls `run` is the parent of every program, and the kernel kills them when that thread ends: it lives as
long as they should. Nothing here knows Dagster.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import structlog

from synapse_ops.errors import DeadlineExceeded
from synapse_ops.services.dagster.process_tree import SUPERVISOR_VARIABLE, end_all, format_mark, own_mark
from synapse_ops.systems.host.processes import ProcessMark, end_process, spawn

FIRST_PAUSE_S = 0.5  # before the first restart; doubles with each crash in a row
LONGEST_PAUSE_S = 30.0
STEADY_AFTER_S = 60.0  # a program that ran this long crashed for a new reason: the pause starts over
UP_AFTER_S = 20.0  # a code server that refuses its definitions ends within this time, on a busy host too
STOP_GRACE_S = 8.0
ROTATE_EVERY_S = 60.0
MOST_LOG_BYTES = 5 << 20  # and as much of the one before
_TICK_S = 0.2
_LOG_TAIL_LINES = 12

log = structlog.get_logger()


@dataclass(frozen=True)
class Program:
    """One program. is_ready: asked after the start until true; the next program starts then.

    stop_grace_s: from SIGTERM to SIGKILL.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(repr=False)
    cwd: Path
    log_path: Path
    is_ready: Callable[[], bool]
    stop_grace_s: float = STOP_GRACE_S


@dataclass
class _Running:
    program: Program
    process: subprocess.Popen[bytes]
    started_at_s: float
    crashes: int = 0
    start_again_at_s: float | None = None


class Supervisor:
    """Keeps programs running until `stop` is called. `run` blocks; the rest may be called from other threads."""

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        on_tick: Callable[[], Sequence[str]] = tuple,
        on_down: Callable[[Mapping[str, Path]], None] = lambda down: None,
        up_after_s: float = UP_AFTER_S,
    ) -> None:
        """on_tick: called about five times a second; returns the names of programs to restart.

        on_down: called as often, with the log of each program that crashed twice in a row and has not run for
        `up_after_s` since.
        """
        self._programs = tuple(programs)
        self._on_tick = on_tick
        self._on_down = on_down
        self._up_after_s = up_after_s
        self._rotate_at_s = 0.0
        self._running: dict[str, _Running] = {}
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._ended = threading.Event()
        self._adopted: set[int] = set()
        self._mark = format_mark(own_mark())

    def run(self) -> None:
        """Start all, keep them running, and end all when `stop` was called. None of their processes is left then."""
        try:
            for program in self._programs:
                self._start(program)
                if not self._await_ready(program):
                    return
            self._ready.set()
            while not self._stop.wait(_TICK_S):
                self._tick()
        finally:
            self._end_everything()
            self._ended.set()

    def stop(self) -> None:
        """Ask `run` to end."""
        self._stop.set()

    def abandon(self) -> None:
        """Say that `run` will never be called, so that no caller waits for it."""
        self._ended.set()

    def wait_until_ready(self, timeout_s: float) -> None:
        """Return when every program has been ready once. Raises DeadlineExceeded with the end of the logs."""
        deadline = time.monotonic() + timeout_s
        while not self._ready.wait(_TICK_S):
            if self._ended.is_set() or time.monotonic() > deadline:
                waiting = next((p for p in self._programs if p.name not in self._running or not p.is_ready()), None)
                name = waiting.name if waiting else "a program"
                raise DeadlineExceeded(
                    f"{name} was not ready within {timeout_s:g} s",
                    detail=_tail(waiting.log_path) if waiting else "",
                    hint=f"Its log is {waiting.log_path}." if waiting else "",
                )

    def wait_until_ended(self, timeout_s: float | None) -> bool:
        """Return whether `run` has ended within `timeout_s`; None waits as long as it takes."""
        return self._ended.wait(timeout_s)

    def _start(self, program: Program, crashes: int = 0) -> None:
        environment = {**program.env, SUPERVISOR_VARIABLE: self._mark}
        process = spawn(
            None,
            program.argv,
            log_path=program.log_path,
            env=environment,
            cwd=program.cwd,
            die_with_parent=signal.SIGKILL,
        )
        self._running[program.name] = _Running(program, process, time.monotonic(), crashes)
        log.debug("program started", program=program.name, pid=process.pid)

    def _await_ready(self, program: Program) -> bool:
        """Wait until a program is ready, restarting it as often as it crashes; False when we are to stop."""
        while not self._stop.wait(_TICK_S / 4):
            self._revive(self._running[program.name])
            self._on_down(self._down())
            if self._running[program.name].start_again_at_s is None and program.is_ready():
                return True
        return False

    def _tick(self) -> None:
        for running in list(self._running.values()):
            self._revive(running)
        for name in self._on_tick():
            self._restart(name)
        self._on_down(self._down())
        self._rotate_logs()
        self._reap_adopted()

    def _rotate_logs(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._rotate_at_s:
            self._rotate_at_s = now_s + ROTATE_EVERY_S
            for program in self._programs:
                rotate_log(program.log_path)

    def _down(self) -> Mapping[str, Path]:
        now_s = time.monotonic()
        return {
            name: running.program.log_path
            for name, running in self._running.items()
            if running.crashes > 1
            and (running.start_again_at_s is not None or now_s - running.started_at_s < self._up_after_s)
        }

    def _revive(self, running: _Running) -> None:
        """Notice a crash, and start the program again once its pause is over."""
        now_s = time.monotonic()
        if running.start_again_at_s is not None:
            if now_s >= running.start_again_at_s:
                self._start(running.program, running.crashes)
            return
        status = running.process.poll()
        if status is None:
            return
        steady = now_s - running.started_at_s > STEADY_AFTER_S
        running.crashes = 1 if steady else running.crashes + 1
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (running.crashes - 1))
        running.start_again_at_s = now_s + pause_s
        log.warning("program ended", program=running.program.name, status=status, restart_in_s=pause_s)

    def _restart(self, name: str) -> None:
        """Replace one program. What it started goes on: orphans become our children."""
        running = self._running[name]
        self._end(running)
        self._start(running.program)
        log.info("program restarted", program=name)

    def _end(self, running: _Running) -> None:
        mark = ProcessMark.of(running.process.pid)
        if mark is not None:
            end_process(mark, signal.SIGTERM, timeout_s=running.program.stop_grace_s)
        running.process.wait()

    def _end_everything(self) -> None:
        ours = self._marked()
        for running in reversed(list(self._running.values())):
            self._end(running)
        left = {mark.pid: mark for mark in [*ours, *self._marked()] if mark.is_alive()}
        end_all(list(left.values()), grace_s=STOP_GRACE_S)
        self._reap_adopted()

    def _marked(self) -> list[ProcessMark]:
        """Return every process below our programs: those with our mark in their environment, and all below those.

        Not simply all our descendants: the process that supervises may have children of other parts.
        """
        found = {}
        for child in psutil.Process().children():
            if self._carries_mark(child):
                for process in [child, *_children(child)]:
                    mark = ProcessMark.of(process.pid)
                    if mark is not None:
                        found[mark.pid] = mark
        return list(found.values())

    def _carries_mark(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(SUPERVISOR_VARIABLE) == self._mark
        except (psutil.Error, OSError):
            return False

    def _reap_adopted(self) -> None:
        """Collect the ends of adopted orphans; never of a child that some Popen of this process waits for."""
        started = {running.process.pid for running in self._running.values()}
        children = {child.pid: child for child in psutil.Process().children()}
        for pid, child in children.items():
            if pid not in started and pid not in self._adopted and self._carries_mark(child):
                self._adopted.add(pid)
        for pid in list(self._adopted):
            try:
                if os.waitpid(pid, os.WNOHANG) != (0, 0):
                    self._adopted.discard(pid)
            except ChildProcessError:
                self._adopted.discard(pid)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def rotate_log(path: Path, most_bytes: int = MOST_LOG_BYTES) -> None:
    """Keep a log and one before it below a size. It is copied and cut, because its program has it open for appending.

    A full disk costs the copy, not the space.
    """
    try:
        if path.stat().st_size > most_bytes:
            with suppress(OSError):
                shutil.copyfile(path, path.with_name(f"{path.name}.1"))
            os.truncate(path, 0)
    except OSError:
        return


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-_LOG_TAIL_LINES:])
