"""One node of the database as the watcher of a failover knows it: its kept session, and what it answered last."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.failover.evidence import Sign, View
from synapse_ops.operations.failover.control import NodeControl
from synapse_ops.systems.postgres.kept_session import Answer, KeptSession

ANSWER_S = 1.0

_QUESTION = """
SELECT pg_is_in_recovery(), (SELECT timeline_id FROM pg_control_checkpoint()),
  (SELECT system_identifier FROM pg_control_system()),
  CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
       ELSE pg_current_wal_flush_lsn() END,
  coalesce((SELECT status FROM pg_stat_wal_receiver), ''),
  coalesce((SELECT extract(epoch FROM clock_timestamp() - last_msg_receipt_time) FROM pg_stat_wal_receiver), 1e9)"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one node answered. at_s: monotonic."""

    at_s: float
    takes_writes: bool
    timeline: int
    system_identifier: str
    lsn: Lsn | None
    receiver: str
    message_age_s: float

    @classmethod
    def of(cls, answer: Answer, at_s: float) -> Seen | None:
        if answer.sign is not Sign.ALIVE or not answer.rows:
            return None
        recovers, timeline, identifier, lsn, receiver, age_s = answer.rows[0]
        return cls(
            at_s=at_s,
            takes_writes=recovers == "f",
            timeline=int(timeline or 0),
            system_identifier=identifier or "",
            lsn=Lsn.parse(lsn) if lsn else None,
            receiver=receiver or "",
            message_age_s=float(age_s or 1e9),
        )


@dataclass
class WatchedNode:
    """One node: its session, what it answered last, and how its session ended last.

    control: authority over it on this host, if there is one. is_writing: it was seen to write WAL while it was silent.
    """

    name: str
    session: KeptSession
    seen: Seen | None = None
    ended: Sign | None = None
    first_failed_at: datetime | None = None
    control: NodeControl | None = field(default=None, repr=False)
    is_writing: bool = False
    _written_ns: int | None = None

    def ask(self) -> Answer:
        asked_at = datetime.now(UTC)  # a time-out is noted when the question was asked, not when the wait was over
        answer = self.session.ask(_QUESTION, ANSWER_S)
        if answer.sign is Sign.ENDED:
            self.ended = Sign.ENDED
            answer = self.session.ask(_QUESTION, ANSWER_S)  # anew: is anybody there?
        found = Seen.of(answer, time.monotonic())
        if found is not None:
            self.seen, self.ended, self.first_failed_at = found, None, None
        elif self.first_failed_at is None:
            self.first_failed_at = asked_at
        return answer

    def notes_writing(self, sign: Sign) -> bool:
        """Return whether it does not answer and has written WAL since the last look: its clients work."""
        before, self._written_ns = self._written_ns, None
        if sign is Sign.SILENT and self.control is not None:
            self._written_ns = self.control.wal_written_ns()
        self.is_writing = before is not None and self._written_ns not in {None, before}
        return self.is_writing

    @property
    def silence(self) -> str:
        """What is said of a primary that does not answer."""
        if self.is_writing:
            return f"{self.name} answers neither us nor its standby, and goes on writing WAL: it is alive, and cut off"
        return f"{self.name} does not answer"

    def view_of_primary(self, answer: Answer, since_s: float | None) -> View:
        """Return what a standby shows of its primary. since_s: when the suspicion began, of the monotonic clock."""
        seen = self.seen
        if answer.sign is not Sign.ALIVE or seen is None or seen.takes_writes:
            return View.UNKNOWN
        if seen.receiver != "streaming":
            return View.DEAD
        heard = since_s is not None and seen.message_age_s < seen.at_s - since_s
        return View.ALIVE if heard else View.UNKNOWN
