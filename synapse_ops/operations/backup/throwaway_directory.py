"""Directories that live for one restore: owned by a lock, removed at the end, and swept when their owner was killed.

Theory of operation. A throwaway is three things under a work directory that a server's identity can enter:

    throwaway-<id>.owner    JSON for people; its *lock* (flock) says that the owner lives. Written before anything else.
    throwaway-<id>/         data directory, scratch files, logs
    a socket directory      in the temporary directory, private; its name is derived from the data directory's

The kernel releases the lock however the owner ends, and the server stops with the thread that started it. So a lock
that can be taken means that the throwaway is no longer needed, or that its work can be taken up: where it was marked
(`mark`), who is about to do the same goes on in it. `sweep_throwaways` takes the lock, ends what still works in that
directory, and removes the three. Never touched: a lock that is held, and anything without such an owner file.
A throwaway on a file system shared by several hosts, whose locks may not reach us, counts as living while its heartbeat
(the owner file's modification time) is fresh.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
import structlog

from synapse_ops.domain.backup.restore_estimate import disk_needed_bytes, wal_limit_for
from synapse_ops.errors import ConfigError, Unproven, Unreachable
from synapse_ops.systems.host.processes import (
    ProcessMark,
    ServerIdentity,
    end_process,
    give_to,
    processes_in,
    reachable_by,
    server_identity,
)
from synapse_ops.systems.postgres.server import make_socket_dir

HEARTBEAT_S = 20.0
HEARTBEAT_STALE_S = 600.0  # for owners on other hosts only

_PREFIX = "throwaway-"
_OWNER_SUFFIX = ".owner"
_MARK = "done"  # what is finished in it
_PROGRAMS = {
    "postgres",
    "initdb",
    "pg_restore",
    "redis-server",
}  # what a sweep may end; a person's shell in the directory is not


@dataclass(frozen=True)
class ThrowawayDir:
    """A directory that is ours while the block lasts. scratch_dir: private, for what is read from the repository.

    is_taken_up: another owner began it, marked it, and died.
    """

    path: Path
    identity: ServerIdentity | None
    programs_dir: Path  # for a copy of PostgreSQL's programs, where the identity cannot reach them; stays
    is_taken_up: bool = False

    def mark(self, work: str) -> None:
        """Say up to where the work is done: whoever asks for a directory for this `work` goes on from here."""
        (self.path / _MARK).write_text(work, encoding="utf-8")

    def empty(self) -> None:
        """Remove what is in it, its mark first: work that is begun anew is not to be taken for done."""
        (self.path / _MARK).unlink(missing_ok=True)
        for one in self.path.iterdir():
            if one.is_dir() and not one.is_symlink():
                shutil.rmtree(one)
            else:
                one.unlink()
        self.scratch_dir.mkdir(mode=0o700)

    @property
    def scratch_dir(self) -> Path:
        return self.path / "scratch"


@contextlib.contextmanager
def throwaway_directory(
    work_dir: Path, *, database_size_bytes: int, scratch_bytes: int, programs_dir: Path | None = None, work: str = ""
) -> Iterator[ThrowawayDir]:
    """Hold a throwaway directory inside the block, and remove every trace of it afterwards.

    database_size_bytes: of the source; scratch_bytes: what will be put into `scratch_dir`. Raises Unproven when the
    disk has not enough space for both. work: what is done there; one that was marked so is taken up, and a marked one
    is left for the next where the store or a server did not answer.
    """
    identity = server_identity()
    base = throwaway_base(work_dir, identity)
    left = _take_up(base, work) if work else None
    if left is None:
        server_bytes = disk_needed_bytes(database_size_bytes, wal_limit_bytes=wal_limit_for(database_size_bytes))
        check_disk(base, server_bytes + scratch_bytes)
    with _owned_directory(base, identity, left) as directory:
        yield ThrowawayDir(directory, identity, programs_dir or base / "programs", is_taken_up=left is not None)


def throwaway_base(work_dir: Path, identity: ServerIdentity | None) -> Path:
    """Return the directory that throwaways of `work_dir` lie in, made where it was missing.

    It is `work_dir` itself unless the server's identity cannot enter that (a home of mode 0700, and we are root).
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    if reachable_by(identity, work_dir):
        return work_dir.resolve()
    base = Path("/var/lib/synapse-ops/throwaway")
    base.mkdir(parents=True, exist_ok=True)
    return base


def check_disk(base: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(base).free
    if free < needed_bytes:
        raise Unproven(
            f"not enough space to restore: {base} has {free // 2**20} MiB free, {needed_bytes // 2**20} MiB are needed",
            hint="Free some space, or name another place with --work-dir or SYNAPSE_STATE_DIR.",
        )


@contextlib.contextmanager
def _owned_directory(
    base: Path, identity: ServerIdentity | None, left: tuple[Path, int] | None = None
) -> Iterator[Path]:
    """Hold a throwaway directory inside the block: owner file and lock first, removed last. left: one to take up."""
    directory, lock = left or _claim(base)
    is_kept = False
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(_owner_file(directory), stop), daemon=True)
    try:
        heart.start()
        if left is None:
            directory.mkdir(mode=0o700)
            give_to(identity, directory)
            (directory / "scratch").mkdir(mode=0o700)
        yield directory
    except Unreachable:
        is_kept = (directory / _MARK).exists()
        if is_kept:
            structlog.get_logger().warning("the same command goes on here", directory=str(directory))
        raise
    finally:
        stop.set()
        heart.join()
        if not is_kept:
            _remove(directory)
        os.close(lock)


