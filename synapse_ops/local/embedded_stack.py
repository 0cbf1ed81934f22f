"""Start, stop and inspect the embedded stack: what the CLI, the demo and tests call.

Nothing supervises the servers: a primary that was killed may be about to be failed over. `start_stack` starts what is
missing; it may be called at any time, from several processes at once, after any process was killed at any point.
What `local up` starts runs until `local down`. What the demo and the UI start ends with them, however they end, because
the kernel then signals it (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.errors import DeadlineExceeded, Refused, SynapseOpsError
from synapse_ops.local.example_data import load_example_data
from synapse_ops.local.layout import StackLayout, find_layout, make_layout
from synapse_ops.local.stack import SERVER_NAMES, StackServers, make_stack
from synapse_ops.local.stack_spec import write_spec
from synapse_ops.local.state import ServerState, StackState, read_state, write_state
from synapse_ops.systems.host.errors import host_errors
from synapse_ops.systems.host.processes import ProcessMark, end_process, processes_in
from synapse_ops.systems.postgres.server import FENCE_MARKER, make_socket_dir, remove_socket_dir

__all__ = [
    "RunningStack",
    "is_lost",
    "load_example_data",
    "reset_stack",
    "running_stack",
    "stack_status",
    "start_stack",
    "stop_stack",
]

LOCK_TIMEOUT_S = 1200.0  # another command starts the stack: it initialises, clones and follows a primary at worst
STOP_TIMEOUT_S = 15.0  # of what is left after the stop in order
POLL_S = 0.03
RUNNER_LOCK = "runner.lock"
NODES = ("db-primary", "db-standby")
ENDS = (signal.SIGTERM, signal.SIGHUP)
_SCHEMES = {"redis": "redis", "db-primary": "postgresql", "db-standby": "postgresql", "ops": "postgresql"}


@dataclass(frozen=True)
class RunningStack:
    """A stack whose every server is ready. spec_path: the only thing that operations need."""

    state_dir: Path
    spec_path: Path
    state: StackState


def start_stack(
    state_dir: Path,
    *,
    die_with_us: bool = False,
    without: frozenset[str] = frozenset(),
    progress: ReportProgress = ignore_progress,
) -> RunningStack:
    """Start every server of the stack that does not run, and return when all are ready.

    die_with_us: what is started ends when the calling *thread* ends, even by kill -9, unless another command started
    servers that run. Without it, it runs until `stop_stack`. without: servers that are not started.
    Raises Refused (disk nearly full, fenced server), ToolFailed with a server's last words, ConfigError, HostFailed.
    """
    layout = make_layout(state_dir)
    ready: list[str] = []

    def tell(stage: str) -> None:
        ready.append(stage)
        progress(Progress(f"{stage} is ready", len(ready), len(SERVER_NAMES) - len(without), "servers"))

    with _locked(layout), host_errors(layout.root), _without_libpq_defaults():
        state = read_state(layout.state_file)
        stack = make_stack(layout, state.ports, without)
        if state.owner is not None and not state.owner.is_alive():
            stack.stop(lambda _: None)  # what a killed owner left is on its way out: wait for it
        us = ProcessMark.of(os.getpid())
        if not living(layout):
            state.owner = us if die_with_us else None
        ends_with_us = die_with_us and state.owner == us
        state.ports = stack.ports
        write_state(layout.state_file, state)  # before the first start: a kill must not part servers from their ports
        _refuse_to_begin_anew(stack)
        try:
            stack.start(tell, die_with_us=ends_with_us)
            write_spec(layout, stack.ports)
            stack.start_residents(tell, die_with_us=ends_with_us)
        finally:
            state.servers = _describe(stack)
            write_state(layout.state_file, state)
    return RunningStack(layout.state_dir, layout.state_dir / layout.spec_file.name, state)


def _refuse_to_begin_anew(stack: StackServers) -> None:
    """Raise Refused where PostgreSQL is lost and its bucket is not: new servers would be empty, and would look well."""
    layout = stack.layout
    if is_lost(layout):
        raise Refused(
            f"the data of PostgreSQL is gone: neither db-primary nor db-standby is in {layout.data}",
            detail="new servers would be empty; nothing was started",
            hint="`synapse-ops recover` brings it back from the bucket; `synapse-ops local reset` begins anew.",
        )


def is_lost(layout: StackLayout) -> bool:
    """Return whether nothing of PostgreSQL is left of a stack whose bucket is there."""
    left = any((layout.data / name).exists() for name in NODES)
    return not left and layout.spec_file.exists() and (layout.data / "s3").is_dir()


@contextmanager
def changing_stack(state_dir: Path) -> Iterator[StackServers]:
    """Yield the servers of a stack while no other command starts or stops any; starts nothing. Its ports are kept."""
    layout = make_layout(state_dir)
    with _locked(layout), host_errors(layout.root), _without_libpq_defaults():
        state = read_state(layout.state_file)
        stack = make_stack(layout, state.ports)
        if state.ports != stack.ports:
            state.ports = stack.ports
            write_state(layout.state_file, state)
        yield stack


@contextmanager
def running_stack(state_dir: Path) -> Iterator[RunningStack]:
    """Run every server of the stack while the block runs.

    A stack that ran before goes on afterwards; one that did not is stopped with the block, or by the kernel when we are
    killed. For the main thread: SIGTERM and SIGHUP (the terminal was closed) end the block as Ctrl-C does.
    Raises Refused, before anything is touched, while another such block runs for the state directory.
    """
    root = find_layout(state_dir).root
    if root.is_dir():
        with only_runner(root):
            pass
    layout = make_layout(state_dir)  # which may move the directory, and a lock in it
    for number in ENDS:
        signal.signal(number, _end_once)
    with only_runner(layout.root):
        try:
            yield start_stack(state_dir, die_with_us=True)
        finally:
            _ignore_further_ends()
            if read_state(layout.state_file).owner == ProcessMark.of(os.getpid()):
                stop_stack(state_dir)


def _ignore_further_ends() -> None:
    for number in ENDS:
        signal.signal(number, signal.SIG_IGN)


def _end_once(*_: object) -> None:
    """End the block. A terminal that closes sends SIGHUP more than once: the second would interrupt the clean-up."""
    _ignore_further_ends()
    raise KeyboardInterrupt


@contextmanager
def only_runner(root: Path) -> Iterator[None]:
    """Hold the lock of the one command that runs servers or Dagster for a state directory; else raise Refused."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / RUNNER_LOCK).open("ab+", buffering=0) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise Refused(
                f"another `synapse-ops ui` or `demo` runs for {root}: {lock.read().decode() or 'it has just begun'}",
                detail="nothing was started or stopped",
                hint="Use its UI (`synapse-ops ui --new-url` prints a URL), or end it with Ctrl-C first.",
            ) from None
        with suppress(OSError):  # a full disk
            lock.truncate(0)
            lock.write(f"pid {os.getpid()}".encode())
        yield


