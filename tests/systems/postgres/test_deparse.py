"""PostgreSQL's printed definitions are no fixed point: a restored copy prints the same meaning in other words.

One database has every form of object that holds an expression; `copy` is what pg_dump and pg_restore make of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from synapse_ops.domain.database.structure import Structure, compare, kind_of
from synapse_ops.systems.host.processes import run_as
from synapse_ops.systems.postgres.connection import connect
from synapse_ops.systems.postgres.deparse import Deparser, same_definitions
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.structure import read_structure, structure_seen_by
from tests.servers import PostgresServer

SOURCE, COPY = "deparse_source", "deparse_copy"
TIMEOUT_S = 120.0
# `between ... and` nests an AND in an AND, and IN over varchar casts an array: both are printed differently once read.
BETWEEN = "a between 1 and 5 and b > 0"
LISTED = "c in ('x', 'y')"
FORMS = f"""
create table r (a int, b int, c varchar(5), d bool default (1 between 0 and 2 and true),
  constraint listed check ({LISTED}), constraint ranged check ({BETWEEN}), check (r.* is distinct from null
  or {BETWEEN}));
create table "odd "" name" ("DEFAULT 1" int default 1, g bool generated always as ("DEFAULT 1" between 1 and 5
  and "DEFAULT 1" > 0) stored, c varchar(5) not null default 'x');
create table kept_out (a int, b int, exclude using btree (a with =) where ({BETWEEN}));
create domain ranged as int default (case when 1 between 0 and 2 and true then 1 end)
  check (value between 1 and 5 and value > 0);
create index on r (a) where {BETWEEN};
create unique index "i ""1"" x" on r ((case when {LISTED} then a end), b desc) include (c);
alter table r enable row level security;
create policy p on r using (a between 1 and 5 and exists (select from r x where x.a = r.b and {LISTED}))
  with check ({BETWEEN});
create rule kept as on update to r where new.a between 1 and 5 and new.b > 0 do also select old.a where old.b > 0;
create function f() returns trigger language plpgsql as 'begin return new; end';
create trigger t before update on r for each row when (new.a between 1 and 5 and old.b > 0) execute function f('%');
create constraint trigger ct after update on r for each row when (new.a between 1 and 5 and old.b > 0)
  execute function f();
create view v with (check_option = local) as select a, case when {BETWEEN} then 1 end as n from r
  where {LISTED} and {BETWEEN};
create view grouped as select a, count(*) filter (where {BETWEEN}) from r group by a, b, c having {BETWEEN};
create view joined as select r.a from r join r r2 on r.a between 1 and 5 and r2.b > 0;
create view u as select a, n from (select a, b as n from r union all select a, null from kept_out) q;
create materialized view m as select a from r where {BETWEEN} with no data;
create index on m (a) where a between 1 and 5 and a > 0;
create function sqlbody(x int, y bool default (1 between 0 and 2 and true)) returns bool language sql
  begin atomic select x between 1 and 5 and x > 0; end;
create procedure sqlproc(x int) language sql
  begin atomic insert into r select x, x where x between 1 and 5 and x > 0; end;
create publication pub for table r where ({BETWEEN});
create statistics s on ({LISTED}), a from r;
create table parted (a int, b int, c varchar(5)) partition by range ((case when {BETWEEN} then a end));
create table part partition of parted for values from (0) to (10);
create trigger t before insert on parted for each row when (new.a between 1 and 5 and new.b > 0) execute function f();
alter table parted add constraint ranged check ({BETWEEN});
alter table r add constraint later check (b between 1 and 5 and b > 1) not valid;
create function never() returns event_trigger language plpgsql as $$ begin raise 'it ran'; end $$;
"""
EVENT_TRIGGER = "create event trigger never on ddl_command_start execute function never()"


@pytest.fixture(scope="module")
def databases(
    postgres_server: PostgresServer, server_tools: PgTools, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """Conninfos of a database with every form, and of its copy by pg_dump and pg_restore."""
    for name in (SOURCE, COPY):
        postgres_server.execute(f"create database {name} template template0")
    source, copy = postgres_server.conninfo(SOURCE), postgres_server.conninfo(COPY)
    postgres_server.execute(FORMS, SOURCE)
    postgres_server.execute(EVENT_TRIGGER, SOURCE)
    archive, environment = tmp_path_factory.mktemp("deparse") / "all.dump", server_tools.environment()
    dump = [server_tools.path("pg_dump"), "-Fc", "--file", archive, "--dbname", source]
    run_as(None, dump, timeout_s=TIMEOUT_S, env=environment)
    restore = [server_tools.path("pg_restore"), "--exit-on-error", "--dbname", copy, archive]
    run_as(None, restore, timeout_s=TIMEOUT_S, env=environment)
    yield source, copy
    for name in (SOURCE, COPY):
        postgres_server.execute(f"drop database {name} with (force)")


def differences(source: Structure, copy: str) -> tuple[str, ...]:
    with same_definitions(copy) as is_same:
        return compare(source, read_structure(copy), is_same=is_same)


def test_a_sound_copy_has_no_difference_in_any_form_of_expression(databases: tuple[str, str]) -> None:
    """Each text that differs is made, printed again until it settles, and compared with the copy's."""
    source, copy = databases

    assert differences(read_structure(source), copy) == ()


