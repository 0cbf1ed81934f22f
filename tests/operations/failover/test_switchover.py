"""Switchover of real servers: nothing is lost, and what is not clean before the promotion is taken back."""

from __future__ import annotations

import itertools
import secrets
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import psycopg
import pytest

from synapse_ops.domain.failover.incident import Entry, Incident
from synapse_ops.domain.failover.transitions import State
from synapse_ops.local.servers.databases import REPLICATION_USER
from synapse_ops.operations.failover import switchover
from synapse_ops.operations.failover.ledger import Asked, Request
from synapse_ops.operations.failover.steering import switch_over
from synapse_ops.operations.health.server_probes import node_conninfo
from synapse_ops.systems.host.processes import START_TIMEOUT_S, processes_in
from synapse_ops.systems.postgres.handover import read_readiness
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.failover.pair import PASSWORDS, Pair, Writer, command_line, made_pair, one_primary, wait_for

pytestmark = pytest.mark.scenario
MOST_S = 15.0  # without writes, on a host that does much else; 1 s on a quiet one


@pytest.fixture(scope="module")
def pair(server_tools: PgTools, bucket: str, object_store_access: StoreAccess) -> Iterator[Pair]:
    """One pair for all tests: each leaves a primary with a standby that streams, in whichever roles."""
    with made_pair(server_tools, bucket, object_store_access, "switchover") as found:
        yield found


def ask(pair: Pair, *, end_sessions: bool = False) -> None:
    pair.ledger.ask(Request(datetime.now(UTC), Asked.SWITCHOVER, end_sessions=end_sessions))


def longest_pause_s(writer: Writer) -> float:
    times = [at for _, at, _ in writer.acknowledged]
    return max(later - earlier for earlier, later in itertools.pairwise(times))


def states(incident: Incident) -> list[State]:
    return [entry.state for entry in incident.entries]


@contextmanager
def frozen_receiver(pair: Pair, tools: PgTools) -> Iterator[None]:
    """Hold a WAL receiver of the primary that acknowledges nothing, as one whose store is away."""
    folder = pair.layout.root / secrets.token_hex(4)
    folder.mkdir()
    port = pair.servers[pair.primary()].port
    address = f"host=127.0.0.1 port={port} user={REPLICATION_USER} password={PASSWORDS.replication} sslmode=require"
    command = [str(tools.path("pg_receivewal")), "-D", str(folder), "-d", address, "--synchronous"]
    with subprocess.Popen(command, env=tools.environment()) as receiver:
        try:
            wait_for(lambda: list(folder.iterdir()), "it receives")
            receiver.send_signal(signal.SIGSTOP)
            yield
        finally:
            receiver.kill()


def test_nothing_is_lost_and_the_old_primary_follows(pair: Pair, server_tools: PgTools) -> None:
    """Under a writer, with a receiver that would hold the stop up; a second prober takes the stop for no death."""
    old = pair.primary()
    writer = Writer(pair.application())
    with pair.watched(), pair.watched(), frozen_receiver(pair, server_tools), writer.running():
        wait_for(lambda: len(writer.acknowledged) > 50, "rows are written")
        told: list[Entry] = []
        incident, back = switch_over(pair.layout.root, end_sessions=False, now=datetime.now(UTC), tell=told.append)
        port = pair.servers[incident.facts["new"]].port
        wait_for(lambda: writer.acknowledged[-1][2] == port, "writes go on")

    assert states(incident) == [entry.state for entry in told]
    assert states(incident) == [
        State.ASKED,
        State.STOPPING,
        State.PROMOTING,
        State.SWITCHING,
        State.VERIFYING,
        State.DONE,
    ]
    assert writer.missing() == 0
    assert longest_pause_s(writer) < MOST_S
    assert (incident.facts["lost_commits"], incident.facts["lost_bytes"]) == (0, 0)
    assert back["how"] == "started"
    assert one_primary(pair) == incident.facts["new"] != old
    assert pair.servers[old].fence() is None
    assert len(pair.ledger.incidents()) == pair.incidents_before + 1


def _nothing(pair: Pair, old: str, entry: Entry) -> None:
    del pair, old, entry


def _stop(pair: Pair, old: str, entry: Entry) -> None:
    pair.place().controls[old].stop_cleanly(entry.incident, pair.servers[old].control_timeline(), (), 30)


