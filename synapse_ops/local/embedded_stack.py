"""Start, stop and inspect the embedded stack: what the CLI, the demo and tests call.

`start_stack` asks the supervisor (local/supervisor.py), starting one where none lives; it is safe to call at any time,
from several processes at once, and after any process was killed at any point.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.errors import DeadlineExceeded, SynapseOpsError, Unreachable
from synapse_ops.local.control import control_socket, request
from synapse_ops.local.example_data import load_example_data
from synapse_ops.local.layout import StackLayout, find_layout, make_layout
from synapse_ops.local.stack import SERVER_NAMES
from synapse_ops.local.state import StackState, read_state, write_state
from synapse_ops.local.terminal import terminal_session
from synapse_ops.systems.local_processes import ProcessMark, end_process, processes_in, spawn
from synapse_ops.systems.pg_server import make_socket_dir, remove_socket_dir

__all__ = ["RunningStack", "load_example_data", "reset_stack", "stack_status", "start_stack", "stop_stack"]

SUPERVISOR_START_TIMEOUT_S = 30.0
REPLY_TIMEOUT_S = 180.0  # the longest silence: a crash recovery, or a clone
STOP_TIMEOUT_S = 90.0
POLL_S = 0.03


@dataclass(frozen=True)
class RunningStack:
    """A stack whose every server is ready. spec_path: the only thing that operations need."""

    state_dir: Path
    spec_path: Path
    state: StackState


def start_stack(
    state_dir: Path,
    *,
    stay: bool = False,
    until: ProcessMark | None = None,
    progress: ReportProgress = ignore_progress,
) -> RunningStack:
    """Make every server of the stack run, and return when all are ready.

    stay: it outlives the terminal that called; without it, it goes down when that terminal is closed.
    until: it goes down when this process ends, however that ends, unless somebody else asked for it, too.
    Raises Refused (disk nearly full, a fenced server), ToolFailed with a server's last words, ConfigError.
    """
    layout = make_layout(state_dir)
    session = None if stay else until or terminal_session()
    body = {
        "action": "ensure",
        "session": {"pid": session.pid, "started_s": session.started_s} if session is not None else None,
    }
    ready: list[str] = []

    def tell(stage: str) -> None:
        ready.append(stage)
        progress(Progress(f"{stage} is ready", len(ready), len(SERVER_NAMES), "servers"))

    _ensure_supervisor(layout)
    try:
        request(control_socket(layout), body, tell, timeout_s=REPLY_TIMEOUT_S)
    except Unreachable as gone:
        if isinstance(gone, DeadlineExceeded):
            raise
        _ensure_supervisor(layout)  # the one we found was on its way out
        ready.clear()
        request(control_socket(layout), body, tell, timeout_s=REPLY_TIMEOUT_S)
    return RunningStack(layout.state_dir, layout.state_dir / layout.spec_file.name, read_state(layout.state_file))


def is_up(state_dir: Path) -> bool:
    """Say whether a supervisor of the stack answers."""
    return _answers(control_socket(find_layout(state_dir)))


def _ensure_supervisor(layout: StackLayout) -> None:
    path = control_socket(layout)
    child: subprocess.Popen[bytes] | None = None
    deadline = time.monotonic() + SUPERVISOR_START_TIMEOUT_S
    while not _answers(path):
        if child is None or child.poll() is not None:  # ours lost the lock to one that is just ending
            argv = [sys.executable, "-m", "synapse_ops.local.supervisor", str(layout.state_dir)]
            # libpq's defaults are of the shell's other work: the stack names each of its own servers in full
            environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
            child = spawn(None, argv, log_path=layout.log("supervisor"), env=environment)
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"the supervisor of the embedded stack did not start within {SUPERVISOR_START_TIMEOUT_S:g} s",
                detail=f"see {layout.log('supervisor')}",
            )
        time.sleep(POLL_S)


def _answers(path: Path) -> bool:
    import socket

    with socket.socket(socket.AF_UNIX) as probe:
        return path.exists() and probe.connect_ex(str(path)) == 0


def stop_stack(state_dir: Path, *, progress: ReportProgress = ignore_progress) -> bool:
    """Stop everything in order and leave no process; False when nothing ran. Works after any kill -9, too.

    Raises DeadlineExceeded naming what is still alive.
    """
    layout = find_layout(state_dir)
    before = living(layout)
    if not before:
        return False
    stopped: list[str] = []

    def tell(stage: str) -> None:
        stopped.append(stage)
        progress(Progress(f"{stage} has stopped", len(stopped), None, "servers"))

    supervisor = before.get("supervisor")
    if supervisor is not None:
        try:
            request(control_socket(layout), {"action": "stop"}, tell, timeout_s=STOP_TIMEOUT_S)
        except SynapseOpsError:
            supervisor.signal(signal.SIGTERM)  # the kernel ends its servers with it
        supervisor.wait_gone(STOP_TIMEOUT_S)
    for mark in living(layout).values():
        end_process(mark, signal.SIGINT, timeout_s=STOP_TIMEOUT_S / 6)
    left = living(layout)
    if left:
        listed = ", ".join(f"{name} (pid {mark.pid})" for name, mark in left.items())
        raise DeadlineExceeded(f"could not stop {len(left)} processes of the embedded stack", detail=listed)
    for name in ("db-primary", "db-standby", "ops", "s3"):  # what killed servers left
        remove_socket_dir(make_socket_dir(layout.data / name, layout.identity))
    remove_socket_dir(control_socket(layout).parent)
    state = read_state(layout.state_file)
    state.supervisor = None
    for server in state.servers.values():
        server.state = "fenced" if server.state == "fenced" else "stopped"
        server.pid = server.started_s = None
    write_state(layout.state_file, state)
    return True


def living(layout: StackLayout) -> dict[str, ProcessMark]:
    """Return every process of the stack that lives: what state.json names, and what works in its data folders."""
    state = read_state(layout.state_file)
    named = [("supervisor", state.supervisor), *state.servers.items()]
    found = {name: entry.mark for name, entry in named if entry is not None and entry.mark is not None}
    alive = {name: mark for name, mark in found.items() if mark.is_alive()}
    if layout.data.is_dir():
        for folder in layout.data.iterdir():
            for mark in processes_in(folder) if folder.is_dir() else []:
                if mark not in alive.values():
                    alive[f"{folder.name}/{mark.pid}"] = mark
    return alive


def stack_status(state_dir: Path) -> StackState:
    """Return what runs now: the recorded state, corrected by asking each process."""
    state = read_state(find_layout(state_dir).state_file)
    entries = list(state.servers.values()) + ([state.supervisor] if state.supervisor is not None else [])
    for entry in entries:
        mark = entry.mark
        if entry.state == "running" and (mark is None or not mark.is_alive()):
            entry.state, entry.pid, entry.started_s = "ended", None, None
    return state


def reset_stack(state_dir: Path, *, progress: ReportProgress = ignore_progress) -> list[Path]:
    """Stop the stack and remove its data, the copy under /var/lib included. Returns what was removed.

    Only the stack's own entries are removed; anything else in the state directory stays.
    """
    layout = find_layout(state_dir)
    stop_stack(state_dir, progress=progress)
    removed = [path for path in resettable(layout) if path.exists() or path.is_symlink()]
    for path in removed:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if layout.state_dir.is_symlink() and not any(layout.root.iterdir()):
        layout.root.rmdir()
        layout.state_dir.unlink()
        removed.append(layout.state_dir)
    elif layout.root.is_dir() and not any(layout.root.iterdir()):
        layout.root.rmdir()
    return removed


def resettable(layout: StackLayout) -> list[Path]:
    """Return the entries that `reset_stack` removes where they exist.

    A folder that is missing here stays for ever, and with it the far root under /var/lib and the link to it.
    """
    from synapse_ops.operations import attestations, document_changes, release

    own = [layout.data, layout.logs, layout.temp, layout.secrets, layout.programs, layout.root / "ledger"]
    own += [layout.root / name for name in ("proof", "locks", "cache", "dagster", "spec", "plans", "watch")]
    own += [layout.root / name for name in (release.FOLDER, attestations.FOLDER, document_changes.FOLDER)]
    own += [layout.state_file, layout.lock_file, layout.spec_file, layout.authority]
    if layout.state_dir.is_symlink():
        own.append(layout.root / "belongs-to")
    return own