def test_every_kind_of_object_that_holds_an_expression_is_among_those_printed_differently(
    databases: tuple[str, str],
) -> None:
    """What the test above rests on: without asking the server, each kind is a difference."""
    source, copy = databases
    plain = compare(read_structure(source), read_structure(copy))

    assert {kind_of(line) for line in plain} == {
        *("table", "constraint", "domain", "index", "policy", "rule", "trigger", "view", "materialized view"),
        *("function", "procedure", "publication", "statistics"),
    }


CHANGES = """
alter table r drop constraint ranged, add constraint ranged check (a between 1 and 5 and b > 1)

alter table kept_out drop constraint kept_out_a_excl, add constraint kept_out_a_excl exclude using btree (a with =)
  where (a between 1 and 6 and b > 0)

alter domain ranged set default (case when 1 between 0 and 3 and true then 1 end)

alter domain ranged drop constraint ranged_check; alter domain ranged add constraint ranged_check check (value between
  1 and 6 and value > 0)

alter table r alter d set default (1 between 0 and 3 and true)

drop index r_a_idx; create index r_a_idx on r (a) where a between 1 and 6 and b > 0

drop index r_a_idx; create index r_a_idx on r (b) where a between 1 and 5 and b > 0

alter policy p on r with check (a between 1 and 5 and b > 1)

alter policy p on r using (a between 1 and 5)

create or replace rule kept as on update to r where new.a between 1 and 5 and new.b > 1 do also select old.a where
  old.b > 0

create or replace trigger t before update on r for each row when (new.a between 1 and 6 and old.b > 0) execute
  function f('%')

create or replace view v with (check_option = local) as select a, case when a between 1 and 5 and b > 0 then 1 end as
  n from r where c in ('x', 'z')

create or replace function sqlbody(x int, y bool default (1 between 0 and 3 and true)) returns bool language sql begin
  atomic select x between 1 and 5 and x > 0; end

alter publication pub set table r where (a between 1 and 6 and b > 0)

drop statistics s; create statistics s on (c in ('x', 'z')), a from r
"""


@pytest.mark.parametrize("change", CHANGES.strip().split("\n\n"))
def test_a_change_of_meaning_is_a_difference(databases: tuple[str, str], change: str) -> None:
    """The same two printings name what really changed, in each form."""
    source, copy = databases
    with connect(copy) as connection, connection.transaction(force_rollback=True):
        connection.execute("set local search_path = public")
        connection.execute(change.encode())
        connection.execute("set local search_path = ''")
        found = compare(read_structure(source), structure_seen_by(connection), is_same=Deparser(connection).is_same)

    assert found


def test_a_recorded_text_runs_as_one_statement(databases: tuple[str, str]) -> None:
    """What a document says is SQL of one object; a second statement behind it is refused, not executed."""
    _, copy = databases
    with same_definitions(copy) as is_same:
        assert not is_same("view: public.v", "definition", "select 1; drop table public.r", "select 1")

    with psycopg.connect(copy) as connection:
        assert connection.execute("select to_regclass('public.r') is not null").fetchone() == (True,)


def test_asking_leaves_nothing_in_the_copy(databases: tuple[str, str]) -> None:
    """Scratch objects live in a transaction that is rolled back; an event trigger of the copy never sees them."""
    source, copy = databases
    before = read_structure(copy)

    differences(read_structure(source), copy)

    assert read_structure(copy) == before
