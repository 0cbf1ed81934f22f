"""One session with one server that is asked again and again, and never waited for longer than asked.

psycopg waits for an answer until it comes; a stopped server (SIGSTOP) or one whose host is gone never gives one. Here
every wait has an end, a question that was not answered is waited for again by the next one, and the end of a session is
seen at once (`fileno` becomes readable).
"""

from __future__ import annotations

import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from synapse_ops.domain.failover.evidence import Sign

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

# what libpq and the kernel say in their own words when no server has answered; anything else was said by a server
_REFUSED = ("connection refused",)
_ENDED = ("server closed the connection", "connection reset", "eof detected", "unexpected eof", "broken pipe")
_STARTING = ("is starting up", "in recovery mode", "not yet accepting connections")  # 57P03, in the server's words
_UNREACHABLE = ("could not translate", "no route to host", "unreachable", "timed out", "timeout expired")
_ENDED_STATES = {b"57P01", b"57P02"}  # by an administrator, or because another backend crashed


@dataclass(frozen=True, slots=True)
class Answer:
    """rows: of the statement, as text; None for NULL. words: what was said instead, without secrets."""

    sign: Sign
    rows: tuple[tuple[str | None, ...], ...] = ()
    words: str = ""


class KeptSession:
    """conninfo: of one host, without target_session_attrs; it holds a password. Not for use by several threads."""

    def __init__(self, conninfo: str, *, application_name: str) -> None:
        from psycopg.conninfo import make_conninfo

        self._conninfo = make_conninfo(conninfo, application_name=application_name)
        self._pgconn: PGconn | None = None
        self._is_waiting = False

    def __repr__(self) -> str:
        return f"KeptSession(open={self._pgconn is not None})"

    def fileno(self) -> int | None:
        """Return the descriptor that becomes readable when the session ends; None while there is no session."""
        return self._pgconn.socket if self._pgconn is not None else None

    def ask(self, statement: str, timeout_s: float) -> Answer:
        """Return the answer to a statement, opening the session where there is none.

        A statement of an earlier call that was not answered is waited for instead of this one.
        """
        deadline_s = time.monotonic() + timeout_s
        if self._pgconn is None:
            opened = self._open(deadline_s)
            if opened.sign is not Sign.ALIVE or self._pgconn is None:
                return opened
        try:
            return self._answer(self._pgconn, statement, deadline_s)
        except OSError as error:
            return self._lost(Sign.ENDED, str(error))

    def close(self) -> None:
        pgconn, self._pgconn, self._is_waiting = self._pgconn, None, False
        if pgconn is not None:
            pgconn.finish()

    def _open(self, deadline_s: float) -> Answer:
        from psycopg.pq import ConnStatus, PGconn, PollingStatus

        pgconn = PGconn.connect_start(self._conninfo.encode())
        status = PollingStatus.FAILED if pgconn.status == ConnStatus.BAD else PollingStatus.WRITING
        while status not in {PollingStatus.OK, PollingStatus.FAILED}:
            if not _wait(pgconn.socket, deadline_s, writing=status is PollingStatus.WRITING):
                pgconn.finish()  # libpq has begun its message already: `connection to server at ... failed:`
                return Answer(Sign.SILENT, words="no answer in time")
            status = PollingStatus(pgconn.connect_poll())
        if status is PollingStatus.FAILED:
            words = pgconn.error_message.decode(errors="replace").strip()
            pgconn.finish()
            return Answer(sign_of(words), words=words)
        pgconn.nonblocking = 1
        self._pgconn = pgconn
        return Answer(Sign.ALIVE)

    def _answer(self, pgconn: PGconn, statement: str, deadline_s: float) -> Answer:
        from psycopg import OperationalError

        results: list[PGresult] = []
        try:
            if not self._is_waiting:
                pgconn.send_query(statement.encode())
                self._is_waiting = True
            while True:
                writes = pgconn.flush() == 1
                pgconn.consume_input()
                while not pgconn.is_busy():
                    result = pgconn.get_result()
                    if result is None:
                        self._is_waiting = False
                        return self._result(results)
                    results.append(result)
                if not _wait(pgconn.socket, deadline_s, writing=writes, reading=True):
                    return Answer(Sign.SILENT, words="no answer in time")
        except OperationalError as error:
            return self._lost(Sign.ENDED, str(error))

    def _result(self, results: list[PGresult]) -> Answer:
        from psycopg.pq import DiagnosticField, ExecStatus

        last = results[-1]
        if last.status == ExecStatus.TUPLES_OK:
            rows = (
                tuple(
                    value.decode(errors="replace") if (value := last.get_value(row, column)) is not None else None
                    for column in range(last.nfields)
                )
                for row in range(last.ntuples)
            )
            return Answer(Sign.ALIVE, tuple(rows))
        state = last.error_field(DiagnosticField.SQLSTATE)
        words = last.error_message.decode(errors="replace").strip()
        if state in _ENDED_STATES or (state is None and last.status == ExecStatus.FATAL_ERROR):
            return self._lost(Sign.ENDED, words)
        return Answer(Sign.ALIVE, words=words)  # any SQLSTATE was said by a living server

    def _lost(self, sign: Sign, words: str) -> Answer:
        self.close()
        return Answer(sign, words=words.strip())


def sign_of(words: str) -> Sign:
    """Return what a failed attempt to connect shows. Words that we do not know are a server's: that is life."""
    lower = words.lower()
    if any(one in lower for one in _REFUSED):
        return Sign.REFUSED
    if any(one in lower for one in _ENDED):
        return Sign.ENDED
    if any(one in lower for one in _UNREACHABLE):
        return Sign.SILENT
    if any(one in lower for one in _STARTING):
        return Sign.STARTING
    return Sign.ALIVE


def _wait(descriptor: int, deadline_s: float, *, writing: bool, reading: bool | None = None) -> bool:
    """Return whether the socket is ready before the deadline. reading: None: when it is not for writing."""
    left_s = max(0.0, deadline_s - time.monotonic())
    reads = [descriptor] if (reading if reading is not None else not writing) else []
    ready = select.select(reads, [descriptor] if writing else [], [], left_s)
    return bool(ready[0] or ready[1])
