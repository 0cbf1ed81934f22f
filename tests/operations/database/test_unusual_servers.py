"""A server that lacks what every new one has, and a database whose rows only fit in one order and one time zone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_ops.operations.backup_kinds import DUMPS
from synapse_ops.operations.database import archive_restore
from synapse_ops.operations.database.dump import DumpReport, dump_database
from synapse_ops.operations.database.restore import apply_restore, plan_restore
from synapse_ops.operations.database.restore_target import ServerTarget
from synapse_ops.operations.stack import Stack
from synapse_ops.systems.postgres.connection import connect
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.database.backups import make_stack
from tests.servers import PostgresServer, running_postgres

NAME = "odd"
# A role that granted memberships and became a superuser later is named most often as a grantor.
ROLES = """
alter role postgres rename to keeper;
create role granter;
create role reader; create role a; create role b; create role c;
grant reader to granter with admin option;
set role granter;
grant reader to a, b, c;
reset role;
alter role granter superuser;
"""
# Two larger tables keep two jobs busy before the limits are there; one job follows the order of the names.
CONTENT = """
drop schema public;
drop extension plpgsql;
create schema s;
create table s.a_limits (largest int);
insert into s.a_limits values (50000);
create function s.is_allowed(n int) returns bool language sql as 'select n <= largest from s.a_limits';
create table s.b_checked (n int check (coalesce(s.is_allowed(n), false)));
insert into s.b_checked select generate_series(1, 2000);
create table s.c_large (n int, filler text);
insert into s.c_large select n, repeat('x', 100) from generate_series(1, 5000) n;
alter database odd set timezone = 'Europe/Berlin';
set timezone = 'Europe/Berlin';
create table s.midnights (at timestamptz check (date_trunc('day', at) = at));
insert into s.midnights values ('2026-07-01 00:00');
"""


@pytest.fixture(scope="module")
def odd_server(server_tools: PgTools) -> Iterator[PostgresServer]:
    """No database `postgres`, a `template1` that lets nobody in, and a bootstrap superuser of another name."""
    with running_postgres(server_tools) as server:
        for statement in (
            f"create database {NAME} template template0",
            "alter database template1 allow_connections off",
        ):
            server.execute(statement)
        server.execute("create role renaming superuser login password 'tests-only'")
        with connect(server.conninfo(NAME, "renaming")) as connection:
            connection.execute(ROLES)
        with connect(server.conninfo(NAME, "keeper")) as connection:
            connection.execute("drop database postgres")
            connection.execute(CONTENT)
        yield server


@pytest.fixture(scope="module")
def stack(
    odd_server: PostgresServer, bucket: str, object_store_access: StoreAccess, tmp_path_factory: pytest.TempPathFactory
) -> Stack:
    folder = tmp_path_factory.mktemp("odd")
    conninfo = odd_server.conninfo(NAME, "keeper")
    return make_stack(folder, conninfo, f"{bucket}{folder.name}/database/", object_store_access)


@pytest.fixture(scope="module")
def taken(stack: Stack) -> DumpReport:
    return dump_database(stack, NAME)


def test_a_server_without_the_usual_objects_is_backed_up_and_proven(
    taken: DumpReport, stack: Stack, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a new database has and its source dropped is dropped from the copy; one job restores what two do not.

    Its settings are there before its rows, as with pg_restore --create.
    """
    monkeypatch.setattr(archive_restore, "jobs_for_this_host", lambda: 2)

    proof = DUMPS.prove(stack.database_repository(), work_dir=work_dir)

    assert taken.record.source.bootstrap_role == "keeper"
    assert proof is not None
    assert proof.is_proven, proof.record


def test_a_server_without_the_usual_databases_takes_a_restore(
    taken: DumpReport, stack: Stack, work_dir: Path, odd_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restore connects to the database of the backup's own name where there is no other."""
    monkeypatch.setattr(archive_restore, "jobs_for_this_host", lambda: 2)
    repository = stack.database_repository()
    target = ServerTarget(odd_server.conninfo("postgres", "keeper"), "copy")

    apply_restore(repository, plan_restore(repository, taken.place, target), work_dir=work_dir)

    with connect(odd_server.conninfo("copy", "keeper")) as connection:
        assert connection.execute("select count(*) from s.b_checked").fetchone() == (2000,)
