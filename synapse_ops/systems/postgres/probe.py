"""PostgreSQL for the prober: a new session each time, one statement, and an end that a hung server cannot delay.

A new session proves what clients need: that a connection can be made and is answered. psycopg answers a cancelled wait
with a cancel request and then waits for the server again, which a stopped server never ends; here the socket is shut
down instead, so that the wait ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.health.servers import ServerFacts, Slot, WalPosition
from synapse_ops.systems.postgres.connection import (
    TRIES_TO_CONNECT,
    conninfo_parts,
    finishing_statements,
    lacks_settings,
    postgres_errors,
)
from synapse_ops.systems.postgres.session import OWN_ENCODING, SessionStart
from synapse_ops.systems.probe_stage import Stage

if TYPE_CHECKING:
    import psycopg

APPLICATION_NAME = "synapse-ops-watch"

_FACTS = """
select pg_is_in_recovery() as is_standby,
  (select count(*) from pg_stat_activity where backend_type = 'client backend') as connections,
  current_setting('max_connections')::int as max_connections,
  current_setting('superuser_reserved_connections')::int as reserved_connections,
  greatest(
    (select max(extract(epoch from clock_timestamp() - xact_start)) from pg_stat_activity
      where backend_type = 'client backend' and pid <> pg_backend_pid()),
    (select max(extract(epoch from clock_timestamp() - prepared)) from pg_prepared_xacts), 0)::float8
    as oldest_transaction_s,
  (select max(age(datfrozenxid)) from pg_database)::float8 as oldest_xid_age,
  (select max(mxid_age(datminmxid)) from pg_database)::float8 as oldest_multixact_age,
  (select coalesce(sum(checksum_failures), 0) from pg_stat_database)::float8 as checksum_failures,
  (select max(checksum_last_failure) from pg_stat_database) as checksum_last_failure,
  (select current_setting('archive_mode') <> 'off' and last_failed_time is not null
    and last_failed_time >= coalesce(last_archived_time, '-infinity') from pg_stat_archiver) as archive_fails,
  case when current_setting('archive_mode') = 'off' then 0 else
    (select coalesce(max(extract(epoch from clock_timestamp() - modification)), 0) from pg_ls_archive_statusdir()
      where name like '%.ready') end::float8 as archive_waiting_s,
  clock_timestamp() as server_time
"""

_SLOTS = """
select slot_name, active, wal_status,
  (case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end - restart_lsn)::float8
    as retained_bytes,
  safe_wal_size::float8 as left_bytes
from pg_replication_slots
"""

_POSITION = """
select pg_is_in_recovery() as is_standby,
  (case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end - '0/0'::pg_lsn)::float8
    as position_bytes,
  (case when pg_is_in_recovery() then pg_last_wal_receive_lsn() - '0/0'::pg_lsn end)::float8 as received_bytes,
  (select status from pg_stat_wal_receiver) as receiver_status,
  (case when pg_is_in_recovery() and pg_last_wal_receive_lsn() is distinct from pg_last_wal_replay_lsn()
    then extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp()) else 0 end)::float8 as replay_delay_s
"""


async def read_facts(conninfo: str, stage: Stage) -> ServerFacts:
    """Return a server's facts. Raises what `postgres_errors` raises."""
    [facts], slots = await _ask(conninfo, stage, _FACTS, _SLOTS)
    found = tuple(
        Slot(row["slot_name"], row["active"], row["wal_status"], row["retained_bytes"] or 0.0, row["left_bytes"])
        for row in slots
    )
    return ServerFacts(**facts, slots=found)


async def read_position(conninfo: str, stage: Stage) -> WalPosition:
    """Return where a server stands. Raises what `postgres_errors` raises."""
    [[row]] = await _ask(conninfo, stage, _POSITION)
    return WalPosition(**{**row, "replay_delay_s": row["replay_delay_s"] or 0.0})


async def _ask(conninfo: str, stage: Stage, *statements: str) -> list[list[dict[str, Any]]]:
    import psycopg
    from psycopg.rows import dict_row

    stage.words = "connecting"
    with postgres_errors("a probe"):
        connection = await _connect(conninfo)

        async def ask() -> list[list[dict[str, Any]]]:
            answers: list[list[dict[str, Any]]] = []
            for finishing in finishing_statements(connection):
                await connection.execute(finishing)
            async with connection.cursor(row_factory=dict_row) as cursor:
                for statement in statements:
                    await cursor.execute(statement)
                    answers.append(await cursor.fetchall())
            return answers

        stage.words = "waiting for the answer to a statement"
        asking = asyncio.ensure_future(ask())
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            _shut_down(connection.pgconn.socket)
            with contextlib.suppress(psycopg.Error):
                await asking
            raise
        finally:
            await connection.close()


async def _connect(conninfo: str) -> psycopg.AsyncConnection[Any]:
    import psycopg

    start = SessionStart(conninfo_parts(conninfo))
    for tries_left in reversed(range(TRIES_TO_CONNECT)):
        try:
            connection = await psycopg.AsyncConnection.connect(
                conninfo,
                autocommit=True,
                application_name=APPLICATION_NAME,
                prepare_threshold=None,
                options=start.own_options(),
                client_encoding=OWN_ENCODING,
            )
        except psycopg.OperationalError as error:
            if not (tries_left and start.has_learned(str(error))):
                raise
            continue
        if not (tries_left and lacks_settings(start, connection)):
            break
        await connection.close()
    return connection


def _shut_down(descriptor: int) -> None:
    """End a connection under libpq's feet; the descriptor stays open, so that no other connection takes its number."""
    with contextlib.suppress(OSError), socket.socket(fileno=socket.dup(descriptor)) as copy:
        copy.shutdown(socket.SHUT_RDWR)
