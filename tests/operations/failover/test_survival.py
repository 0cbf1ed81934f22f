"""What a failover must survive: at most one server takes writes, and who cannot know does nothing."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from synapse_ops.domain.failover.incident import Entry, Incident
from synapse_ops.domain.failover.transitions import State
from synapse_ops.errors import SynapseOpsError, Unreachable
from synapse_ops.local.servers.databases import APP_USER
from synapse_ops.operations.failover.chain import Chain
from synapse_ops.operations.failover.ledger import Asked, Request
from synapse_ops.services.prober.failover_watch import FailoverWatch
from synapse_ops.systems.host.processes import START_TIMEOUT_S, processes_in
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.server import PgServer
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.operations.failover.pair import CutCable, Pair, Writer, made_pair, one_primary, wait_for

pytestmark = pytest.mark.scenario
STREAMS = "select count(*) from pg_stat_wal_receiver where status = 'streaming'"


@pytest.fixture(scope="module")
def pair(server_tools: PgTools, bucket: str, object_store_access: StoreAccess) -> Iterator[Pair]:
    """One pair for those tests that leave a primary with a standby that streams, in whichever roles."""
    with made_pair(server_tools, bucket, object_store_access, "survival") as found:
        yield found


@pytest.fixture
def own_pair(server_tools: PgTools, bucket: str, object_store_access: StoreAccess) -> Iterator[Pair]:
    """A pair for one test, which may leave it broken."""
    with made_pair(server_tools, bucket, object_store_access, "survival") as found:
        yield found


def signal_all(server: PgServer, number: signal.Signals) -> None:
    for mark in processes_in(server.data_dir):
        mark.signal(number)


def names(pair: Pair) -> tuple[str, str]:
    old = pair.primary()
    return old, next(name for name in pair.servers if name != old)


def ask(server: PgServer, query: str, database: str = "postgres") -> Any:
    conninfo = server.conninfo(database, "postgres", password="super")
    with psycopg.connect(conninfo, autocommit=True) as connection:
        found = connection.execute(query)  # type: ignore[call-overload]
        return found.fetchone()[0] if found.description else None


def new_incidents(pair: Pair) -> tuple[Incident, ...]:
    return pair.ledger.incidents()[pair.incidents_before :]


def test_blips_shorter_than_the_window_are_no_outage(pair: Pair) -> None:
    """Frozen for a second, five times, under a writer."""
    server, writer = pair.servers[pair.primary()], Writer(pair.application())
    with pair.watched() as watch, writer.running():
        for _ in range(5):
            rows = len(writer.acknowledged)
            signal_all(server, signal.SIGSTOP)
            threading.Event().wait(1.0)  # the blip itself
            signal_all(server, signal.SIGCONT)
            wait_for(lambda rows=rows: len(writer.acknowledged) > rows, "rows are written again")
        wait_for(lambda: watch.unarmed() == "", "it is armed as before")
        assert new_incidents(pair) == ()
    assert writer.missing() == 0


def test_a_crash_that_the_server_recovers_from_is_left_to_it(pair: Pair) -> None:
    """One killed backend ends every session; the server says that it recovers (57P03), and is alive."""
    server, writer = pair.servers[pair.primary()], Writer(pair.application())
    of_writer = f"select max(pid) from pg_stat_activity where usename = '{APP_USER}'"
    with pair.watched(primary_start_timeout="20s"), writer.running():
        wait_for(lambda: writer.acknowledged, "rows are written")
        for _ in range(3):
            victim = wait_for(lambda: ask(server, of_writer), "the writer's backend")
            mark = next(one for one in processes_in(server.data_dir) if one.pid == victim)
            mark.signal(signal.SIGKILL)
            rows = len(writer.acknowledged)  # what follows is written after the recovery, but for one on its way
            wait_for(lambda rows=rows: len(writer.acknowledged) > rows + 5, "rows are written again")
        assert new_incidents(pair) == ()
    assert writer.missing() == 0


@contextmanager
def cables(pair: Pair, old: str, heir: str) -> Iterator[Callable[[], None]]:
    """Have the watcher and the standby reach the primary through a cable each; yield what cuts both of them."""
    server, direct = pair.servers[old], pair.addresses[old]
    ours, theirs = CutCable(server.port), CutCable(server.port)
    through = ask(pair.servers[heir], "show primary_conninfo").replace(f"port={server.port}", f"port={theirs.port}")
    pair.addresses[old] = f"127.0.0.1:{ours.port}"

    def cut() -> None:
        ours.cut()
        theirs.cut()

    try:
        follow(pair.servers[heir], through)
        yield cut
    finally:
        ours.mend()
        theirs.mend()
        pair.addresses[old] = direct
        follow(pair.servers[heir], "")
        ours.close()
        theirs.close()


def test_a_primary_that_is_cut_off_from_us_and_its_standby_while_clients_write_is_alive(pair: Pair) -> None:
    """Nobody that we can ask hears it. Its WAL grows: it is not promoted over, and the status says why."""
    old, heir = names(pair)
    writer = Writer(pair.servers[old].conninfo(user="postgres", password="super", database="synapse", host="127.0.0.1"))
    with cables(pair, old, heir) as cut, pair.watched() as watch, writer.running():
        cut()
        wait_for(lambda: "goes on writing WAL" in str(watch._told["unarmed"]), "it is seen to write")
        wait_for(lambda: ask(pair.servers[heir], STREAMS) == 0, "the standby has given it up")
        rows = len(writer.acknowledged)
        wait_for(lambda: len(writer.acknowledged) > rows + 1500, "clients write for longer than any window")
        assert new_incidents(pair) == ()
    assert one_primary(pair) == old
    assert writer.missing() == 0


def test_a_host_that_is_gone_without_a_word_waits_for_a_person(pair: Pair) -> None:
    """No FIN, no RST, and nobody here has authority over it: not a byte says whether it lives, nobody is promoted."""
    old, heir = names(pair)
    with cables(pair, old, heir) as cut, pair.watched(armed=False, here=[heir]) as watch:
        wait_for(lambda: f"nothing on this host may fence {old}" in watch.unarmed(), "it says that it cannot act")
        cut()
        incident = pair.ended()
    assert incident.state is State.REFUSED
    reason, facts = incident.facts["reason"], incident.facts
    assert f"nothing on this host may fence {old} (primary at {facts['primary_lsn']}" in reason
    assert f"`synapse-ops failover fence-here --incident {incident.id} --node {old}" in reason
    assert one_primary(pair) == old


def follow(standby: PgServer, conninfo: str) -> None:
    """Have a standby stream by another address; empty: by its own."""
    value = (
        f"set primary_conninfo = '{conninfo.replace(chr(39), chr(39) * 2)}'" if conninfo else "reset primary_conninfo"
    )
    ask(standby, f"alter system {value}")
    ask(standby, "select pg_reload_conf()")
    wait_for(lambda: ask(standby, STREAMS) == 1, "it streams")


def test_a_standby_that_dies_in_the_middle_of_the_promotion_is_promoted_once_it_is_back(pair: Pair) -> None:
    """Whether it was promoted is not known then: the incident stays open, and nobody else is started."""
    old, heir = names(pair)
    server = pair.servers[heir]

    def kill(entry: Entry) -> None:
        if entry.state is State.PROMOTING:
            signal_all(server, signal.SIGKILL)

    with pair.watched(on_entry=kill):
        signal_all(pair.servers[old], signal.SIGKILL)
        wait_for(lambda: new_incidents(pair) and new_incidents(pair)[0].state is State.PROMOTING, "it promotes")
        wait_for(lambda: not processes_in(server.data_dir), "the standby is dead")
        server.start()
        incident = pair.ended()
        pair.rejoined(incident)
    assert one_primary(pair) == heir
    assert incident.facts["lost_commits"] == 0


def test_a_person_may_give_a_promotion_up_and_the_old_primary_takes_writes_again(own_pair: Pair) -> None:
    """The standby is gone for good; and the next outage can be failed over as any other."""
    pair = own_pair
    old, heir = names(pair)

    def kill(entry: Entry) -> None:
        if entry.state is State.PROMOTING:
            signal_all(pair.servers[heir], signal.SIGKILL)

    with pair.watched(on_entry=kill):
        signal_all(pair.servers[old], signal.SIGKILL)
        wait_for(lambda: new_incidents(pair) and new_incidents(pair)[0].state is State.PROMOTING, "it promotes")
        pair.ledger.ask(Request(datetime.now(UTC), Asked.ABANDON))
        incident = pair.ended()
    assert (incident.state, incident.facts["reason"]) == (
        State.UNPROVEN,
        f"a person gave it up: {heir} is gone; {old} was started again",
    )
    assert pair.servers[old].fence() is None
    pair.servers[heir].start()
    with pair.watched():
        signal_all(pair.servers[old], signal.SIGKILL)
        second = pair.ended()
        pair.rejoined(second)
    assert one_primary(pair) == heir


def test_a_stale_standby_that_is_back_first_is_not_promoted(own_pair: Pair) -> None:
    """Both were down. What it lacks is read from the dead primary's own WAL, and named."""
    pair = own_pair
    old, heir = names(pair)
    with pair.watched(max_lag_bytes="64KiB") as watch:
        pair.servers[heir].stop("fast")
        ask(
            pair.servers[old],
            "create table lost as select n, repeat(md5(n::text), 20) t from generate_series(1, 20000) n",
        )
        wait_for(lambda: f"{heir} does not answer" in watch.unarmed(), "the standby is missed")
        signal_all(pair.servers[old], signal.SIGKILL)
        wait_for(lambda: not processes_in(pair.servers[old].data_dir), "the primary is dead")
        pair.servers[heir].start()
        incident = pair.ended()
    assert incident.state is State.REFUSED
    assert "bytes behind" in incident.facts["reason"]
    assert "failover run --accept-loss" in incident.facts["reason"]
    assert ask(pair.servers[heir], "select pg_is_in_recovery()") is True


