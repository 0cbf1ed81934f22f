"""How everything below the supervisor ends with it, even by kill -9.

Three means, because none of them is enough by itself:
- a child that the supervisor starts is killed by the kernel when it dies (systems/host/processes.spawn);
- the supervisor is a subreaper: what its children leave behind becomes its own child, so that it can be found and
  ended, and so that a run goes on when only the code server above it was replaced;
- a run worker, a grandchild, watches the supervisor itself (`end_with_supervisor`), for when both above it are gone.
Linux only, like the rest of the embedded stack. Source: prctl(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from synapse_ops.systems.host.processes import ProcessMark

SUPERVISOR_VARIABLE = "SYNAPSE_SUPERVISOR"  # "<pid>:<start time>", inherited by every process below the supervisor

_PR_SET_CHILD_SUBREAPER = 36
_WATCH_INTERVAL_S = 0.5
_GRACE_S = 3.0  # from SIGTERM to SIGKILL of a run worker whose supervisor is gone


def become_subreaper() -> None:
    """Make orphans among our descendants our children."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def format_mark(mark: ProcessMark) -> str:
    """Return a mark as one environment variable carries it; `parse_mark` is the inverse."""
    return f"{mark.pid}:{mark.started_s:.2f}"


def parse_mark(text: str) -> ProcessMark:
    """Return the mark written by `format_mark`; raises ValueError."""
    pid, _, started_at_s = text.partition(":")
    return ProcessMark(int(pid), float(started_at_s))


def own_mark() -> ProcessMark:
    """Return the mark of this process."""
    mark = ProcessMark.of(os.getpid())
    if mark is None:
        raise RuntimeError("this process is not alive")
    return mark


def end_all(marks: Sequence[ProcessMark], *, grace_s: float) -> None:
    """Send SIGTERM to all, wait at most `grace_s` for all together, then SIGKILL what is left."""
    for mark in marks:
        mark.signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    for mark in marks:
        if not mark.wait_gone(max(0.0, deadline - time.monotonic())):
            mark.signal(signal.SIGKILL)
    for mark in marks:
        mark.wait_gone(grace_s)


def left_by_dead_supervisors(variable: str, value: Path) -> list[ProcessMark]:
    """Return processes whose environment says `variable=value` and names a supervisor that is gone.

    Other users' processes cannot be read and are skipped; they are not ours to end.
    """
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            supervisor = parse_mark(environment[SUPERVISOR_VARIABLE])
        except (psutil.Error, OSError, KeyError, ValueError):
            continue
        mark = ProcessMark.of(process.pid)
        if mark is not None and environment.get(variable) == str(value) and not supervisor.is_alive():
            found.append(mark)
    return found


def end_with_supervisor() -> None:
    """Make this process end soon after the supervisor that its environment names; nothing happens without one.

    SIGTERM first, so that an operation can clean up after itself; SIGKILL when that takes longer than the grace.
    """
    named = os.environ.get(SUPERVISOR_VARIABLE)
    if named is None:
        return
    supervisor = parse_mark(named)

    def watch() -> None:
        alive = True
        while alive:
            time.sleep(_WATCH_INTERVAL_S)
            with contextlib.suppress(OSError, psutil.Error):  # no descriptor is left to look with: look again
                alive = supervisor.is_alive()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-supervisor", daemon=True).start()
