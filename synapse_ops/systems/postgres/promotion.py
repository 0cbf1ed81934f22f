"""A standby made the primary by one conditional statement, and what the old primary had beyond it.

The condition travels with each statement: whoever wakes up late and sends it again changes nothing. Sessions of the
standby are ended first: a snapshot held there made a promotion take 30 s. What a standby has received is at least what
it has replayed: after its restart `pg_last_wal_receive_lsn` begins anew. Source: measured; docs/failover.md.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import TimelineHistory
from synapse_ops.domain.failover.incident import WalBehind
from synapse_ops.errors import DeadlineExceeded
from synapse_ops.systems.host.processes import ServerIdentity, run_as
from synapse_ops.systems.postgres.connection import connect, postgres_errors
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.synchronous_names import set_awaited

if TYPE_CHECKING:
    import psycopg

POLL_S = 0.02
_STANDING = """
SELECT pg_is_in_recovery(), (SELECT timeline_id FROM pg_control_checkpoint()),
       (SELECT system_identifier::text FROM pg_control_system()),
       CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
            ELSE pg_current_wal_flush_lsn() END::text,
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text"""
_PROMOTE = """
SELECT pg_promote(false)
WHERE pg_is_in_recovery() AND greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) = %s::pg_lsn
  AND (SELECT timeline_id FROM pg_control_checkpoint()) = %s"""
_IS_STANDBY = "pg_is_in_recovery() AND (SELECT timeline_id FROM pg_control_checkpoint()) = %s"
_OTHERS = f"""
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND {_IS_STANDBY}"""
_RESUME = f"""
SELECT pg_wal_replay_resume() WHERE {_IS_STANDBY} AND pg_get_wal_replay_pause_state() <> 'not paused'"""
_COMMIT = re.compile(r"rmgr: Transaction .* desc: COMMIT")
_RECORD = re.compile(r"rmgr: .*?len \(rec/tot\):\s*\d+/\s*(\d+).*? lsn: ([0-9A-F]+/[0-9A-F]+),")


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a server stands. timeline: of its last checkpoint. received, replayed: None where nothing was."""

    in_recovery: bool
    timeline: int
    system_identifier: str
    received: Lsn | None
    replayed: Lsn | None


def read_standing(connection: psycopg.Connection[Any]) -> Standing:
    with postgres_errors("where a node stands"):
        [(recovers, timeline, identifier, received, replayed)] = connection.execute(_STANDING).fetchall()
    return Standing(
        recovers,
        timeline,
        identifier,
        Lsn.parse(received) if received else None,
        Lsn.parse(replayed) if replayed else None,
    )


def settled_standing(conninfo: str, timeline: int, timeout_s: float) -> Standing:
    """Return where a standby stands once it has replayed what it received, or as far as it came within the time.

    Replay that somebody paused goes on, and sessions that could hold it up are ended; neither on another timeline. The
    last bytes received may be a part of a record, which is never replayed: then `replayed` stays behind `received`.
    """
    deadline_s = time.monotonic() + timeout_s
    with connect(conninfo, timeout_s=2) as connection, postgres_errors("the standby's replay"):
        connection.execute(_OTHERS, [timeline])
        connection.execute(_RESUME, [timeline])
        while True:
            found = read_standing(connection)
            if not found.in_recovery or found.replayed == found.received or time.monotonic() > deadline_s:
                return found
            time.sleep(POLL_S)


def await_nobody(connection: psycopg.Connection[Any], timeline: int, timeout_s: float) -> None:
    """Empty `synchronous_standby_names` of a standby of this timeline before it is promoted; needs autocommit.

    A clone has it from the primary. A promoted server would wait for its dead partner and acknowledge no commit.
    """
    holds = f"SELECT {_IS_STANDBY} AND current_setting('synchronous_standby_names') <> ''"
    if connection.execute(holds, [timeline]).fetchone() == (True,):
        set_awaited(connection, "", timeout_s)


def promote(conninfo: str, received: Lsn, timeline: int, timeout_s: float) -> bool:
    """Promote the standby that stands exactly at `received` on `timeline`; return whether it takes writes then.

    False: the condition did not hold, and nothing was done. Raises DeadlineExceeded, Unreachable, PostgresRefused.
    """
    deadline_s = time.monotonic() + timeout_s
    with connect(conninfo, timeout_s=2) as connection, postgres_errors("the promotion"):
        connection.execute(_OTHERS, [timeline])
        await_nobody(connection, timeline, timeout_s)
        if connection.execute(_PROMOTE, [str(received), timeline]).fetchone() is None:
            return False
        while connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
            if time.monotonic() > deadline_s:
                raise DeadlineExceeded(f"the standby did not end its recovery within {timeout_s:g} s")
            time.sleep(POLL_S)
    return True


def make_slots(conninfo: str, timeline: int, names: tuple[str, ...]) -> None:
    """Make the physical slots that are missing, each holding WAL from now on; only on a primary of this timeline."""
    with connect(conninfo, timeout_s=2) as connection, postgres_errors("the replication slots of the new primary"):
        for name in names:
            connection.execute(
                "SELECT pg_create_physical_replication_slot(%s, true)"
                " WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %s)"
                " AND CASE WHEN pg_is_in_recovery() THEN false"
                " ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int = %s END",
                [name, name, timeline],
            )


def read_fork(connection: psycopg.Connection[Any], timeline: int) -> Lsn:
    """Return where a timeline begins: the end of the last record that its promotion had replayed."""
    with postgres_errors(f"the history of timeline {timeline}"):
        [(text,)] = connection.execute("SELECT pg_read_file(%s)", [f"pg_wal/{timeline:08X}.history"]).fetchall()
    return TimelineHistory.parse(timeline, text.encode()).begins_at


def wal_behind(
    data_dir: Path, timeline: int, position: Lsn, tools: PgTools, identity: ServerIdentity | None, *, timeout_s: float
) -> WalBehind:
    """Return what a dead server's WAL holds behind the end of a record (pg_waldump)."""
    command: list[str | Path] = [tools.path("pg_waldump"), f"--path={data_dir / 'pg_wal'}", f"--timeline={timeline}"]
    command.append(f"--start={position}")
    done = run_as(identity, command, timeout_s=timeout_s, env=tools.environment(), check=False)
    end, commits = position, 0
    for line in done.stdout.splitlines():
        record = _RECORD.match(line)
        if record is not None:
            end = Lsn(Lsn.parse(record[2]).position + int(record[1]))
            commits += _COMMIT.match(line) is not None
    return WalBehind(max(end, position), commits)