@pytest.mark.parametrize(
    ("last", "done_before", "end"),
    [
        (State.ASKED, _nothing, State.REFUSED),
        (State.STOPPING, _nothing, State.ROLLED_BACK),
        (State.STOPPING, _stop, State.ROLLED_BACK),
        (State.PROMOTING, _nothing, State.DONE),
    ],
    ids=["before anything", "before the stop", "after the stop", "before the promotion"],
)
def test_a_prober_that_dies_is_followed_by_one_that_rolls_back_or_goes_on(
    pair: Pair, last: State, done_before: Callable[[Pair, str, Entry], None], end: State
) -> None:
    """Back before the promotion was begun, forward after it; nothing acknowledged is lost either way."""

    class Died(OSError):
        pass

    def die(entry: Entry) -> None:
        if entry.state is last:
            watch.stop()
            done_before(pair, old, entry)
            raise Died

    old = pair.primary()
    writer = Writer(pair.application())
    with writer.running():
        wait_for(lambda: len(writer.acknowledged) > 20, "rows are written")
        with pair.watched(on_entry=die) as watch:
            ask(pair)
            wait_for(lambda: watch._stopping.is_set(), f"it died at {last}")
        before = pair.incidents_before
        with pair.watched(armed=False) as next_watch:
            pair.incidents_before = before
            incident = pair.ended()
            if end is State.DONE:
                pair.rejoined(incident)
            count = len(writer.acknowledged)
            wait_for(lambda: len(writer.acknowledged) > count + 20, "writes go on")
            wait_for(lambda: next_watch.unarmed() == "", "it is armed again")

    assert incident.state is end
    assert writer.missing() == 0
    assert (one_primary(pair) == old) is (end is not State.DONE)
    assert pair.servers[old].fence() is None
    assert len(pair.ledger.incidents()) == before + 1


@pytest.mark.parametrize(
    ("process", "reason"),
    [(b"walreceiver", "did not stop within 1 s"), (b"startup", "the standby has not got the last checkpoint")],
    ids=["nothing is received", "nothing is replayed"],
)
def test_a_stop_whose_end_the_standby_has_not_got_is_taken_back(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, process: bytes, reason: str
) -> None:
    """The old primary takes writes again, and a failover is possible as before."""
    monkeypatch.setattr(switchover, "STOP_LIMIT_S", 1.0)
    monkeypatch.setattr(switchover, "SETTLE_LIMIT_S", 1.0)
    old = pair.primary()
    standby = next(server for name, server in pair.servers.items() if name != old)
    frozen = []

    def freeze(entry: Entry) -> None:
        if entry.state is State.STOPPING:
            frozen.extend(mark for mark in processes_in(standby.data_dir) if process in command_line(mark.pid))
            for mark in frozen:
                mark.signal(signal.SIGSTOP)

    writer = Writer(pair.application())
    with pair.watched(on_entry=freeze) as watch, writer.running():
        wait_for(lambda: len(writer.acknowledged) > 20, "rows are written")
        ask(pair)
        incident = pair.ended()
        for mark in frozen:
            mark.signal(signal.SIGCONT)
        count = len(writer.acknowledged)
        wait_for(lambda: len(writer.acknowledged) > count + 20, "writes go on")
        wait_for(lambda: watch.unarmed() == "", "it is armed again")

    assert frozen
    assert incident.state is State.ROLLED_BACK
    assert reason in incident.facts["reason"]
    assert writer.missing() == 0
    assert one_primary(pair) == old
    assert len(pair.ledger.incidents()) == pair.incidents_before + 1


def test_without_a_standby_that_streams_nothing_is_stopped(pair: Pair) -> None:
    """The refusal says what the standby does; the primary goes on without a pause."""
    old = pair.primary()
    standby = next(server for name, server in pair.servers.items() if name != old)
    with pair.watched():
        standby.stop()
        mark = pair.servers[old].mark()
        ask(pair)
        incident = pair.ended()
        standby.start(START_TIMEOUT_S)

    assert states(incident) == [State.ASKED, State.REFUSED]
    assert f"{standby.data_dir.name} gave no answer" in incident.facts["reason"]
    assert pair.servers[old].mark() == mark
    assert pair.servers[old].fence() is None


def test_a_transaction_that_would_be_ended_is_found_on_either_node(pair: Pair) -> None:
    """By pid, user and application; its statement may hold secrets and is left out."""
    stack, old = pair.stack(), pair.primary()
    new = next(name for name in pair.servers if name != old)
    nodes = [(name, node_conninfo(stack, name)) for name in (old, new)]
    with (
        psycopg.connect(nodes[0][1], application_name="a report") as one,
        psycopg.connect(nodes[1][1], application_name="a report") as other,
    ):
        for connection in (one, other):
            connection.execute("select 'secret'")
        pids = [one.info.backend_pid, other.info.backend_pid]
        found = read_readiness(nodes[0], nodes[1], 0.0)

    reports = [(long.node, long.pid) for long in found.long_sessions if long.application == "a report"]
    assert reports == list(zip((old, new), pids, strict=True))
    assert "secret" not in str(found)
    assert (found.takes_writes, found.follows, found.receiver) == (True, True, "streaming")
