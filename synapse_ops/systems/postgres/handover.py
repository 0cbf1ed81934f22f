"""What a switchover asks of both nodes before anything is stopped. Each question has a time limit."""

from __future__ import annotations

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.failover.evidence import Sign
from synapse_ops.domain.failover.switchover import LONG_S, LongSession, Readiness
from synapse_ops.errors import Unreachable
from synapse_ops.systems.postgres.kept_session import KeptSession

APPLICATION_NAME = "synapse-ops switchover"
ANSWER_S = 5.0
CHECKPOINT_S = 60.0  # meanwhile nobody watches; a second try finds little left to write

_PRIMARY = """
SELECT pg_is_in_recovery(), (SELECT timeline_id FROM pg_control_checkpoint()),
  CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() END"""
_STANDBY = """
SELECT pg_is_in_recovery(), (SELECT timeline_id FROM pg_control_checkpoint()), pg_last_wal_replay_lsn(),
  coalesce((SELECT status FROM pg_stat_wal_receiver), '')"""
_SESSIONS = """
SELECT 'transaction', pid, usename, application_name, extract(epoch FROM clock_timestamp() - xact_start) AS age
FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
  AND clock_timestamp() - xact_start > interval '{} s'
UNION ALL
SELECT 'base backup', pid, usename, application_name, extract(epoch FROM clock_timestamp() - backend_start)
FROM pg_stat_replication WHERE state = 'backup' ORDER BY age DESC"""
_OTHER_SENDERS = "SELECT pid FROM pg_stat_replication WHERE application_name <> '{}' AND state <> 'backup'"

_Rows = tuple[tuple[str, ...], ...]


def _ask(conninfo: str, node: str, statement: str, limit_s: float = ANSWER_S) -> _Rows:
    session = KeptSession(conninfo, application_name=APPLICATION_NAME)
    try:
        answer = session.ask(statement, limit_s)
    finally:
        session.close()
    if answer.sign is not Sign.ALIVE or answer.words:
        raise Unreachable(f"{node} gave no answer: {answer.words or answer.sign}")
    return tuple(tuple(value or "" for value in row) for row in answer.rows)


def read_readiness(primary: tuple[str, str], standby: tuple[str, str], long_s: float = LONG_S) -> Readiness:
    """Return how two nodes stand; each is its name and a superuser's conninfo. Raises Unreachable.

    long_s: age of a transaction that is worth a word.
    """
    [(recovers, timeline, flushed)] = _ask(primary[1], primary[0], _PRIMARY)
    [(follows, standby_timeline, replayed, receiver)] = _ask(standby[1], standby[0], _STANDBY)
    sessions = [
        LongSession(node, what, int(pid), user, application, float(age))
        for node, conninfo in (primary, standby)
        for what, pid, user, application, age in _ask(conninfo, node, _SESSIONS.format(long_s))
    ]
    lag = max(0, Lsn.parse(flushed) - Lsn.parse(replayed)) if flushed and replayed else None
    return Readiness(
        takes_writes=recovers == "f",
        follows=follows == "t",
        timelines=(int(timeline), int(standby_timeline)),
        receiver=receiver,
        lag_bytes=lag,
        long_sessions=tuple(sessions),
    )


def checkpoint(node: tuple[str, str]) -> None:
    """Write out what a stop (or, on a standby, a promotion) would have to write. Raises Unreachable."""
    _ask(node[1], node[0], "CHECKPOINT", CHECKPOINT_S)


def other_senders(primary: tuple[str, str], standby: str) -> tuple[int, ...]:
    """Return the pids on the primary that send WAL to others than its standby. Raises Unreachable."""
    return tuple(int(pid) for (pid,) in _ask(primary[1], primary[0], _OTHER_SENDERS.format(standby)))
