"""Processes on this host: under which identity they run, how they die with us, and never signalling a stranger.

A process is known by its pid *and* its start time. A pid alone is reused, and a signal to a reused pid kills another's
process; every signal of this project goes through `ProcessMark`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from synapse_ops.errors import ConfigError, DeadlineExceeded, ToolFailed

POLL_S = 0.02
STDERR_TAIL_CHARS = 2000
# from the start of any process until it is ready: 3 s when quiet, more than 90 s on two cores at a load of 39. It is
# for one that hangs: one that ends is noticed at once
START_TIMEOUT_S = 300.0
_PR_SET_PDEATHSIG = 1
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

try:  # loaded here, because the child of a fork may not import anything
    _prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None
except (OSError, AttributeError):
    _prctl = None


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """The user that servers run as when we are root (PostgreSQL refuses root)."""

    name: str
    uid: int
    gid: int


def server_identity() -> ServerIdentity | None:
    """Return whom servers run as: None means as ourselves (we are not root).

    As root: SYNAPSE_SERVER_USER, else postgres, else nobody. Raises ConfigError when the named user does not exist or
    is root itself.
    """
    if os.geteuid() != 0:
        return None
    chosen = os.environ.get("SYNAPSE_SERVER_USER")
    for name in [chosen] if chosen else ["postgres", "nobody"]:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            if entry.pw_uid == 0:
                raise ConfigError(
                    f'user "{name}" of SYNAPSE_SERVER_USER is root, under which PostgreSQL does not run',
                    hint="Name an unprivileged user in SYNAPSE_SERVER_USER, or unset it.",
                )
            return ServerIdentity(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise ConfigError(
        f'there is no user "{chosen or "postgres or nobody"}" to run servers as',
        hint="Create one (useradd --system synapse) and name it in SYNAPSE_SERVER_USER, or run as an ordinary user.",
    )


def reachable_by(identity: ServerIdentity | None, path: Path) -> bool:
    """Return whether the identity may enter every folder above `path`, and read `path` itself (enter it, if a folder).

    Judged by mode bits, after resolving links; an ACL that allows more is not seen, which costs a copy and no more.
    """
    if identity is None:
        return os.access(path, os.R_OK)
    groups = set(os.getgrouplist(identity.name, identity.gid))
    resolved = path.resolve()
    for place in [*reversed(resolved.parents), resolved]:
        try:
            status = place.stat()
        except OSError:
            return False
        wanted = stat.S_IXOTH if place != resolved else stat.S_IROTH
        if place == resolved and stat.S_ISDIR(status.st_mode):
            wanted |= stat.S_IXOTH
        shift = 6 if status.st_uid == identity.uid else 3 if status.st_gid in groups else 0
        if (status.st_mode >> shift) & wanted != wanted:
            return False
    return True


def give_to(identity: ServerIdentity | None, path: Path) -> None:
    """Make the identity own one file or folder (not what is in it); nothing to do when servers run as ourselves."""
    if identity is not None:
        os.chown(path, identity.uid, identity.gid, follow_symlinks=False)


def make_private_dir(path: Path, identity: ServerIdentity | None) -> Path:
    """Make a folder of mode 0700 that the identity owns; safe to repeat. Its parents must exist or be makeable."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    give_to(identity, path)
    path.chmod(0o700)
    return path


def copy_tree_once(source: Path, target: Path) -> Path:
    """Copy a file or folder of programs to where any user may read it, whole or not at all; a no-op when it is there.

    The folders above `target` are made readable. Safe when two processes do it at once: the later rename loses.
    """
    if target.exists():
        return target
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    making = target.with_name(f"{target.name}.making-{os.getpid()}")
    try:
        if source.is_dir():
            shutil.copytree(source, making, symlinks=True)
            for place in (making, *making.rglob("*")):
                if not place.is_symlink():
                    place.chmod(0o755 if place.is_dir() or place.stat().st_mode & stat.S_IXUSR else 0o644)
        else:
            shutil.copyfile(source, making)
            making.chmod(0o755)
        with contextlib.suppress(FileExistsError, OSError):
            making.rename(target)
    finally:
        if making.is_dir():
            shutil.rmtree(making, ignore_errors=True)
        elif making.is_file():
            making.unlink()
    return target


