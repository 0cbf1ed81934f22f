"""Directories entered by descriptor: what is looked at is what is acted on, whatever happens to the names meanwhile.

A path that is walked twice can lead to two places. So a root is opened once, component by component and without
following a link; everything below is opened relative to its parent's descriptor (O_NOFOLLOW), never leaves the root's
mount (a bind mount has the same device, so the mount's own id is compared), and is known by device and inode. Before
each removal the directory is asked for its parents up to the root: one that was moved away meanwhile is left alone.

Whether a file is open is asked of the kernel: a write lease is granted only when no other process has it open, in no
process, container or mapping. Where a lease may not be asked for (another user's file without CAP_LEASE, a file system
without leases), /proc is read, and a process that cannot be looked into counts as having the file open.
Source: fcntl(2) "Leases", proc(5), openat(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from synapse_ops.errors import Refused, SynapseOpsError

MAX_DEPTH = 100  # two descriptors a level; the usual limit of a process is 1024
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class EntryChanged(SynapseOpsError):
    """What a plan names is no longer what lies there. A result for one entry, shown in the report."""


@dataclass(frozen=True, slots=True)
class FileSeen:
    """A file as lstat showed it. name: with bytes that are not text as surrogates. path: below the root."""

    name: str
    path: str
    directory_fd: int
    directory_inode: int
    status: os.stat_result

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.status.st_mode)


class Barrier(StrEnum):
    """Why a directory was not entered."""

    MOUNT = "mount"
    TOO_DEEP = "too-deep"
    NOT_READABLE = "not-readable"
    CHANGED = "changed"
    STORE = "store"


@dataclass(frozen=True, slots=True)
class NotEntered:
    """A directory that was left alone as a whole. detail: for people. kept_in: inode of a directory that stays so."""

    path: str
    barrier: Barrier
    detail: str
    kept_in: int


@dataclass(slots=True)
class DirectoryLeft:
    """A directory whose content has been seen, after that content."""

    path: str
    parent_fd: int
    parent_inode: int
    status: os.stat_result


@dataclass(slots=True)
class Directory:
    """An open directory that is known to lie below a root, or is one."""

    fd: int
    path: str
    inode: int

    def close(self) -> None:
        os.close(self.fd)


@dataclass(frozen=True)
class Root:
    """An open root. Everything below it that is entered lies on the same device and mount."""

    path: str
    fd: int
    device: int
    inode: int
    mount_id: str


@contextmanager
def open_root(path: str) -> Iterator[Root]:
    """Open a root by its real path. Raises Refused when a part of it is a link, or when it is not a directory."""
    fd = os.open("/", _DIRECTORY)
    try:
        walked = ""
        for part in [part for part in path.split("/") if part]:
            walked += f"/{part}"
            try:
                below = os.open(part, _DIRECTORY, dir_fd=fd)
            except OSError as error:
                raise _root_refused(path, walked, error) from error
            os.close(fd)
            fd = below
        status = os.fstat(fd)
        yield Root(path, fd, status.st_dev, status.st_ino, mount_id(fd))
    finally:
        os.close(fd)


def _root_refused(path: str, walked: str, error: OSError) -> Refused:
    reason = error.strerror or "it cannot be opened"
    hint = "Does it exist, and may this user enter it?"
    if error.errno in (errno.ELOOP, errno.ENOTDIR) and Path(walked).is_symlink():
        reason, hint = f"{walked} is a link", f"Write the real path into the spec: {os.path.realpath(path)}"
    return Refused(f'cannot clean up "{path}": {reason}', hint=hint)


def mount_id(fd: int) -> str:
    """Return what names the mount of an open file; empty where the kernel does not say."""
    with suppress(OSError), open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:  # noqa: PTH123 - hot
        for line in info:
            if line.startswith("mnt_id:"):
                return line.split()[1]
    return ""


def walk(root: Root, stores: Sequence[str] = ()) -> Iterator[FileSeen | NotEntered | DirectoryLeft]:
    """Yield every file below a root, what was not entered, and each directory after its content; memory stays flat.

    Order: as the file system lists, depth first. stores: names whose presence in a directory, the root included, means
    that a server keeps its data there; such a directory yields NotEntered, at once or when the name is met.
    A descriptor in a FileSeen is good until the next one is asked for.
    """
    yield from _walk(root, os.dup(root.fd), "", root.inode, 0, frozenset(stores))


def _walk(
    root: Root, fd: int, path: str, inode: int, depth: int, stores: frozenset[str]
) -> Iterator[FileSeen | NotEntered | DirectoryLeft]:
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                name = entry.name
                below = f"{path}/{name}" if path else name
                if name in stores:
                    yield NotEntered(path or ".", Barrier.STORE, f"it holds {name}", inode)
                    return
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue  # gone since it was listed
                if not stat.S_ISDIR(status.st_mode):
                    yield FileSeen(name, below, fd, inode, status)
                    continue
                yield from _descend(root, fd, inode, below, status, depth + 1, stores)
    except OSError as error:
        yield NotEntered(path or ".", Barrier.NOT_READABLE, error.strerror or "it cannot be read", inode)
    finally:
        os.close(fd)


def _descend(
    root: Root, parent_fd: int, parent_inode: int, path: str, seen: os.stat_result, depth: int, stores: frozenset[str]
) -> Iterator[FileSeen | NotEntered | DirectoryLeft]:
    if depth > MAX_DEPTH:
        yield NotEntered(path, Barrier.TOO_DEEP, f"it lies deeper than {MAX_DEPTH} directories", parent_inode)
        return
    try:
        fd = os.open(path.rpartition("/")[2], _DIRECTORY, dir_fd=parent_fd)
    except OSError as error:
        barrier = Barrier.CHANGED if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENOENT) else Barrier.NOT_READABLE
        yield NotEntered(path, barrier, error.strerror or "it cannot be opened", parent_inode)
        return
    status = os.fstat(fd)
    if status.st_dev != root.device or mount_id(fd) != root.mount_id:
        os.close(fd)
        yield NotEntered(path, Barrier.MOUNT, "another file system is mounted there", parent_inode)
        return
    if status.st_ino != seen.st_ino:
        os.close(fd)
        yield NotEntered(path, Barrier.CHANGED, "it was replaced while it was examined", parent_inode)
        return
    yield from _walk(root, fd, path, status.st_ino, depth, stores)
    yield DirectoryLeft(path, parent_fd, parent_inode, status)


def open_directory(root: Root, path: str, inode: int, stores: Sequence[str] = ()) -> Directory:
    """Open a directory below a root by its path, "" for the root itself.

    Raises EntryChanged when any part of the way is a link, another mount or gone, when the directory is not the one of
    `inode`, or when a server has come to keep its data on the way (a name of `stores`).
    """
    fd = os.dup(root.fd)
    try:
        for part in path.split("/") if path else []:
            _refuse_store(fd, stores)
            below = os.open(part, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
            _refuse_other_mount(root, fd)
        _refuse_store(fd, stores)
        _refuse_other_inode(fd, inode)
    except (OSError, EntryChanged) as error:
        os.close(fd)
        if isinstance(error, EntryChanged):
            raise
        raise EntryChanged(f"its directory cannot be entered: {error.strerror}") from error
    return Directory(fd, path, inode)


def _refuse_other_mount(root: Root, fd: int) -> None:
    if os.fstat(fd).st_dev != root.device or mount_id(fd) != root.mount_id:
        raise EntryChanged("another file system is mounted on the way to it")


def _refuse_other_inode(fd: int, inode: int) -> None:
    if os.fstat(fd).st_ino != inode:
        raise EntryChanged("its directory is not the one in the plan")


def _refuse_store(fd: int, stores: Sequence[str]) -> None:
    for name in stores:
        try:
            os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        raise EntryChanged(f"a server keeps its data there now: {name}")


def check_still_below(root: Root, directory: Directory) -> None:
    """Raise EntryChanged unless the directory's parents, asked now, lead to the root in as many steps as its path."""
    up = ""
    for _ in range(directory.path.count("/") + 1 if directory.path else 0):
        up += "../"
    try:
        above = os.stat(up or ".", dir_fd=directory.fd)
    except OSError as error:
        raise EntryChanged(f"its directory cannot be reached: {error.strerror}") from error
    if (above.st_dev, above.st_ino) != (root.device, root.inode):
        raise EntryChanged("its directory was moved out of the root")


