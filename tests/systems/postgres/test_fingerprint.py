"""The change of one row, sequence value, large object or its access is seen in the fingerprint and named."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from synapse_ops.domain.database.fingerprint import Fingerprint, compare
from synapse_ops.systems.postgres.fingerprint import read_fingerprint
from tests.rich_database import CONTENT_LOSSES
from tests.servers import PostgresServer


@pytest.fixture(scope="module")
def whole(postgres_server: PostgresServer, rich_name: str) -> Fingerprint:
    return read_fingerprint(postgres_server.conninfo(rich_name))


@pytest.mark.parametrize(("statement", "difference"), CONTENT_LOSSES)
def test_every_change_of_content_is_named(
    fresh_database: Callable[..., str], rich_name: str, whole: Fingerprint, statement: str, difference: str
) -> None:
    """One change to a copy of the database is reported as exactly that change."""
    copy = fresh_database(template=rich_name)
    with psycopg.connect(copy, autocommit=True) as connection:
        connection.execute(statement)

    assert compare(whole, read_fingerprint(copy, workers=1)) == (difference,)


def test_foreign_tables_are_skipped_by_name_and_nothing_else(whole: Fingerprint) -> None:
    """What is not counted is named with the reason; unlogged, empty and column-less tables are counted."""
    assert whole.skipped == {"app.remote": "foreign table"}
    assert whole.tables["app.scratch"].rows == 1
    assert whole.tables["app.quiet"].rows == 1
    assert whole.tables["app.mother"].rows == 0
    assert "app.parted" not in whole.tables


# Values that PostgreSQL calls equal, or gives equal hashes, and that differ in what is stored.
EQUAL_BUT_DIFFERENT = [
    ("numeric", "1.0", "1.00"),
    ("numeric[]", "{1.0}", "{1.00}"),
    ("float8", "0", "-0"),
    ("float4", "0", "-0"),
    ("interval", "1 mon", "30 days"),
    ("int[]", "{1,2}", "{{1,2}}"),
    ("int[]", "[2:2]={1}", "{1}"),
    ("jsonb", '{"a": 1.0}', '{"a": 1.00}'),
    ("numrange", "[1.0,2]", "[1.00,2]"),
    ("json", '{"a":1}', '{"a": 1}'),
    ("xml", "<a/>", "<a></a>"),
    ("citext", "Ab", "aB"),
    ("bpchar", "a", "a "),
    ("point", "(1,2)", "(2,1)"),
    ("circle", "<(0,0),1>", "<(5,5),1>"),
    ("box", "(1,1),(0,0)", "(2,2),(1,1)"),
    ("tsvector", "a:1", "a:2"),
    ("tsquery", "a & b", "b & a"),
    ("bit(4)", "1010", "1011"),
    ("varbit", "10", "100"),
    ("money", "1.00", "1.01"),
    ("shade", "light", "dark"),
    ("shade[]", "{light}", "{dark}"),
    ("regclass", "pg_class", "pg_type"),
    ("duo", '(1.0,"x")', '(1.00,"x")'),
    ("duo[]", '{"(1.0,x)"}', '{"(1.00,x)"}'),
    ("price", "1.0", "1.00"),
    ("aclitem", "postgres=r/postgres", "postgres=w/postgres"),
    ("jsonpath", "$.a", "$.b"),
    ("inet", "10.0.0.1/8", "10.0.0.1/9"),
    ("timetz", "12:00+00", "13:00+01"),
    ("refcursor", "a", "b"),
]


def test_values_that_are_equal_but_not_the_same_are_told_apart(fresh_database: Callable[..., str]) -> None:
    """The fingerprint tells apart what a dump tells apart, where PostgreSQL's equality does not."""
    conninfo = fresh_database()
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(
            "CREATE EXTENSION citext;"
            "CREATE TYPE shade AS ENUM ('light', 'dark'); CREATE TYPE duo AS (n numeric, t text);"
            "CREATE DOMAIN price AS numeric"
        )
        for number, (type_name, one, other) in enumerate(EQUAL_BUT_DIFFERENT):
            for suffix, value in (("a", one), ("b", other)):
                connection.execute(f"CREATE TABLE t{number}{suffix} (v {type_name})")  # type: ignore[arg-type]
                connection.execute(f"INSERT INTO t{number}{suffix} VALUES (%s)", [value])  # type: ignore[arg-type]

    tables = read_fingerprint(conninfo).tables

    same = [
        EQUAL_BUT_DIFFERENT[number]
        for number in range(len(EQUAL_BUT_DIFFERENT))
        if tables[f"public.t{number}a"] == tables[f"public.t{number}b"]
    ]
    assert same == []


TWO_ROWS = {
    "chain": ("int, text", "({0}, 'a{1}')"),
    "record": ("bool, date, bytea", "({0} % 2 = 0, date '2026-01-01' + {0}, '\\x{1:04x}')"),
    "both": ("int, bytea, timestamptz", "({0}, '\\x{1:04x}', to_timestamp({1}))"),
}


@pytest.mark.parametrize("kind", sorted(TWO_ROWS))
def test_two_rows_that_exchange_a_value_are_told_apart(fresh_database: Callable[..., str], kind: str) -> None:
    """Sums over rows see only what a row mixes: an exchange leaves a sum of sums as it was. Fifty pairs, no luck."""
    types, values = TWO_ROWS[kind]
    conninfo = fresh_database()
    columns = ", ".join(f"c{number} {name}" for number, name in enumerate(types.split(", ")))
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for pair in range(50):
            first, second = 4 * pair, 4 * pair + 3
            for name, rows in {
                "a": ((first, first), (second, second)),
                "b": ((first, second), (second, first)),
            }.items():
                connection.execute(f"CREATE TABLE t{pair}{name} ({columns})")  # type: ignore[arg-type]
                for row in rows:
                    connection.execute(f"INSERT INTO t{pair}{name} VALUES {values.format(*row)}")  # type: ignore[arg-type]

    tables = read_fingerprint(conninfo).tables
    same = [pair for pair in range(50) if tables[f"public.t{pair}a"] == tables[f"public.t{pair}b"]]
    assert same == []


def test_a_table_of_as_many_columns_as_there_can_be_is_hashed(fresh_database: Callable[..., str]) -> None:
    """1,600 columns stay within the server's max_stack_depth, and the last one counts."""
    conninfo, found = fresh_database(), []
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE wide ({', '.join(f'c{number} int' for number in range(1600))})")  # type: ignore[arg-type]
        for value in (1, 2):
            connection.execute("TRUNCATE wide")
            connection.execute("INSERT INTO wide (c0, c1599) VALUES (1, %s)", [value])
            found.append(read_fingerprint(conninfo).tables["public.wide"])

    assert found[0] != found[1]


def test_a_null_differs_from_an_empty_text_and_columns_do_not_run_together(fresh_database: Callable[..., str]) -> None:
    """('ab', 'c') is not ('a', 'bc'), and NULL is not ''."""
    conninfo = fresh_database()
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for name, row in {"a": "('ab', 'c')", "b": "('a', 'bc')", "c": "('', '')", "d": "('', NULL)"}.items():
            connection.execute(f"CREATE TABLE {name} (x varchar, y varchar)")  # type: ignore[arg-type]
            connection.execute(f"INSERT INTO {name} VALUES {row}")  # type: ignore[arg-type]

    assert len({table.row_hash for table in read_fingerprint(conninfo).tables.values()}) == 4