def run_as(
    identity: ServerIdentity | None,
    argv: Sequence[str | Path],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    cwd: Path = Path("/"),
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a short program to its end and return its output as text.

    Raises ToolFailed for a status other than 0 (unless `check` is off), DeadlineExceeded after `timeout_s`. argv must
    hold no secret: it is visible to every user of the host. The program is killed when we are.
    """
    command = [str(part) for part in argv]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            preexec_fn=dying_with_us(signal.SIGKILL),
            user=identity.uid if identity else None,
            group=identity.gid if identity else None,
            extra_groups=[] if identity else None,
            umask=0o077 if identity else -1,
        )
    except subprocess.TimeoutExpired as late:
        raise DeadlineExceeded(
            f"{Path(command[0]).name} did not end within {timeout_s:g} s", detail=" ".join(command)
        ) from late
    if check and done.returncode != 0:
        raise ToolFailed(command, status=done.returncode, stderr_tail=(done.stderr or done.stdout)[-STDERR_TAIL_CHARS:])
    return done


def spawn(
    identity: ServerIdentity | None,
    argv: Sequence[str | Path],
    *,
    log_path: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path = Path("/"),
    die_with_parent: signal.Signals | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server in its own session, its output appended to `log_path`, and return at once.

    die_with_parent: the signal that the kernel sends it when the *thread* that called this ends, however it ends
    (PR_SET_PDEATHSIG): call it from a thread that lives as long as the server should. None: it outlives us.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        return subprocess.Popen(
            [str(part) for part in argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=dying_with_us(die_with_parent) if die_with_parent is not None else None,
            user=identity.uid if identity else None,
            group=identity.gid if identity else None,
            extra_groups=[] if identity else None,
            umask=0o077 if identity else -1,
        )


def dying_with_us(number: signal.Signals) -> Callable[[], None]:
    """Return what the child runs before its program: the kernel then signals it when the thread that forked it ends."""
    parent = os.getpid()
    code = int(number)

    def before_exec() -> None:
        if _prctl is not None:
            _prctl(_PR_SET_PDEATHSIG, code)
            if os.getppid() != parent:  # it died between fork and prctl
                os._exit(127)

    return before_exec


@dataclass(frozen=True, slots=True)
class ProcessMark:
    """One process, unmistakably: a pid and when it started.

    started_s: seconds since boot, from the kernel's own ticks. Wall-clock start times move when the clock is set, and
    then a living server would look like a stranger.
    """

    pid: int
    started_s: float

    @classmethod
    def of(cls, pid: int) -> ProcessMark | None:
        """Return the mark of a living process; None when there is none (a zombie does not count)."""
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            if sys.platform == "linux":
                # field 22, counted after the parenthesised name, which may hold anything
                fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
                return cls(pid, int(fields[19]) / _TICKS_PER_S)
            return cls(pid, process.create_time())
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            return None

    def is_alive(self) -> bool:
        return ProcessMark.of(self.pid) == self

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal; False when the process has gone (then no process was signalled)."""
        if not self.is_alive():
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
            return True
        return False

    def wait_gone(self, timeout_s: float) -> bool:
        """Return whether it ended within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True


def end_process(mark: ProcessMark, first: signal.Signals, *, timeout_s: float) -> bool:
    """End a process: the polite signal, then SIGKILL after `timeout_s`. Returns whether it went politely."""
    if not mark.signal(first) or mark.wait_gone(timeout_s):
        return True
    mark.signal(signal.SIGKILL)
    mark.wait_gone(timeout_s)
    return False


def processes_in(folder: Path) -> list[ProcessMark]:
    """Return the processes whose working directory is `folder`.

    PostgreSQL's processes, a backend orphaned by a killed postmaster included, work in their PGDATA: such a backend can
    go on committing, and only this finds it.
    """
    wanted = str(folder.resolve())
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.cwd() == wanted and (mark := ProcessMark.of(process.pid)) is not None:
                found.append(mark)
    return found


def works_in(mark: ProcessMark, folder: Path) -> bool:
    """Whether a process works in `folder`: a pid from a pid file may belong to another process by now."""
    with contextlib.suppress(psutil.Error, OSError):
        return psutil.Process(mark.pid).cwd() == str(folder.resolve()) and mark.is_alive()
    return False


def available_memory_bytes() -> int:
    """Return what this host can still give without swapping, as the kernel estimates it."""
    return int(psutil.virtual_memory().available)


def free_ports(count: int, *, host: str = "127.0.0.1") -> list[int]:
    """Return distinct TCP ports without a listener, outside the range the kernel gives to outgoing connections.

    Nothing reserves them: start the servers soon, and look again when one reports the port taken.
    """
    lowest = 32768
    with contextlib.suppress(OSError, ValueError):
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = list(range(15000, lowest)) if lowest > 20000 else list(range(15000, 65000))
    random.SystemRandom().shuffle(candidates)
    found: list[int] = []
    for port in candidates:
        if len(found) == count:
            break
        if is_port_free(port, host=host):
            found.append(port)
    return found


def is_port_free(port: int, *, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on the port now (as servers do: with SO_REUSEADDR)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