def _take_up(base: Path, work: str) -> tuple[Path, int] | None:
    """Return a directory that was marked for this work and whose owner is dead, with its lock; None: there is none."""
    for owner in base.glob(f"{_PREFIX}*{_OWNER_SUFFIX}"):
        directory = owner.with_name(owner.name.removesuffix(_OWNER_SUFFIX))
        if not _is_marked(directory, work):
            continue
        with contextlib.suppress(OSError):
            lock = os.open(owner, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # its owner lives
                os.close(lock)
                continue
            for mark in _processes_of(directory):
                end_process(mark, signal.SIGINT, timeout_s=30.0)
            os.pwrite(lock, _owner_text().encode(), 0)
            return directory, lock
    return None


def _is_marked(directory: Path, work: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(work) and (directory / _MARK).read_text(encoding="utf-8") == work
    return False


def _claim(base: Path) -> tuple[Path, int]:
    """Write and lock the owner file of a new throwaway; return its directory (not made yet) and the descriptor."""
    while True:
        directory = base / f"{_PREFIX}{secrets.token_hex(6)}"
        owner = _owner_file(directory)
        lock = os.open(owner, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(lock).st_ino == owner.stat().st_ino:  # not swept between its making and its locking
                os.write(lock, _owner_text().encode())
                return directory, lock
        os.close(lock)


def _owner_text() -> str:
    mark = ProcessMark.of(os.getpid())
    body = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started_s": mark.started_s if mark else None,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return json.dumps(body, indent=2) + "\n"


def _owner_file(directory: Path) -> Path:
    return directory.with_name(directory.name + _OWNER_SUFFIX)


def _beat(owner: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with contextlib.suppress(OSError):
            os.utime(owner)


def sweep_throwaways(work_dir: Path, *, but: str = "") -> tuple[str, ...]:
    """Remove every throwaway whose owner is dead, its server included; return their names. Safe to race.

    but: those that are marked for this work stay.
    """
    if not work_dir.is_dir():
        return ()
    owners = sorted(throwaway_base(work_dir, server_identity()).glob(f"{_PREFIX}*{_OWNER_SUFFIX}"))
    names = [owner.name.removesuffix(_OWNER_SUFFIX) for owner in owners]
    swept = [
        name
        for name, owner in zip(names, owners, strict=True)
        if not _is_marked(owner.with_name(name), but) and _sweep(owner)
    ]
    if swept:
        structlog.get_logger().info("removed throwaway servers of dead owners", names=swept)
    return tuple(swept)


def _sweep(owner: Path) -> bool:
    try:
        lock = os.open(owner, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # another sweep was quicker
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _beats_elsewhere(owner, lock):
            return False
        _remove(owner.with_name(owner.name.removesuffix(_OWNER_SUFFIX)))
    except BlockingIOError:  # its owner lives
        return False
    finally:
        os.close(lock)
    return True


def _beats_elsewhere(owner: Path, lock: int) -> bool:
    """Say whether another host claims it with a fresh heartbeat: a lock on a shared file system may not reach us."""
    try:
        host = json.loads(os.pread(lock, 4096, 0)).get("host")
        age_s = time.time() - owner.stat().st_mtime
    except (ValueError, FileNotFoundError):  # killed before it wrote a word
        return False
    return host != socket.gethostname() and age_s < HEARTBEAT_STALE_S


def _remove(directory: Path) -> None:
    """End what works in a throwaway's directory and remove it, its socket directory, and last its owner file."""
    for mark in _processes_of(directory):
        end_process(mark, signal.SIGQUIT, timeout_s=3.0)
    if directory.is_dir() and not directory.is_symlink():
        with contextlib.suppress(ConfigError):
            shutil.rmtree(make_socket_dir(directory / "data", server_identity()), ignore_errors=True)
        for _ in range(3):  # initdb that was cut off may write a moment longer
            shutil.rmtree(directory, ignore_errors=True)
            if not directory.exists():
                break
            for mark in _processes_of(directory):
                end_process(mark, signal.SIGKILL, timeout_s=1.0)
        if directory.exists():
            shutil.rmtree(directory)  # raises for what could not be removed; the owner file stays for the next sweep
    _owner_file(directory).unlink(missing_ok=True)


def _processes_of(directory: Path) -> list[ProcessMark]:
    """Return the servers' processes that work in the directory or name it on their command line."""
    found = [mark for name in ("data", "data.making", ".") for mark in processes_in(directory / name)]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.name() in _PROGRAMS and any(part.startswith(f"{directory}/") for part in process.cmdline()):
                found += [mark] if (mark := ProcessMark.of(process.pid)) else []
    return [mark for mark in dict.fromkeys(found) if _is_ours_to_end(mark)]


def _is_ours_to_end(mark: ProcessMark) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        return mark.pid != os.getpid() and psutil.Process(mark.pid).name() in _PROGRAMS
    return False
