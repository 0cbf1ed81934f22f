"""The authority over a PostgreSQL node of the embedded stack: its processes, its data directory, its way back.

Death of a data directory is that no process works in it, twice a second apart, and that nobody is attached to its
System V segment (which is seen whatever the uid). After kill -9 of the postmaster alone an orphan goes on committing;
after SIGQUIT a stopped server lives on: so everything gets SIGKILL until two looks are empty.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.failover.fence import Cause, Living
from synapse_ops.domain.failover.incident import WalBehind
from synapse_ops.errors import DeadlineExceeded, Refused, ToolFailed
from synapse_ops.systems.host.processes import give_to, processes_in, run_as
from synapse_ops.systems.postgres.connection import connect, conninfo_parts
from synapse_ops.systems.postgres.control_file import control_data
from synapse_ops.systems.postgres.promotion import read_standing, wal_behind
from synapse_ops.systems.postgres.server import FENCE_MARKER, STANDBY_SIGNAL, PgServer

SECOND_LOOK_S = 1.0
KILL_LIMIT_S = 10.0
REWIND_LIMIT_S = 600.0
STREAM_LIMIT_S = 60.0
SENDER_GRACE_S = 0.5  # at a clean stop: a WAL receiver acknowledges only what the store has, for 10 s at worst
POLL_S = 0.05
_SEGMENTS = Path("/proc/sysvipc/shm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass
class LocalNode:
    """One node on this host. clone: makes its data directory anew from the current primary, whole or not at all."""

    name: str
    server: PgServer
    kept_folder: Path
    dies_with_us: bool = False
    clone: Any = field(default=None, repr=False)

    def living(self) -> Living | None:
        processes = len(processes_in(self.server.data_dir))
        return Living(processes, self._shmid()) if processes else None

    def wal_written_ns(self) -> int | None:
        try:
            return max(one.stat().st_mtime_ns for one in os.scandir(self.server.data_dir / "pg_wal") if one.is_file())
        except (OSError, ValueError):
            return None

    def fence(
        self, incident: str, timeline: int, saw_alive: Living | None, succeeds: frozenset[str] = frozenset()
    ) -> Cause:
        """Raises Refused for a server that is on another timeline: it has been promoted or rejoined meanwhile."""
        control = control_data(self.server.data_dir, self.server.tools, self.server.identity)
        found = int(control["Latest checkpoint's TimeLineID"])
        standing = self.server.fence()
        if found != timeline:
            raise Refused(
                f"{self.name} is on timeline {found}, incident {incident} is about {timeline}: nothing was done",
                hint="It has been promoted or rejoined since. `synapse-ops failover status` shows what is open.",
            )
        if standing is not None and standing not in {incident, *succeeds}:
            raise Refused(f'{self.name} is fenced by incident "{standing}", this is {incident}')
        shmid = saw_alive.shmid if saw_alive is not None and saw_alive.shmid is not None else self._shmid()
        self.server.write_fence(incident)
        killed = self._kill_all(incident)
        first = len(processes_in(self.server.data_dir))
        time.sleep(SECOND_LOOK_S)
        second = len(processes_in(self.server.data_dir))
        return Cause(
            system_identifier=control["Database system identifier"],
            data_dir=str(self.server.data_dir),
            boot_id=_BOOT_ID.read_text().strip() if _BOOT_ID.exists() else "",
            killed=killed,
            left=(first, second),
            attached=_attached(shmid),
            marker=self.server.fence() or "",
            saw_alive=saw_alive,
        )

    def _kill_all(self, incident: str) -> int:
        """Send SIGKILL, the postmaster first, until two looks are empty. Only while the marker is this incident's."""
        killed, empty, deadline_s = 0, 0, time.monotonic() + KILL_LIMIT_S
        postmaster = self.server.mark()
        while empty < 2 and time.monotonic() < deadline_s:
            if self.server.fence() != incident:
                break
            if postmaster is not None:
                killed += postmaster.signal(signal.SIGKILL)
                postmaster = None
            left = processes_in(self.server.data_dir)
            empty = empty + 1 if not left else 0
            killed += sum(mark.signal(signal.SIGKILL) for mark in left)
        return killed

    def _shmid(self) -> int | None:
        """Return the segment that the postmaster noted in its pid file (line 7: key and id)."""
        try:
            words = (self.server.data_dir / "postmaster.pid").read_text(errors="replace").splitlines()[6].split()
            return int(words[1])
        except (OSError, IndexError, ValueError):
            return None

    def wal_behind(self, timeline: int, position: Lsn) -> WalBehind:
        server = self.server
        return wal_behind(server.data_dir, timeline, position, server.tools, server.identity, timeout_s=60)

    def stop_cleanly(self, incident: str, timeline: int, senders: Sequence[int], timeout_s: float) -> Lsn:
        """Raises Refused for another timeline, a standing marker or an end out of order, DeadlineExceeded."""
        found, standing, postmaster = self.server.control_timeline(), self.server.fence(), self.server.mark()
        if found != timeline or standing is not None or postmaster is None:
            at = f'timeline {found}, expected {timeline}; marker "{standing or ""}"'
            raise Refused(f"{self.name} is not stopped: {at}; {'it runs' if postmaster else 'it does not run'}")
        self.server.write_fence(incident)
        began_s = time.monotonic()
        postmaster.signal(signal.SIGINT)
        while self.server.is_running():
            waited_s = time.monotonic() - began_s
            if waited_s > timeout_s:
                raise DeadlineExceeded(f"{self.name} did not stop within {timeout_s:g} s")
            if senders and waited_s > SENDER_GRACE_S:
                for mark in processes_in(self.server.data_dir):
                    if mark.pid in senders:
                        mark.signal(signal.SIGTERM)
                senders = ()
            time.sleep(POLL_S)
        left = processes_in(self.server.data_dir)
        state, checkpoint = self._end()
        if left or state != "shut down":
            raise Refused(f'{self.name} ended "{state}" with {len(left)} processes left, expected "shut down" with 0')
        return checkpoint

    def _end(self) -> tuple[str, Lsn]:
        """Return the state of the cluster and where its last checkpoint is, of the control file."""
        control = control_data(self.server.data_dir, self.server.tools, self.server.identity)
        return control["Database cluster state"], Lsn.parse(control["Latest checkpoint location"])

    def start_again(self, incident: str) -> None:
        """Raises Refused for another's marker, and as the server's start does."""
        standing = self.server.fence()
        if standing and standing != incident:
            raise Refused(f'{self.name} is fenced by incident "{standing}", this is {incident}')
        marker = self.server.data_dir / FENCE_MARKER
        if self.server.is_ready():  # it was not told to stop
            marker.unlink(missing_ok=True)
            return
        self.server.stop("immediate")
        marker.unlink(missing_ok=True)
        self.server.start(die_with_parent=self.dies_with_us)

    def rejoin(self, incident: str, source: str, fork: Lsn) -> dict[str, Any]:
        """Rewind the fenced server onto the new primary, else clone it anew; start it; return once it streams.

        One that was shut down before the fork has nothing to rewind: the last record of it is a checkpoint.

        Its WAL from the fork's segment on is kept in a folder named after the incident; a directory that cannot be
        rewound is kept beside the clone.
        """
        began_s = time.monotonic()
        if processes_in(self.server.data_dir):
            raise Refused(
                f"{self.name} runs: it is not fenced", hint="`synapse-ops failover status` shows what is open."
            )
        with connect(source) as connection:
            connection.execute("CHECKPOINT")  # pg_rewind reads the timeline from the source's control file
        (self.server.data_dir / "postmaster.pid").unlink(missing_ok=True)  # stale: it may name a zombie
        how, kept = "rewound", ""
        state, checkpoint = self._end()
        try:
            if state == "shut down" and checkpoint < fork:
                how = "started"
            else:
                self._keep_wal(incident, fork)
                self._rewind(source)
        except ToolFailed as error:
            how, kept = "cloned", str(self._set_aside(incident))
            if self.clone is None:
                raise
            self.clone()
            detail = error.detail.splitlines()[-1] if error.detail else error.message
        signal_file = self.server.data_dir / STANDBY_SIGNAL
        signal_file.touch(mode=0o600)
        give_to(self.server.identity, signal_file)
        (self.server.data_dir / FENCE_MARKER).unlink(missing_ok=True)
        self.server.start(die_with_parent=self.dies_with_us)
        self._wait_streaming(source)
        facts: dict[str, Any] = {"node": self.name, "how": how, "seconds": round(time.monotonic() - began_s, 3)}
        return facts | ({"kept_data_dir": kept, "rewind_failed": detail} if kept else {})

    def retire(self, reason: str) -> dict[str, Any]:
        """End the server for good and set its data directory aside; safe to repeat, also where there is nothing left.

        What is set aside has no control file: no PostgreSQL starts from it, whoever tries. (pg_upgrade disables an old
        cluster by the same rename.) Raises Refused while a process works in it.
        """
        folder = self.server.data_dir
        if not folder.exists():
            return {"node": self.name, "killed": 0, "left": 0, "attached": 0, "kept": ""}
        shmid = self._shmid()
        self.server.write_fence(reason)
        killed = self._kill_all(reason)
        time.sleep(SECOND_LOOK_S)
        left, attached = processes_in(folder), _attached(shmid)
        if left or attached:
            raise Refused(f"{self.name} is not fenced: {len(left)} processes left, {attached} attached to its memory")
        with suppress(FileNotFoundError):
            (folder / "global" / "pg_control").rename(folder / "global" / "pg_control.retired")
        return {
            "node": self.name,
            "killed": killed,
            "left": 0,
            "attached": attached,
            "kept": str(self._set_aside(reason)),
        }

    def _keep_wal(self, incident: str, fork: Lsn) -> None:
        """Copy the segments that may hold commits behind the fork: pg_rewind removes them."""
        target = self.kept_folder / incident
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted((self.server.data_dir / "pg_wal").glob("[0-9A-F]" * 24)):
            size = path.stat().st_size
            number = int(path.name[8:16], 16) * ((1 << 32) // size) + int(path.name[16:], 16)
            if (number + 1) * size > fork.position:
                shutil.copy2(path, target / path.name)

    def _rewind(self, source: str) -> None:
        from psycopg.conninfo import make_conninfo

        parts = conninfo_parts(source)
        password = parts.pop("password", "")
        server = self.server
        command: list[str | Path] = [server.tools.path("pg_rewind"), "--target-pgdata", server.data_dir]
        command += ["--source-server", make_conninfo("", **parts)]
        environment = {**server.tools.environment(), "PGPASSWORD": password}
        run_as(server.identity, command, timeout_s=REWIND_LIMIT_S, env=environment)

    def _set_aside(self, incident: str) -> Path:
        kept = self.server.data_dir.with_name(f"{self.server.data_dir.name}.{incident}")
        self.server.data_dir.rename(kept)
        return kept

    def _wait_streaming(self, source: str) -> None:
        """Return once it streams, and its control file is on the timeline of the new primary.

        The next promotion is conditional on that timeline, and a standby writes it at a restart point only.
        """
        from psycopg.conninfo import make_conninfo

        deadline_s = time.monotonic() + STREAM_LIMIT_S
        query = "SELECT 1 FROM pg_stat_replication WHERE application_name = %s AND state = 'streaming'"
        with connect(source) as connection:
            while connection.execute(query, [self.name]).fetchone() is None:
                self._raise_if_late(deadline_s, "does not stream from the new primary")
                time.sleep(POLL_S)
            connection.execute("CHECKPOINT")
            wanted = read_standing(connection)
        with connect(make_conninfo(source, port=self.server.port)) as connection:
            while (found := read_standing(connection)).timeline != wanted.timeline:
                self._raise_if_late(deadline_s, f"stays on timeline {found.timeline}, expected {wanted.timeline}")
                connection.execute("CHECKPOINT")
                time.sleep(POLL_S)

    def _raise_if_late(self, deadline_s: float, what: str) -> None:
        self.server.raise_if_ended()
        if time.monotonic() > deadline_s:
            raise DeadlineExceeded(f"{self.name} {what} after {STREAM_LIMIT_S:g} s", detail=self.server.log_tail())


def _attached(shmid: int | None) -> int | None:
    """Return how many processes are attached to a segment, whatever their uid; 0 when it is gone, None: not known."""
    if shmid is None:
        return None
    try:
        lines = _SEGMENTS.read_text().splitlines()
    except OSError:
        return None
    columns = lines[0].split()
    rows = (dict(zip(columns, line.split(), strict=False)) for line in lines[1:])
    return next((int(row["nattch"]) for row in rows if row.get("shmid") == str(shmid)), 0)