def test_a_standby_on_an_older_timeline_is_not_promoted(own_pair: Pair) -> None:
    """It missed the promotion that made the other one's timeline: what it lacks cannot be counted in bytes."""
    pair = own_pair
    old, heir = names(pair)
    standby = pair.servers[heir]
    ask(standby, "alter system set recovery_target_timeline = 'current'")
    standby.stop("fast")
    primary = pair.servers[old]
    primary.stop("fast")
    signal_file = primary.data_dir / "standby.signal"
    signal_file.touch()
    shutil.chown(signal_file, primary.data_dir.owner(), primary.data_dir.group())
    primary.start()
    ask(primary, "select pg_promote()")
    ask(primary, "checkpoint")
    standby.start()
    with pair.watched(armed=False) as watch:
        wait_for(lambda: watch._roles == (old, heir) and watch._saw_alive, "the primary is seen alive")
        assert watch.unarmed() != ""
        signal_all(primary, signal.SIGKILL)
        incident = pair.ended()
    assert incident.state is State.REFUSED
    assert incident.facts["reason"]
    assert ask(standby, "select pg_is_in_recovery()") is True
    assert ask(standby, "select timeline_id from pg_control_checkpoint()") == 1


def test_a_snapshot_that_is_held_on_the_standby_holds_no_promotion_up(pair: Pair) -> None:
    """It made a promotion take 30 s (F12): sessions of the standby are ended first."""
    old, heir = names(pair)
    conninfo = pair.servers[heir].conninfo(user="postgres", password="super", database="synapse")
    with psycopg.connect(pair.application(), autocommit=True) as connection:
        connection.execute("insert into ledger select -n from generate_series(1, 50) n")
    rows = "select count(*) from ledger where n < 0"
    wait_for(lambda: ask(pair.servers[heir], rows, "synapse") == 50, "the standby has the rows")
    ask(pair.servers[heir], "alter system set max_standby_streaming_delay = -1")
    ask(pair.servers[heir], "alter system set hot_standby_feedback = off")
    ask(pair.servers[heir], "select pg_reload_conf()")
    with closing(psycopg.connect(conninfo)) as held, pair.watched():
        held.execute("set transaction isolation level repeatable read")
        held.execute("select count(*) from ledger")
        with psycopg.connect(pair.application(), autocommit=True) as connection:
            connection.execute("delete from ledger where n < 0")
            connection.execute("vacuum ledger")  # its replay waits for the snapshot
        waits = "select pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()"
        wait_for(lambda: ask(pair.servers[heir], waits), "the replay waits")
        signal_all(pair.servers[old], signal.SIGKILL)
        incident = pair.ended()
        pair.rejoined(incident)
        with pytest.raises(psycopg.errors.AdminShutdown):
            held.execute("select 1")
    phases = incident.phases_s()
    assert phases["done"] < START_TIMEOUT_S
    assert incident.facts["lost_commits"] == 0
    ask(pair.servers[heir], "alter system reset all")
    ask(pair.servers[heir], "select pg_reload_conf()")