@contextmanager
def _locked(layout: StackLayout) -> Iterator[None]:
    """Hold the stack's lock: of two commands at once, the second finds what the first has done."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    with layout.lock_file.open("a") as lock:
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"another command has worked on the embedded stack for {LOCK_TIMEOUT_S:g} s",
                    hint=f"Which one? fuser {layout.lock_file}",
                )
            time.sleep(POLL_S)
        yield


@contextmanager
def _without_libpq_defaults() -> Iterator[None]:
    """Hide libpq's defaults, which are of the shell's other work: the stack names each of its own servers in full."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("PG")}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _describe(stack: StackServers) -> dict[str, ServerState]:
    """Return each server as it is now; one that does not run has ended by itself, for it was just started."""
    found = {}
    for name, mark in stack.marks().items():
        fence = _fence_of(stack.layout, name) if mark is None else None
        found[name] = ServerState(
            name=name,
            state="running" if mark is not None else "ended" if fence is None else "fenced",
            address=f"{_SCHEMES.get(name, 'http')}://127.0.0.1:{stack.ports['s3.port' if name == 's3' else name]}",
            pid=mark.pid if mark is not None else None,
            started_s=mark.started_s if mark is not None else None,
            data_dir=str(stack.layout.data / name) if name not in {"api", "watch", "wal"} else "",
            log=str(stack.layout.log(name)),
            detail=fence or "",
        )
    return found


