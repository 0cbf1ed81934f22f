"""With synchronous commits nothing that was acknowledged is lost, whoever is killed; and a person can end the waiting.

`SYNAPSE_TEST_ROUNDS=30` sets how often the primary is killed.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from synapse_ops.domain.database.synchronous import RECEIVER, setting_of, unprotected
from synapse_ops.domain.failover.transitions import State
from synapse_ops.errors import Unreachable
from synapse_ops.local.node_control import LocalNode
from synapse_ops.local.servers.databases import APP_DATABASE, APP_USER
from synapse_ops.operations.database.synchronous import read_report, turn_off, turn_on
from synapse_ops.operations.database.wal_check import check_wal
from synapse_ops.services.wal_receiver.receiver import Receiver
from synapse_ops.systems.host.processes import processes_in
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.server import PgServer
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.operations.failover.pair import DEADLINE_S, Pair, Writer, made_pair, one_primary, wait_for

pytestmark = pytest.mark.scenario
ROUNDS = int(os.environ.get("SYNAPSE_TEST_ROUNDS", "3"))
BOTH = "wal: {synchronous: true}"


@pytest.fixture(scope="module")
def pair(server_tools: PgTools, bucket: str, object_store_access: StoreAccess) -> Iterator[Pair]:
    """One pair with a receiver of its WAL: each test leaves a primary with a standby that streams."""
    with made_pair(server_tools, bucket, object_store_access, "synchronous") as found:
        found.wal = BOTH
        receiver = Receiver(found.stack(synchronous="standby"), found.layout.root)
        thread = threading.Thread(target=receiver.run)
        thread.start()
        yield found
        receiver.stop()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def protected(pair: Pair) -> bool:
    return not unprotected(read_report(pair.stack(synchronous="standby")).found)


def halted(pair: Pair, writer: Writer) -> int:
    """Return how many commits were acknowledged if the writer's next one waits and goes on waiting, else 0."""
    stack, before = pair.stack(synchronous="standby"), len(writer.acknowledged)
    waits = all(read_report(stack).waiting == 1 for _ in range(5))
    return before if waits and len(writer.acknowledged) == before else 0


def other(pair: Pair) -> str:
    return next(name for name in pair.servers if name != pair.primary())