def test_two_watchers_carry_one_incident_out(pair: Pair) -> None:
    """Whoever holds the ledger does it; the other one finds it done."""
    old, heir = names(pair)
    stack = pair.stack()
    second = FailoverWatch(lambda: stack, pair.layout.root, pair.place())
    thread = threading.Thread(target=second.run, name="second")
    with pair.watched():
        thread.start()
        try:
            wait_for(lambda: second.unarmed() == "", "the second is armed as well")
            signal_all(pair.servers[old], signal.SIGKILL)
            pair.rejoined(pair.ended())
        finally:
            second.stop()
            thread.join()
    assert len(new_incidents(pair)) == 1
    assert one_primary(pair) == heir


@pytest.mark.parametrize("fault", ["away", "slow", "full"])
def test_without_a_claim_in_time_nothing_is_fenced(pair: Pair, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """A store that takes no claim, or takes it too late, confirms nothing; the old primary may simply be started."""
    old, heir = names(pair)
    put = ObjectStore.put_bytes

    def failing(self: ObjectStore, key: str, data: bytes, **more: Any) -> object:
        if not key.startswith("failover/"):
            return put(self, key, data, **more)
        if fault == "away":
            raise Unreachable("the store is away")
        if fault == "full":
            raise SynapseOpsError("the store is full")
        time.sleep(3.0)
        raise Unreachable("too late")

    monkeypatch.setattr(ObjectStore, "put_bytes", failing)
    with pair.watched():
        signal_all(pair.servers[old], signal.SIGKILL)
        incident = pair.ended()
        assert incident.state is State.REFUSED
        assert "store" in incident.facts["reason"]
        assert "`synapse-ops failover run` goes on" in incident.facts["reason"]
        assert pair.servers[old].fence() is None
        pair.servers[old].start()
        wait_for(lambda: ask(pair.servers[heir], "select count(*) from pg_stat_wal_receiver") == 1, "it streams again")
    assert one_primary(pair) == old


def test_a_third_outage_within_the_hour_waits_for_a_person(own_pair: Pair) -> None:
    """With `max_per_hour: 2`: the cause is not gone, and a person must look."""
    for _ in range(2):
        with own_pair.watched(max_per_hour=2):
            signal_all(own_pair.servers[own_pair.primary()], signal.SIGKILL)
            own_pair.rejoined(own_pair.ended())
    with own_pair.watched(max_per_hour=2, armed=False) as watch:
        wait_for(lambda: "max_per_hour" in watch.unarmed(), "it says that it would not act")
        signal_all(own_pair.servers[own_pair.primary()], signal.SIGKILL)
        incident = own_pair.ended()
    assert incident.state is State.REFUSED
    assert "failover.max_per_hour" in incident.facts["reason"]


def test_a_watcher_that_wakes_up_when_all_is_over_changes_nothing(own_pair: Pair) -> None:
    """Stopped before each of its effects, while another one finished, rejoined the old primary and switched back."""
    pair = own_pair
    old, heir = names(pair)
    chains: list[Chain] = []
    with pytest.MonkeyPatch.context() as patched, pair.watched():
        carry_on = Chain.carry_on
        patched.setattr(Chain, "carry_on", lambda self, one: (chains.append(self), carry_on(self, one))[1])
        signal_all(pair.servers[old], signal.SIGKILL)
        incident = pair.ended()
        pair.rejoined(incident)
        wait_for(lambda: pair.primary() == heir, "the roles are exchanged")
    with pair.watched():
        pair.ledger.ask(Request(datetime.now(UTC), Asked.SWITCHOVER))
        pair.rejoined(pair.ended())
    assert one_primary(pair) == old

    before = {name: standing(server) for name, server in pair.servers.items()}
    with ExitStack() as opened:
        sessions = [
            opened.enter_context(psycopg.connect(server.conninfo(user="postgres", password="super")))
            for server in pair.servers.values()
        ]
        late = chains[0]
        for number, entry in enumerate(incident.entries):
            if entry.state in {State.DONE, State.CONFIRMED}:
                continue
            asleep = Incident(incident.entries[: number + 1])
            with_effect = late.steps()[asleep.state]
            try:
                with_effect(asleep)
            except SynapseOpsError:
                continue
        for session in sessions:
            assert session.execute("select 1").fetchone() == (1,), "a session was ended"
    assert {name: standing(server) for name, server in pair.servers.items()} == before
    assert one_primary(pair) == old


def standing(server: PgServer) -> tuple[Any, ...]:
    """Return what a late effect might change: processes, marker, role, timeline, slots, settings."""
    return (
        server.mark(),
        server.fence(),
        ask(server, "select pg_is_in_recovery()"),
        ask(server, "select timeline_id from pg_control_checkpoint()"),
        ask(server, "select coalesce(array_agg(slot_name::text order by 1), '{}') from pg_replication_slots"),
        ask(server, "select coalesce(array_agg(name || setting order by 1), '{}') from pg_file_settings where applied"),
    )
