"""One PostgreSQL server on this host: made, started, found again, stopped. For the stack, proofs and tests.

Its configuration is ours alone: `start` writes postgresql.conf and pg_hba.conf anew from `settings` and `hba`.
A data directory exists only when it is whole: `init` works under another name and renames at the end.
Sockets stay out of PGDATA (pg_rewind trips over them) in a short folder (a socket's path is limited to 107 bytes).
This module never restarts a server by itself: after a failover that would be a second primary.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from synapse_ops.errors import ConfigError, DeadlineExceeded, Refused, ToolFailed
from synapse_ops.systems.host.processes import (
    START_TIMEOUT_S,
    ProcessMark,
    ServerIdentity,
    end_process,
    give_to,
    make_private_dir,
    processes_in,
    run_as,
    spawn,
    works_in,
)
from synapse_ops.systems.postgres.control_file import control_data
from synapse_ops.systems.postgres.programs import PgTools

FENCE_MARKER = "synapse.fenced"  # in PGDATA: written by a failover, removed only by a rejoin; no start ignores it

STANDBY_SIGNAL = "standby.signal"
RECOVERY_SIGNAL = "recovery.signal"

StopMode = Literal["smart", "fast", "immediate"]

STOP_TIMEOUT_S = 30.0
POLL_S = 0.02
_SOCKET_ROOT = Path("/tmp")  # noqa: S108 - the folder itself is private, and its owner is checked
_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_READY = ("ready", "standby")  # line 8 of postmaster.pid, which pg_ctl reads as well


def make_socket_dir(owner_of: Path, identity: ServerIdentity | None) -> Path:
    """Return a private folder for sockets, short whatever the length of `owner_of` (the folder it belongs to).

    The same folder for the same owner whatever TMPDIR says, so that a later process finds it; safe to repeat.
    Raises ConfigError when another user owns a folder of that name.
    """
    uid = identity.uid if identity is not None else os.geteuid()
    name = f"synapse-{uid}-{hashlib.sha256(os.fsencode(owner_of.resolve())).hexdigest()[:12]}"
    return claim_socket_dir(_SOCKET_ROOT / name, identity)


def claim_socket_dir(folder: Path, identity: ServerIdentity | None) -> Path:
    """Make a socket folder, or take the one that is there if it is ours. Every user may write to its parent."""
    uid = identity.uid if identity is not None else os.geteuid()
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        give_to(identity, folder)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in {uid, os.geteuid()}:
        raise ConfigError(
            f'socket folder "{folder}" belongs to uid {status.st_uid}, expected {uid}',
            hint=f"Remove it if it is not needed: rm -r {folder}",
        )
    return make_private_dir(folder, identity)


def remove_socket_dir(folder: Path) -> None:
    """Remove a socket folder with the sockets of dead servers in it; anything else in it keeps it."""
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if entry.name.startswith(".s.PGSQL.") or stat.S_ISSOCK(entry.lstat().st_mode):
                entry.unlink()
        folder.rmdir()


@dataclass
class PgServer:
    """A server by its data directory; the object may be made anew at any time for a server that runs already.

    settings: postgresql.conf, value types str, int, float, bool. listen: TCP addresses, () = Unix socket only.
    hba: lines of pg_hba.conf. log_path: what the server writes, appended.
    """

    tools: PgTools
    identity: ServerIdentity | None
    data_dir: Path
    socket_dir: Path
    port: int
    log_path: Path
    settings: Mapping[str, object] = field(default_factory=dict)
    hba: Sequence[str] = ("local all all trust",)
    listen: tuple[str, ...] = ()
    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _log_start: int = field(default=0, repr=False)

    def init(
        self,
        superuser: str = "postgres",
        password: str | None = None,
        *,
        checksums: bool = True,
        durable: bool = True,
        extra: Sequence[str] = (),
    ) -> None:
        """Make the data directory with initdb, whole or not at all; left-overs of a killed init are removed.

        durable: off skips the fsyncs, for throwaways. extra: further options of initdb.
        Raises ConfigError when the directory exists already, ToolFailed with initdb's own words.
        """
        if self.data_dir.exists():
            raise ConfigError(f'data directory "{self.data_dir}" already exists')
        making = self.clear_half_made()
        command: list[str | Path] = [self.tools.path("initdb"), "-D", making, "-U", superuser, "-E", "UTF8"]
        command += ["--locale=C", "--auth=trust", *extra]
        if self.tools.major >= 17:
            command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        if checksums:
            command.append("--data-checksums")
        elif self.tools.major >= 18:
            command.append("--no-data-checksums")
        if not durable:
            command.append("--no-sync")
        secret = self.data_dir.with_name(self.data_dir.name + ".password")
        try:
            if password is not None:
                secret.unlink(missing_ok=True)
                with os.fdopen(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    file.write(password + "\n")
                give_to(self.identity, secret)
                command.append(f"--pwfile={secret}")
            run_as(self.identity, command, timeout_s=START_TIMEOUT_S, env=self.tools.environment())
            making.rename(self.data_dir)
        finally:
            secret.unlink(missing_ok=True)
            shutil.rmtree(making, ignore_errors=True)

    def clear_half_made(self) -> Path:
        """Remove what a killed init or clone left, and return the name to work under before the rename."""
        make_private_dir(self.data_dir.parent, self.identity)
        making = self.data_dir.with_name(self.data_dir.name + ".making")
        if making.exists():
            shutil.rmtree(making)
        return making

    def start(self, timeout_s: float = START_TIMEOUT_S, *, die_with_parent: bool = True) -> None:
        """Start and wait until queries are taken (on a standby: read-only ones). No-op when it runs already.

        die_with_parent: the server stops fast when the calling *thread* ends, even by kill -9.
        Raises ToolFailed with the end of the log when it ended instead, DeadlineExceeded after `timeout_s`, Refused
        when a fence marker forbids it.
        """
        if self.begin_start(die_with_parent=die_with_parent):
            self.wait_ready(timeout_s)

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once queries are taken. Raises as `start` does."""
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            self.raise_if_ended()
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"PostgreSQL in {self.data_dir} was not ready within {timeout_s:g} s", detail=self.log_tail()
                )
            time.sleep(POLL_S)

    def wait_recovered(self, timeout_s: float) -> None:
        """Return once recovery has ended and queries are taken; raises as `start` does.

        Without hot standby a server that recovers is ready in its own words, and lets nobody in.
        """
        deadline = time.monotonic() + timeout_s
        while self._status() != "ready":
            self.raise_if_ended()
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"PostgreSQL in {self.data_dir} had not recovered within {timeout_s:g} s", detail=self.log_tail()
                )
            time.sleep(POLL_S)

    def begin_start(self, *, die_with_parent: bool = True) -> bool:
        """Launch without waiting; False when it runs already. For starting several servers side by side."""
        if self.is_running():
            return False
        fence = self.fence()
        if fence is not None:
            raise Refused(
                f'PostgreSQL in "{self.data_dir}" is fenced and is not started',
                detail=fence,
                hint="Rejoin it as a standby; started as it is, it would be a second primary.",
            )
        self.end_orphans()
        # stale, for no server works here; PostgreSQL would take a reused pid or an unreaped zombie for the owner
        stale = (self.socket_dir / f".s.PGSQL.{self.port}", self.socket_dir / f".s.PGSQL.{self.port}.lock")
        for path in (self.data_dir / "postmaster.pid", *stale):
            path.unlink(missing_ok=True)
        self.write_configuration()
        claim_socket_dir(self.socket_dir, self.identity)
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        self._child = spawn(
            self.identity,
            [self.tools.path("postgres"), "-D", self.data_dir],
            log_path=self.log_path,
            env=self.tools.environment(),
            die_with_parent=signal.SIGINT if die_with_parent else None,
        )
        return True

    def fence(self) -> str | None:
        """Return what the fence marker says, the id of an incident; None when the server is not fenced."""
        with contextlib.suppress(FileNotFoundError):
            return (self.data_dir / FENCE_MARKER).read_text(errors="replace").strip()
        return None

    def write_fence(self, incident: str) -> None:
        """Write the fence marker so that a crash right after cannot lose it."""
        path = self.data_dir / FENCE_MARKER
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(descriptor, f"{incident}\n".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        give_to(self.identity, path)
        folder = os.open(self.data_dir, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def is_standby(self) -> bool:
        """Return whether its data directory says that it starts as a standby."""
        return (self.data_dir / STANDBY_SIGNAL).exists()

    def control_timeline(self) -> int:
        """Return the timeline of its last checkpoint (pg_controldata)."""
        return int(control_data(self.data_dir, self.tools, self.identity)["Latest checkpoint's TimeLineID"])

    def write_configuration(self) -> None:
        """Write postgresql.conf and pg_hba.conf; a running server takes them at its next reload."""
        fixed: dict[str, object] = {
            "port": self.port,
            "listen_addresses": ",".join(self.listen),
            "unix_socket_directories": str(self.socket_dir),
            "unix_socket_permissions": "0700",
            "external_pid_file": "",
            "log_timezone": "UTC",
            "logging_collector": False,
        }
        lines = [f"{name} = {_quoted(value)}" for name, value in {**self.settings, **fixed}.items()]
        self._write("postgresql.conf", "# written by synapse-ops at each start\n" + "\n".join(lines) + "\n")
        self._write("pg_hba.conf", "\n".join(self.hba) + "\n")

    def _write(self, name: str, text: str) -> None:
        making = self.data_dir / f"{name}.making"
        with os.fdopen(os.open(making, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        give_to(self.identity, making)
        making.replace(self.data_dir / name)

    def reload(self) -> None:
        """Make a running server read its configuration again."""
        mark = self.mark()
        if mark is not None:
            mark.signal(signal.SIGHUP)

    def raise_if_ended(self) -> None:
        """Raise ToolFailed with the log's end when the server that we launched has ended."""
        if self._child is not None and self._child.poll() is not None:
            status = self._child.returncode
            raise ToolFailed([str(self.tools.bin_dir / "postgres")], status=status, stderr_tail=self.log_tail())

    def log_tail(self, limit: int = 1500) -> str:
        """Return the end of what the server wrote since the last start by this object."""
        try:
            with self.log_path.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, size - limit))
                return log.read().decode(errors="replace").strip()
        except FileNotFoundError:
            return ""

    def _pid_file(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError, PermissionError, NotADirectoryError):
            return (self.data_dir / "postmaster.pid").read_text(errors="replace").splitlines()
        return []

    def mark(self) -> ProcessMark | None:
        """Return the living postmaster of this directory; a stale pid file, its pid reused or not, gives None."""
        if self._child is not None:
            self._child.poll()  # an unreaped zombie still counts as alive for the next postmaster's lock files
        lines = self._pid_file()
        if len(lines) < 3 or not lines[0].lstrip("-").isdigit() or not lines[2].isdigit():
            if self._child is not None and self._child.poll() is None:
                return ProcessMark.of(self._child.pid)
            return None
        found = ProcessMark.of(int(lines[0]))
        if found is None:
            return None
        if self._child is not None and self._child.pid == found.pid:
            return found if self._child.poll() is None else None
        return found if works_in(found, self.data_dir) else None

    def pid(self) -> int | None:
        mark = self.mark()
        return mark.pid if mark is not None else None

    def is_running(self) -> bool:
        """Whether a postmaster of this directory lives, ready or not."""
        return self.mark() is not None

    def is_ready(self) -> bool:
        """Whether it takes queries (a standby: read-only ones)."""
        return self._status() in _READY and self.mark() is not None

    def _status(self) -> str:
        lines = self._pid_file()
        return lines[7].strip() if len(lines) >= 8 else ""

    def stop(self, mode: StopMode = "fast", timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop and wait until no process works in the directory; after `timeout_s` immediate, then SIGKILL.

        No-op when nothing runs. Never leaves an orphaned backend: one of those can go on committing.
        """
        mark = self.mark()
        if mark is not None and mark.signal(_STOP_SIGNALS[mode]) and not self._wait_ended(mark, timeout_s):
            mark.signal(signal.SIGQUIT)
            if not self._wait_ended(mark, timeout_s):
                mark.signal(signal.SIGKILL)
                self._wait_ended(mark, timeout_s)
        self.end_orphans()
        remove_socket_dir(self.socket_dir)

    def _wait_ended(self, mark: ProcessMark, timeout_s: float) -> bool:
        if self._child is not None and self._child.pid == mark.pid:
            try:
                self._child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return False
            self._child = None
            return True
        return mark.wait_gone(timeout_s)

    def end_orphans(self, timeout_s: float = 3.0) -> None:
        """End every process that works in the directory although its postmaster is dead."""
        for orphan in processes_in(self.data_dir):
            end_process(orphan, signal.SIGQUIT, timeout_s=timeout_s)

    def conninfo(
        self,
        database: str = "postgres",
        user: str = "postgres",
        *,
        password: str | None = None,
        host: str | None = None,
    ) -> str:
        """Return a libpq conninfo, by socket unless `host` is given. It is a secret when it holds a password."""
        from psycopg.conninfo import make_conninfo

        given = {"password": password} if password is not None else {}
        where = host if host is not None else str(self.socket_dir)
        return make_conninfo(host=where, port=self.port, dbname=database, user=user, **given)


def _quoted(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int | float):
        return str(value)
    return "'" + str(value).replace("\\", "\\\\").replace("'", "''") + "'"