@pytest.mark.timeout(120 + 60 * ROUNDS)
def test_no_acknowledged_commit_is_lost_with_the_primary(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits wait for the standby and for the repository, through failovers that exchange the roles."""
    rejoin, written = LocalNode.rejoin, threading.Event()

    def rejoin_later(self: LocalNode, *more: Any) -> dict[str, object]:
        assert written.wait(60)  # the promoted server waits for nobody that is not there
        return rejoin(self, *more)

    monkeypatch.setattr(LocalNode, "rejoin", rejoin_later)
    for _ in range(ROUNDS):
        written.clear()
        one_kill(pair, written)


def inherit(standby: PgServer, setting: str) -> None:
    """Have a standby wait for the primary, as one that was cloned from it while it was the standby."""
    with psycopg.connect(standby.conninfo(user="postgres", password="super"), autocommit=True) as connection:
        connection.execute(f"alter system set synchronous_standby_names = '{setting}'")  # type: ignore[call-overload]
        connection.execute("select pg_reload_conf()")
        ask = "select current_setting('synchronous_standby_names')"
        wait_for(lambda: connection.execute(ask).fetchone() == (setting,), "the standby has read it")


def one_kill(pair: Pair, written: threading.Event) -> None:
    old, heir = pair.primary(), other(pair)
    port, writer = pair.servers[heir].port, Writer(pair.application())
    with pair.watched(synchronous="standby"):
        wait_for(lambda: protected(pair), "commits wait")
        assert read_report(pair.stack(synchronous="standby")).found.setting == setting_of((heir, RECEIVER))
        with writer.running():
            wait_for(lambda: len(writer.acknowledged) > 50, "rows are written")
            inherit(pair.servers[heir], setting_of((old,)))
            for mark in processes_in(pair.servers[old].data_dir):
                mark.signal(signal.SIGKILL)
            incident = pair.ended()
            assert incident.state is State.DONE, incident.facts
            wait_for(lambda: writer.acknowledged[-1][2] == port, "writes go on before the old primary is back", 50)
            written.set()
            pair.rejoined(incident)
    assert writer.missing() == 0
    assert one_primary(pair) == heir


def test_a_commit_waits_for_whoever_is_away_until_a_person_ends_that(pair: Pair) -> None:
    """A standby that hangs is no dead primary: nothing is failed over; every commit waits, and none after `off`."""
    stack, standby = pair.stack(synchronous="standby"), pair.servers[other(pair)]
    wait_for(lambda: protected(pair), "commits wait")
    with pair.watched(synchronous="standby"):
        writer = Writer(pair.application())
        stopped = processes_in(standby.data_dir)
        with writer.running():
            wait_for(lambda: len(writer.acknowledged) > 10, "rows are written")
            for mark in stopped:
                mark.signal(signal.SIGSTOP)
            try:
                before = wait_for(lambda: halted(pair, writer), "a commit waits")
                assert turn_off(stack, datetime(2026, 11, 30, 3, 4, 5, tzinfo=UTC)).waiting == 1
                wait_for(lambda: len(writer.acknowledged) > before + 10, "commits wait no more")
                off = read_report(stack)
                assert (off.found.awaited, off.waiting) == ((), 0)
                assert "turned off at 2026-11-30 03:04:05 UTC" in unprotected(off.found)
            finally:
                for mark in stopped:
                    mark.signal(signal.SIGCONT)
                wait_for(lambda: turn_on(stack).found.awaited != (), "commits wait again")
        assert pair.ledger.incidents()[pair.incidents_before :] == ()
    wait_for(lambda: protected(pair), "commits wait for both")
    assert writer.missing() == 0


def test_a_commit_waits_for_the_repository(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A put begins when WAL arrives, not after a pause; while none succeeds, no commit is acknowledged."""
    wait_for(lambda: protected(pair), "commits wait")
    with monkeypatch.context() as at_once:
        at_once.setattr("synapse_ops.services.wal_receiver.uploader.RETRY_S", 3600.0)
        writer = Writer(pair.application())
        with writer.running():
            wait_for(lambda: len(writer.acknowledged) > 20, "rows are written")
    blocked, put = threading.Event(), ObjectStore.put_bytes

    def may_block(self: ObjectStore, key: str, data: bytes, **more: object) -> object:
        if blocked.is_set():
            raise Unreachable("the store is away")
        return put(self, key, data, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ObjectStore, "put_bytes", may_block)
    writer = Writer(pair.application())
    with writer.running():
        wait_for(lambda: len(writer.acknowledged) > 10, "rows are written")
        blocked.set()
        before = wait_for(lambda: halted(pair, writer), "a commit waits")
        blocked.clear()
        wait_for(lambda: len(writer.acknowledged) > before + 10, "commits go on")
    assert writer.missing() == 0


def test_a_role_whose_commits_do_not_wait_is_named(pair: Pair) -> None:
    """Nobody is told that all is safe while somebody's commits escape it."""
    stack = pair.stack(synchronous="standby")
    server = pair.servers[pair.primary()]
    with psycopg.connect(server.conninfo(user="postgres", password="super"), autocommit=True) as connection:
        connection.execute(f"alter role {APP_USER} in database {APP_DATABASE} set synchronous_commit = local")
        try:
            wait_for(lambda: protected(pair), "commits wait")
            row = next(row for row in check_wal(stack) if row.what == "synchronous_standby_names")
        finally:
            connection.execute(f"alter role {APP_USER} in database {APP_DATABASE} reset synchronous_commit")
    assert row.fault == f"commits of {APP_USER} in {APP_DATABASE} do not wait: synchronous_commit = local"
