"""PostgreSQL's replication protocol, spoken through libpq as psycopg ships it: WAL as it is written.

Physical replication only. Nothing here decides what is stored or acknowledged; `WalStream.acknowledge` tells the server
what it may forget. Source: PostgreSQL documentation, "Streaming Replication Protocol".
"""

from __future__ import annotations

import re
import select
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.errors import SynapseOpsError, Unreachable
from synapse_ops.systems.postgres.connection import conninfo_parts, describe, postgres_errors
from synapse_ops.systems.postgres.errors import postgres_error

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

CONNECT_TIMEOUT_S = 10
MOST_WARNINGS = 20
_EPOCH_S = 946_684_800  # 2000-01-01, from which the protocol counts
_WAL = struct.Struct(">QQQ")
_KEEPALIVE = struct.Struct(">QQB")
_STATUS = struct.Struct(">cQQQQB")
_SLOT_NAME = re.compile(r"[a-z0-9_]{1,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class SystemIdentity:
    """What IDENTIFY_SYSTEM answers. flush_lsn: up to where WAL is on the server's disk, of `timeline`."""

    system_identifier: str
    timeline: int
    flush_lsn: Lsn


@dataclass(frozen=True, slots=True)
class SlotPosition:
    """A physical slot. restart_lsn: from where the server keeps WAL; None: it keeps none (never used, or lost)."""

    restart_lsn: Lsn | None
    timeline: int | None


@dataclass(frozen=True, slots=True)
class WalData:
    """Some WAL as it arrived. server_lsn: the end of WAL on the server when it was sent."""

    start: Lsn
    server_lsn: Lsn
    data: bytes


@dataclass(frozen=True, slots=True)
class Keepalive:
    """The server has nothing new. wants_reply: it ends the connection unless it soon hears from us."""

    server_lsn: Lsn
    wants_reply: bool


@dataclass(frozen=True, slots=True)
class EndOfTimeline:
    """The server was promoted: the timeline that was streamed ends, and the next one begins at `switched_at`."""

    next_timeline: int
    switched_at: Lsn


class ReplicationConnection:
    """One replication connection; a context manager. Not for use by several threads.

    warnings: what the server has warned of, up to MOST_WARNINGS.
    """

    def __init__(self, connection: PGconn, what: str) -> None:
        self.pgconn = connection
        self.what = what
        self.warnings: list[str] = []
        connection.notice_handler = self._take_notice

    def _take_notice(self, notice: PGresult) -> None:
        from psycopg.pq import DiagnosticField

        severity = notice.error_field(DiagnosticField.SEVERITY_NONLOCALIZED)
        if severity == b"WARNING" and len(self.warnings) < MOST_WARNINGS:
            words = notice.error_field(DiagnosticField.MESSAGE_PRIMARY) or b""
            self.warnings.append(words.decode(errors="replace"))

    @property
    def server_version_num(self) -> int:
        return self.pgconn.server_version

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.pgconn.finish()

    def identify(self) -> SystemIdentity:
        """Return which server this is and where its WAL ends."""
        row = self._row("IDENTIFY_SYSTEM")
        return SystemIdentity(row[0].decode(), int(row[1]), Lsn.parse(row[2].decode()))

    def show(self, setting: str) -> str:
        """Return a setting as SHOW prints it."""
        return self._row(f"SHOW {setting}")[0].decode()

    def read_slot(self, name: str) -> SlotPosition | None:
        """Return where a physical slot stands; None when there is none of that name. PostgreSQL 15 and later."""
        kind, lsn, timeline = self._row(f"READ_REPLICATION_SLOT {_checked(name)}", may_be_null=True)
        if not kind:
            return None
        return SlotPosition(Lsn.parse(lsn.decode()) if lsn else None, int(timeline) if timeline else None)

    def create_slot(self, name: str, *, is_temporary: bool = False) -> None:
        """Make a physical slot that keeps WAL from the last checkpoint's redo position on, from this moment."""
        temporary = "TEMPORARY " if is_temporary else ""
        self._row(f"CREATE_REPLICATION_SLOT {_checked(name)} {temporary}PHYSICAL (RESERVE_WAL)", may_be_null=True)

    def drop_slot(self, name: str) -> None:
        self.results(f"DROP_REPLICATION_SLOT {_checked(name)}")

    def timeline_history(self, timeline: int) -> bytes:
        """Return the content of a timeline's history file."""
        return self._row(f"TIMELINE_HISTORY {timeline:d}")[1]

    def stream(self, slot: str | None, start: Lsn, timeline: int) -> WalStream:
        """Begin to stream WAL. A position that the server has not, or not any more, is refused by the first `read`."""
        from psycopg.pq import ExecStatus

        with_slot = f"SLOT {_checked(slot)} " if slot is not None else ""
        self.send(f"START_REPLICATION {with_slot}PHYSICAL {start} TIMELINE {timeline:d}")
        result = self.next_result()
        if result is not None and result.status == ExecStatus.COPY_BOTH:
            return WalStream(self)
        # a timeline that ends at `start` is not streamed: only where the next one begins is told
        return WalStream(self, ended=result)

    def _row(self, command: str, *, may_be_null: bool = False) -> list[bytes]:
        """Return the one row of an answer; a null value is empty where that may be."""
        [result, *_] = self.results(command)
        if result.ntuples != 1:
            raise Unreachable(f"{self.what} answered {command.split()[0]} with {result.ntuples} rows, expected 1")
        values = [result.get_value(0, column) for column in range(result.nfields)]
        if not may_be_null and None in values[:3]:
            raise Unreachable(f"{self.what} answered {command.split()[0]} with a value missing")
        return [value or b"" for value in values]

    def results(self, command: str) -> list[PGresult]:
        """Run one command to its end. Raises the server's error as one of ours."""
        self.send(command)
        found = []
        while (result := self.next_result()) is not None:
            found.append(result)
        return found

    def send(self, command: str) -> None:
        with postgres_errors(self.what):
            self.pgconn.send_query(command.encode())

    def next_result(self) -> PGresult | None:
        """Return the next result of the command under way. Raises the server's error as one of ours."""
        from psycopg.errors import error_from_result
        from psycopg.pq import ExecStatus

        result = self.pgconn.get_result()
        if result is not None and result.status == ExecStatus.FATAL_ERROR:
            raise postgres_error(error_from_result(result), self.what)
        return result

    def lost(self) -> SynapseOpsError:
        """Return the error for a connection that ended, with libpq's own words."""
        from psycopg import OperationalError

        words = self.pgconn.error_message.decode(errors="replace").strip()
        return postgres_error(OperationalError(words or "the server closed the connection"), self.what)

    def wait(self, timeout_s: float, wake: int | None = None) -> bool:
        """Wait until the server has sent something, `wake` can be read, or the time is over; take what came.

        False when the time was over.
        """
        from psycopg import OperationalError

        sources = [self.pgconn.socket] if wake is None else [self.pgconn.socket, wake]
        readable, _, _ = select.select(sources, [], [], timeout_s)
        if self.pgconn.socket in readable:
            try:
                self.pgconn.consume_input()
            except OperationalError:
                raise self.lost() from None
        return bool(readable)


class WalStream:
    """WAL of one timeline from one connection, in order."""

    def __init__(self, connection: ReplicationConnection, ended: PGresult | None = None) -> None:
        self._connection = connection
        self._ended = ended
        self._has_ended = ended is not None

    def read(self, timeout_s: float, wake: int | None = None) -> WalData | Keepalive | EndOfTimeline | None:
        """Return the next message; None when there is none within the time, or `wake` (a descriptor) can be read.

        Raises Unreachable or what else the connection ended with.
        """
        if self._has_ended:
            return self._next_timeline(self._ended)
        found, message = self._copy_data()
        if found == 0:
            self._connection.wait(timeout_s, wake)
            found, message = self._copy_data()
        if found == 0:
            return None
        if found == -1:
            return self._end()
        return _parsed(message or memoryview(b""))

    def _copy_data(self) -> tuple[int, memoryview | None]:
        from psycopg import OperationalError

        try:
            found, message = self._connection.pgconn.get_copy_data(1)
        except OperationalError:
            raise self._connection.lost() from None
        return found, message

    def _end(self) -> EndOfTimeline:
        """Finish the copy. Raises the error that the server ended it with, a shutdown included."""
        from psycopg.pq import ExecStatus

        connection = self._connection
        self._has_ended = True
        while (result := connection.next_result()) is not None:
            if result.status == ExecStatus.COPY_IN:  # the server is done, we are not yet
                connection.pgconn.put_copy_end()
                connection.pgconn.flush()
            elif result.status == ExecStatus.TUPLES_OK:
                self._ended = result
        return self._next_timeline(self._ended)

    def _next_timeline(self, result: PGresult | None) -> EndOfTimeline:
        if result is None or result.ntuples != 1:
            raise Unreachable(
                f"{self._connection.what} ended the stream of WAL", hint="Was it stopped? It is asked again."
            )
        timeline, lsn = result.get_value(0, 0), result.get_value(0, 1)
        return EndOfTimeline(int(timeline or b"0"), Lsn.parse((lsn or b"").decode()))

    def acknowledge(self, write: Lsn, flush: Lsn) -> None:
        """Tell the server how far we are. flush: what is durable; the slot keeps nothing that lies before it.

        What was applied is said to be the same: a commit that waits for remote_apply would wait for ever.
        """
        from psycopg import OperationalError

        if self._has_ended:
            return
        now_us = int((time.time() - _EPOCH_S) * 1_000_000)
        status = _STATUS.pack(b"r", write.position, flush.position, flush.position, now_us, 0)
        try:
            self._connection.pgconn.put_copy_data(status)
            self._connection.pgconn.flush()
        except OperationalError:
            raise self._connection.lost() from None


def _parsed(message: memoryview) -> WalData | Keepalive:
    kind = bytes(message[:1])
    try:
        if kind == b"w":
            start, end, _ = _WAL.unpack_from(message, 1)
            return WalData(Lsn(start), Lsn(end), bytes(message[1 + _WAL.size :]))
        if kind == b"k":
            end, _, wants_reply = _KEEPALIVE.unpack_from(message, 1)
            return Keepalive(Lsn(end), bool(wants_reply))
    except struct.error:
        pass
    raise Unreachable(f"the server sent a message of replication that is not known: {bytes(message[:24])!r}")


@contextmanager
def connect_replication(
    conninfo: str, *, application_name: str, timeout_s: int = CONNECT_TIMEOUT_S
) -> Iterator[ReplicationConnection]:
    """Yield a replication connection. Raises Unreachable, or ConfigError when it is refused.

    It names a database, so that it needs no line `replication` in pg_hba.conf beside the one for that database; the
    password never leaves libpq.
    """
    from psycopg import OperationalError
    from psycopg.conninfo import make_conninfo
    from psycopg.pq import ConnStatus, PGconn

    parts = {**conninfo_parts(conninfo), "replication": "database", "application_name": application_name}
    parts |= {"connect_timeout": str(timeout_s), "keepalives_idle": "10", "keepalives_interval": "5"}
    parts.setdefault("dbname", "postgres")
    what = f"replication from {describe(conninfo)}"
    pgconn = PGconn.connect(make_conninfo("", **parts).encode())
    connection = ReplicationConnection(pgconn, what)
    with connection:
        if pgconn.status != ConnStatus.OK:
            words = pgconn.error_message.decode(errors="replace").strip()
            raise postgres_error(OperationalError(words), what)
        yield connection


def _checked(name: str) -> str:
    if _SLOT_NAME.fullmatch(name) is None:
        raise ValueError(f'"{name}" is not a name of a replication slot')
    return f'"{name}"'
