"""Failover of real servers: the dead primary is fenced before anybody is promoted, and what is lost is counted."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime

import psycopg
import pytest

from synapse_ops.domain.failover.evidence import SOFT_WINDOW_S
from synapse_ops.domain.failover.incident import Entry
from synapse_ops.domain.failover.transitions import State
from synapse_ops.operations.failover.ledger import Request
from synapse_ops.systems.host.processes import START_TIMEOUT_S, processes_in
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.server import PgServer
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.failover.pair import CutCable, Pair, Writer, command_line, made_pair, one_primary, wait_for

pytestmark = pytest.mark.scenario


@pytest.fixture(scope="module")
def pair(server_tools: PgTools, bucket: str, object_store_access: StoreAccess) -> Iterator[Pair]:
    """One pair for all tests: each leaves a primary with a standby that streams, in whichever roles."""
    with made_pair(server_tools, bucket, object_store_access, "failover") as found:
        yield found


def kill_all(server: PgServer) -> None:
    for mark in processes_in(server.data_dir):
        mark.signal(signal.SIGKILL)


def test_a_killed_primary_is_fenced_and_its_standby_takes_writes(pair: Pair) -> None:
    """What was acknowledged and is not there equals what the record says; the old primary comes back as a standby."""
    old = pair.primary()
    writer = Writer(pair.application())
    with pair.watched(), writer.running():
        wait_for(lambda: len(writer.acknowledged) > 50, "rows are written")
        kill_all(pair.servers[old])
        incident = pair.ended()
        back = pair.rejoined(incident)
        port = pair.servers[incident.facts["new"]].port
        wait_for(lambda: writer.acknowledged[-1][2] == port, "writes go on")

    assert [entry.state for entry in incident.entries] == [
        State.CONFIRMED,
        State.FENCING,
        State.FENCED,
        State.PROMOTING,
        State.SWITCHING,
        State.VERIFYING,
        State.DONE,
    ]
    facts = incident.facts
    assert (facts["old"], facts["verified_port"]) == (old, port)
    assert facts["new_timeline"] == facts["timeline"] + 1
    assert facts["cause"]["left"] == [0, 0]
    assert facts["effect"] == {"new_session": "nobody listens", "open_session": "the session was ended"}
    missing = writer.missing()
    assert facts["lost_commits"] in {missing, missing + 1}  # one may be on disk that was not acknowledged
    assert back["how"] == "rewound"
    assert one_primary(pair) == facts["new"]
    assert pair.servers[old].fence() is None


def test_an_orphan_that_goes_on_committing_is_ended_before_the_promotion(pair: Pair) -> None:
    """kill -9 of the postmaster alone: every probe fails, and a backend in a loop writes on. None of it is later."""
    old = pair.primary()
    server = pair.servers[old]
    with psycopg.connect(pair.application(), autocommit=True) as connection:
        connection.execute("create table if not exists late (at timestamptz)")
        connection.execute(
            "create or replace procedure write_on() language plpgsql as $$ begin"
            " for i in 1..100000000 loop insert into late values (clock_timestamp()); commit; end loop; end $$"
        )

    def loop() -> None:
        with suppress(psycopg.Error), psycopg.connect(pair.application(), autocommit=True) as connection:
            connection.execute("call write_on()")

    promoted_at: list[int] = []

    def note(entry: Entry) -> None:
        if entry.state is State.PROMOTING:
            promoted_at.append(len(processes_in(server.data_dir)))

    with pair.watched(on_entry=note, max_lag_bytes="1GiB"):
        thread = threading.Thread(target=loop)
        thread.start()
        wait_for(lambda: _count(pair, "late") > 100, "the loop writes")
        postmaster = server.mark()
        assert postmaster is not None
        postmaster.signal(signal.SIGKILL)
        incident = pair.ended()
        thread.join(60)
        pair.rejoined(incident)

    assert promoted_at == [0]
    assert incident.facts["cause"]["killed"] >= 1
    assert not thread.is_alive()


def _count(pair: Pair, table: str) -> int:
    with psycopg.connect(pair.application()) as connection:
        row = connection.execute(f"select count(*) from {table}").fetchone()  # type: ignore[arg-type]
    assert row is not None
    return int(row[0])


def test_a_frozen_primary_is_given_five_seconds_and_then_ended(pair: Pair) -> None:
    """SIGSTOP: nobody refuses and nobody answers. It must not wake up as a second primary."""
    old = pair.primary()
    with pair.watched():
        began_s = time.monotonic()
        frozen = processes_in(pair.servers[old].data_dir)
        for mark in frozen:
            mark.signal(signal.SIGSTOP)
        incident = pair.ended()
        confirmed_s = time.monotonic() - began_s
        pair.rejoined(incident)

    assert incident.facts["window_s"] == SOFT_WINDOW_S
    assert confirmed_s >= SOFT_WINDOW_S
    assert incident.facts["cause"]["killed"] >= len(frozen)
    assert one_primary(pair) == incident.facts["new"]


def test_a_primary_that_only_we_cannot_reach_is_left_alone(pair: Pair) -> None:
    """Its standby still hears it, and its clients write: no incident at all."""
    primary = pair.primary()
    cable = CutCable(pair.servers[primary].port)
    direct = dict(pair.addresses)
    pair.addresses[primary] = f"127.0.0.1:{cable.port}"
    writer = Writer(pair.application())
    try:
        with pair.watched() as watch, writer.running():
            cable.cut()
            wait_for(lambda: watch._watch.state is State.SUSPECT, "it suspects")
            end_s = time.monotonic() + 2 * SOFT_WINDOW_S
            before = len(writer.acknowledged)
            wait_for(lambda: time.monotonic() > end_s, "twice the window has passed")
            assert watch._watch.state is State.SUSPECT
            assert len(writer.acknowledged) > before
            cable.mend()
            wait_for(lambda: watch._watch.state is State.HEALTHY, "it is well again")
    finally:
        pair.addresses = direct
        cable.close()

    assert len(pair.ledger.incidents()) == pair.incidents_before
    assert one_primary(pair) == primary


def test_a_standby_that_is_too_far_behind_waits_for_a_person(pair: Pair) -> None:
    """What it lacks is named in bytes; with that accepted, the failover goes on and counts it."""
    old = pair.primary()
    standby = next(name for name in pair.servers if name != old)
    writer = Writer(pair.application())
    filler = "create table filler as select repeat(md5(n::text), 32) as t from generate_series(1, 24000) n"
    with pair.watched(max_lag_bytes="64KiB") as watch:
        receivers = [
            mark for mark in processes_in(pair.servers[standby].data_dir) if b"walreceiver" in command_line(mark.pid)
        ]
        for mark in receivers:
            mark.signal(signal.SIGSTOP)
        with psycopg.connect(pair.application(), autocommit=True) as connection:
            connection.execute(filler)  # 25 MB: more than the buffers on the way to the standby hold
        with writer.running():
            wait_for(lambda: len(writer.acknowledged) > 50, "rows are written behind it")
        kill_all(pair.servers[old])
        for mark in receivers:
            mark.signal(signal.SIGCONT)
        refused = pair.ended()
        assert refused.state is State.REFUSED
        assert "--accept-loss" in refused.facts["reason"]
        wait_for(lambda: watch._refused, "the watcher says that it waits for a person")
        pair.incidents_before += 1
        pair.ledger.ask(Request(datetime.now(UTC), accept_loss_bytes=1 << 30))
        incident = pair.ended()
        pair.rejoined(incident)

    missing = writer.missing()
    assert missing > 0
    assert incident.facts["lost_commits"] in {missing + 1, missing + 2}  # the filler; one that was not acknowledged


@pytest.mark.parametrize(
    "last", [State.CONFIRMED, State.FENCING, State.FENCED, State.PROMOTING, State.SWITCHING, State.VERIFYING]
)
def test_a_watcher_that_dies_after_any_entry_is_followed_by_another_that_goes_on(pair: Pair, last: State) -> None:
    """The entry is on disk, its effect is not done: whoever comes next does it, once."""

    class Died(OSError):
        pass

    def die(entry: Entry) -> None:
        if entry.state is last:
            watch.stop()
            raise Died

    old = pair.primary()
    with pair.watched(on_entry=die) as watch:
        kill_all(pair.servers[old])
        wait_for(lambda: watch._stopping.is_set(), f"it died at {last}")
    before = pair.incidents_before
    with pair.watched(armed=False):
        pair.incidents_before = before
        incident = pair.ended()
        pair.rejoined(incident)

    assert [entry.state for entry in incident.entries].count(last) == 1
    assert len(pair.ledger.incidents()) == before + 1
    assert one_primary(pair) == incident.facts["new"] != old


def test_a_second_outage_within_the_cool_down_waits_for_a_person(pair: Pair) -> None:
    """The refusal stands until the primary shows life again; nothing is fenced."""
    if not pair.ledger.incidents():  # another worker has the tests before this one
        with pair.watched():
            kill_all(pair.servers[pair.primary()])
            pair.rejoined(pair.ended())
    old = pair.primary()
    with pair.watched(armed=False, cool_down="30m") as watch:
        wait_for(lambda: "cool_down" in watch.unarmed(), "it says why it is not armed")
        kill_all(pair.servers[old])
        refused = pair.ended()
        assert refused.state is State.REFUSED
        assert "failover.cool_down is 30 min; `synapse-ops failover run` goes on" in refused.facts["reason"]
        assert pair.servers[old].fence() is None
        pair.servers[old].start(START_TIMEOUT_S)
        wait_for(lambda: watch._watch.state is State.HEALTHY, "it is well again")

    assert one_primary(pair) == old
