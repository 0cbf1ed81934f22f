"""A throwaway server is inert while it lives and gone when its owner is, and nobody else's is ever touched."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from synapse_ops.domain.backup.proof_record import Verdict
from synapse_ops.errors import Unproven
from synapse_ops.operations.backup.deadline import Deadline
from synapse_ops.operations.backup.throwaway_directory import sweep_throwaways, throwaway_directory
from synapse_ops.operations.backup_kinds import DUMPS
from synapse_ops.operations.database.throwaway_server import Throwaway, throwaway_server
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.host.processes import processes_in
from synapse_ops.systems.postgres.programs import find_pg_tools
from synapse_ops.systems.postgres.server import PgServer
from tests.operations.database.backups import KeptBackup
from tests.servers import PostgresServer

READY_DEADLINE_S = 60.0
GONE_DEADLINE_S = 20.0
LEFT_AFTER_INIT_S, KILLED_WITHIN_S, SLEEP_S = 15.0, 25.0, 40.0

OWNER = """
import sys, time
from pathlib import Path
from tests.operations.database.test_throwaway_server import running_throwaway
with running_throwaway(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(600)
"""

# Each of these would betray a copy that is not inert: it runs code, reads only, loads a library, or ends our queries.
HOSTILE = """
create function shop.refuses() returns event_trigger language plpgsql
    as 'begin if inet_server_addr() is null then raise exception ''an event trigger fired''; end if; end';
create event trigger on_end on ddl_command_end execute function shop.refuses();
create event trigger on_login on login execute function shop.refuses();
alter event trigger on_login enable always;
do $$ begin execute format('alter database %I set session_preload_libraries = auto_explain', current_database());
execute format('alter database %I set search_path = nowhere', current_database());
execute format('alter database %I set statement_timeout = 20000', current_database()); end $$;
create publication everything for all tables;
create subscription far_away connection 'host=192.0.2.1 dbname=x connect_timeout=1' publication p
    with (connect = false, slot_name = none);
create extension postgres_fdw;
create server elsewhere foreign data wrapper postgres_fdw options (host '192.0.2.1');
create user mapping for current_user server elsewhere options (user 'u', password 'not-shown');
create foreign table shop.far (id int) server elsewhere;
"""


@contextlib.contextmanager
def running_throwaway(work_dir: Path, deadline: Deadline | None = None) -> Iterator[Throwaway]:
    with (
        throwaway_directory(work_dir, database_size_bytes=0, scratch_bytes=0) as directory,
        throwaway_server(
            directory,
            tools=find_pg_tools(17),
            superuser="keeper",
            database_size_bytes=0,
            deadline=deadline or Deadline(60, "test"),
        ) as throwaway,
    ):
        yield throwaway


def start_owner(work_dir: Path) -> subprocess.Popen[str]:
    """Start a process that owns a throwaway until it is killed."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(work_dir)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    return owner


def wait_until(claim: Callable[[], bool], deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while not claim():
        assert time.monotonic() < end, "not within the deadline"
        time.sleep(0.05)


def test_a_throwaway_offers_nothing_to_the_network_and_leaves_nothing_behind(work_dir: Path) -> None:
    """Its settings are its own; afterwards neither files nor processes nor a socket directory are left."""
    wanted = {
        "listen_addresses": "",
        "archive_mode": "off",
        "max_wal_senders": "0",
        "max_replication_slots": "0",
        "max_logical_replication_workers": "0",
        "shared_preload_libraries": "",
        "event_triggers": "off",
        "autovacuum": "off",
        "data_checksums": "on",
    }

    with running_throwaway(work_dir) as throwaway:
        data_dir, socket_dir = throwaway.server.data_dir, throwaway.server.socket_dir
        with psycopg.connect(throwaway.conninfo("postgres")) as connection:
            found = {name: connection.execute(f"show {name}").fetchone()[0] for name in wanted}  # type: ignore[index]

    assert found == wanted
    assert not processes_in(data_dir)
    assert not socket_dir.exists()


def test_what_a_throwaway_runs_cannot_call_out(work_dir: Path, postgres_server: PostgresServer) -> None:
    """As root its network is empty: not even a server on loopback can be reached from inside."""
    with running_throwaway(work_dir) as throwaway:
        if not throwaway.is_isolated:
            pytest.skip("network namespaces need root")
        with psycopg.connect(throwaway.conninfo("postgres")) as connection:
            connection.execute("create extension dblink")
            with pytest.raises(psycopg.OperationalError, match="could not establish connection"):
                connection.execute("select dblink_connect(%s)", [postgres_server.conninfo()])


@pytest.mark.scenario
def test_a_throwaway_is_killed_at_its_deadline_however_long_it_took_to_start(
    work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What initdb takes comes off the time of the queries, so no query outlasts the deadline."""
    init = PgServer.init

    class Deadline60(Deadline):
        def spend_all_but(self, left_s: float) -> None:
            self._ends_at = time.monotonic() + left_s

    deadline = Deadline60(60, "test")

    def slow_init(server: PgServer, *arguments: Any, **options: Any) -> None:
        init(server, *arguments, **options)
        deadline.spend_all_but(LEFT_AFTER_INIT_S)

    monkeypatch.setattr(PgServer, "init", slow_init)
    with running_throwaway(work_dir, deadline) as throwaway, psycopg.connect(throwaway.conninfo("postgres")) as session:
        began = time.monotonic()
        with pytest.raises(psycopg.OperationalError):
            session.execute("select pg_sleep(%s)", [SLEEP_S])
        assert time.monotonic() - began < KILLED_WITHIN_S
        assert deadline.has_passed()


def test_a_hostile_backup_is_restored_inert_and_still_compared_exactly(
    take_backup: Callable[..., KeptBackup], repository: Repository, work_dir: Path, postgres_server: PostgresServer
) -> None:
    """Event triggers do not fire, nothing is contacted, and settings of the source do not reach our sessions."""
    place = take_backup(HOSTILE).put(repository)
    postgres_server.execute("drop subscription far_away", place.subject)

    report = DUMPS.prove(repository, work_dir=work_dir, timeout_s=90)

    assert report is not None
    assert (report.record.reason, report.record.differences) == ("", ())
    assert report.record.verdict is Verdict.PROVEN


def test_a_killed_owner_takes_its_server_along_and_a_later_run_removes_the_rest(work_dir: Path) -> None:
    """kill -9 leaves files at most, which the next sweep finds by the lock that the kernel has released."""
    owner = start_owner(work_dir)
    [directory] = [path for path in work_dir.glob("throwaway-*") if path.is_dir()]
    assert processes_in(directory / "data")

    owner.send_signal(signal.SIGKILL)
    owner.wait()

    wait_until(lambda: not processes_in(directory / "data"), GONE_DEADLINE_S)
    assert sweep_throwaways(work_dir) == (directory.name,)


def test_a_living_owner_is_never_swept(work_dir: Path) -> None:
    """A proof that runs beside another leaves it alone, whatever its age."""
    owner = start_owner(work_dir)
    try:
        [directory] = [path for path in work_dir.glob("throwaway-*") if path.is_dir()]

        assert sweep_throwaways(work_dir) == ()
        assert processes_in(directory / "data")
    finally:
        owner.kill()
        owner.wait()
        sweep_throwaways(work_dir)


@pytest.mark.parametrize("stage", ["claimed", "made"])
def test_an_owner_killed_at_any_step_leaves_nothing_that_a_sweep_does_not_remove(stage: str, work_dir: Path) -> None:
    """The owner file comes first and goes last, so every step in between is found by it."""
    (work_dir / "throwaway-0123456789ab.owner").touch()
    if stage == "made":
        (work_dir / "throwaway-0123456789ab" / "data.making" / "base").mkdir(parents=True)

    assert sweep_throwaways(work_dir) == ("throwaway-0123456789ab",)
    assert list(work_dir.glob("throwaway-*")) == []


def test_what_is_not_a_throwaway_is_never_removed(tmp_path: Path) -> None:
    """A directory without an owner file is not ours, whatever its name; a link is not followed."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    (tmp_path / "throwaway-without-owner").mkdir()
    (tmp_path / "throwaway-aaaaaaaaaaaa").symlink_to(precious)
    (tmp_path / "throwaway-aaaaaaaaaaaa.owner").touch()

    sweep_throwaways(tmp_path)

    assert (precious / "file").read_text() == "kept"
    assert (tmp_path / "throwaway-without-owner").is_dir()
    shutil.rmtree(tmp_path)


def test_a_full_disk_is_told_before_anything_is_made(work_dir: Path) -> None:
    """Both numbers are given, and it is unproven: room may come."""
    free = shutil.disk_usage(work_dir).free

    with (
        pytest.raises(Unproven, match="MiB free"),
        throwaway_directory(work_dir, database_size_bytes=free, scratch_bytes=0),
    ):
        pass

    assert list(work_dir.glob("throwaway-*")) == []