def status_at(directory: Directory, name: str) -> os.stat_result:
    """Return lstat of a name in a directory. Raises EntryChanged when it is gone."""
    try:
        return os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
    except FileNotFoundError:
        raise EntryChanged("it is gone already") from None
    except OSError as error:
        raise EntryChanged(f"it cannot be examined: {error.strerror}") from error


@dataclass
class OpenFiles:
    """Checks whether a file is open anywhere. /proc is read at most once in each `refreshed`, and only when needed."""

    _seen: set[tuple[int, int]] | None = None
    _unseen_processes: int = 0
    _own: int = field(default_factory=os.getpid)

    def refresh(self) -> None:
        """Forget what /proc showed; leases are asked anew each time anyway."""
        self._seen = None

    def objection(self, directory_fd: int, name: str, status: os.stat_result) -> str:
        """Return why a regular file must be treated as open, or an empty string when it is not.

        Raises EntryChanged when it is gone or is another file than `status`.
        """
        try:
            fd = os.open(name, _FILE, dir_fd=directory_fd)
        except FileNotFoundError:
            raise EntryChanged("it is gone already") from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise EntryChanged("it is a link now") from error
            return self._objection_of_proc(status)  # unreadable, and yet maybe ours to remove
        try:
            now = os.fstat(fd)
            if (now.st_dev, now.st_ino) != (status.st_dev, status.st_ino):
                raise EntryChanged("another file lies there now")
            is_free = has_no_other_opener(fd)
        finally:
            os.close(fd)
        if is_free is None:
            return self._objection_of_proc(status)
        return "" if is_free else "a process has it open"

    def _objection_of_proc(self, status: os.stat_result) -> str:
        if self._seen is None:
            self._seen, self._unseen_processes = _read_open_files(self._own)
        if (status.st_dev, status.st_ino) in self._seen:
            return "a process has it open"
        if self._unseen_processes:
            return f"{self._unseen_processes} processes that cannot be inspected may have it open"
        return ""


def has_no_other_opener(fd: int) -> bool | None:
    """Say whether ours is the only open descriptor of a file; None where the kernel does not report it."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # another process opens it now: a signal without an effect here
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        return False if error.errno == errno.EAGAIN else None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


def _read_open_files(own: int) -> tuple[set[tuple[int, int]], int]:
    """Return (device, inode) of the files that processes have open, and how many processes could not be looked into."""
    found: set[tuple[int, int]] = set()
    unseen = 0
    for pid in [name for name in os.listdir("/proc") if name.isdigit() and int(name) != own]:  # noqa: PTH208 - hot
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208
        except FileNotFoundError:
            continue
        except OSError:
            unseen += 1
            continue
        blind = False
        for number in descriptors:
            try:
                status = os.stat(f"/proc/{pid}/fd/{number}")  # noqa: PTH116
            except FileNotFoundError:
                continue
            except OSError:
                blind = True
                continue
            found.add((status.st_dev, status.st_ino))
        unseen += blind
    return found, unseen