def _fence_of(layout: StackLayout, name: str) -> str | None:
    with suppress(FileNotFoundError):
        return (layout.data / name / FENCE_MARKER).read_text(errors="replace").strip()
    return None


def stop_stack(state_dir: Path, *, progress: ReportProgress = ignore_progress) -> bool:
    """Stop everything in order and leave no process; False when nothing ran. Works after any kill -9, too.

    Raises DeadlineExceeded naming what is still alive.
    """
    layout = find_layout(state_dir)
    if not layout.lock_file.exists():
        return False
    stopped: list[str] = []

    def tell(stage: str) -> None:
        stopped.append(stage)
        progress(Progress(f"{stage} has stopped", len(stopped), None, "servers"))

    with _locked(layout):
        if not living(layout):
            return False
        state = read_state(layout.state_file)
        with suppress(
            SynapseOpsError, OSError
        ):  # a program that is not installed any more: what it left is ended below
            make_stack(layout, state.ports).stop(tell)
        for mark in living(layout).values():
            end_process(mark, signal.SIGINT, timeout_s=STOP_TIMEOUT_S)
        left = living(layout)
        if left:
            listed = ", ".join(f"{name} (pid {mark.pid})" for name, mark in left.items())
            raise DeadlineExceeded(f"could not stop {len(left)} processes of the embedded stack", detail=listed)
        for name in ("db-primary", "db-standby", "ops", "s3"):  # what killed servers left
            remove_socket_dir(make_socket_dir(layout.data / name, layout.identity))
        state.owner = None
        for server in state.servers.values():
            server.state = "fenced" if server.state == "fenced" else "stopped"
            server.pid = server.started_s = None
        write_state(layout.state_file, state)
    return True


def living(layout: StackLayout) -> dict[str, ProcessMark]:
    """Return every process of the stack that lives: each server has its own data folder."""
    folders = [folder for folder in layout.data.iterdir() if folder.is_dir()] if layout.data.is_dir() else []
    return {f"{folder.name}/{mark.pid}": mark for folder in folders for mark in processes_in(folder)}


def stack_status(state_dir: Path) -> StackState:
    """Return what runs now: the recorded state, corrected by asking each process."""
    layout = find_layout(state_dir)
    state = read_state(layout.state_file)
    if state.owner is not None and not state.owner.is_alive():
        state.owner = None
    for entry in state.servers.values():
        mark = entry.mark
        if mark is not None and mark.is_alive():
            continue
        works = processes_in(Path(entry.data_dir)) if entry.name in NODES and entry.state != "stopped" else []
        found = min(works, key=lambda one: one.started_s, default=None)
        if found is not None:  # started again by a failover
            entry.state, entry.detail, entry.pid, entry.started_s = "running", "", found.pid, found.started_s
        elif entry.state == "running":
            fence = _fence_of(layout, entry.name)
            entry.state, entry.detail = ("ended", "") if fence is None else ("fenced", fence)
            entry.pid = entry.started_s = None
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
    from synapse_ops.operations.release import document_changes
    from synapse_ops.operations.release import store as release

    own = [layout.data, layout.logs, layout.temp, layout.secrets, layout.programs, layout.root / "ledger"]
    folders = ("proof", "locks", "cache", "dagster", "spec", "plans", "watch", "wal", "failover", "recovery", "drills")
    own += [layout.root / name for name in folders]
    own += [layout.root / name for name in (release.FOLDER, document_changes.FOLDER)]
    own += [layout.root / RUNNER_LOCK, layout.state_file, layout.lock_file, layout.spec_file, layout.authority]
    if layout.state_dir.is_symlink():
        own.append(layout.root / "belongs-to")
    return own
