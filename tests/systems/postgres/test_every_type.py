"""Values of every built-in type keep their row hash through the text that a dump carries."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from synapse_ops.domain.database.fingerprint import Fingerprint
from synapse_ops.systems.postgres.fingerprint import read_fingerprint
from tests.servers import PostgresServer

DATABASE = "every_type"
VALUES_EACH = 60
NO_INPUT = {"pg_node_tree", "pg_ndistinct", "pg_dependencies", "pg_mcv_list", "gtsvector"}
NO_INPUT |= {"pg_brin_bloom_summary", "pg_brin_minmax_multi_summary"}

FLOAT = """(array['NaN', '-0', '0', 'Infinity', '1e-30', '0.1'])[1 + n % 7]::float8"""
SIGNED_NAN = "coalesce(nullif(('inf'::float8 - 'inf'::float8), 0), 0)"
INTEGER = "(random() * 20000 - 10000)::int"
MOMENT = "timestamp '2026-01-01' + random() * interval '9 years'"
POINT = f"point(coalesce({FLOAT}, random()), case when n % 3 = 0 then {SIGNED_NAN} else random() end)"
FINITE = "point(random(), -random())"
# Expressions over n, the number of the value.
VALUES = {
    "bool": "n % 2 = 0",
    "bytea": "decode(md5(random()::text), 'hex')",
    "char": 'chr(33 + n)::"char"',
    "name": "md5(random()::text)::name",
    "int8": "(random() * 1e18)::int8 * (1 - 2 * (n % 2))",
    "int2": f"{INTEGER}::int2",
    "int2vector": f"format('%s %s', {INTEGER}, n)::int2vector",
    "int4": INTEGER,
    "regproc": "'pg_catalog.pg_backend_pid'::regproc",
    "text": "md5(random()::text) || E'\\\\ \\n\\t'",
    "oid": "n::oid",
    "tid": "format('(%s,%s)', n, n)::tid",
    "xid": "n::text::xid",
    "cid": "n::text::cid",
    "oidvector": "format('%s %s', n, n)::oidvector",
    "json": 'format(\'{"a": %s,  "a": null}\', n)::json',
    "xml": "format('<a n=\"%s\"/>', n)::xml",
    "point": POINT,
    "lseg": f"lseg({POINT}, {POINT})",
    "path": f"case when n % 2 = 0 then popen(path(polygon(4, circle({FINITE}, 2)))) else '[(NaN,1),(-0,2)]' end",
    "box": f"box({POINT}, {POINT})",
    "polygon": f"polygon(5, circle({FINITE}, random()))",
    "line": f"line({FINITE}, {FINITE})",
    "cidr": "set_masklen(('10.0.0.0'::inet + n * 256)::inet, 24)::cidr",
    "float4": f"case when n % 5 = 0 then {SIGNED_NAN} else coalesce({FLOAT}, random())::numeric::float4 end",
    "float8": f"case when n % 5 = 0 then {SIGNED_NAN} else coalesce({FLOAT}, random()) end",
    "circle": f"circle({POINT}, random())",
    "money": f"{INTEGER}::numeric::money",
    "macaddr": "format('08:00:2b:01:02:%s', lpad(to_hex(n), 2, '0'))::macaddr",
    "inet": "'::1'::inet + n",
    "aclitem": "makeaclitem(10::oid, 10::oid, 'SELECT', n % 2 = 0)",
    "bpchar": "repeat('x', n) || '  '",
    "varchar": "repeat('x', n) || ' '",
    "date": f"case n when 1 then 'infinity' when 2 then '0044-03-15 BC' else ({MOMENT})::date end",
    "time": f"({MOMENT})::time",
    "timestamp": f"case n when 1 then '-infinity' when 2 then '0044-03-15 BC' else {MOMENT} end",
    "timestamptz": f"({MOMENT}) at time zone 'Asia/Kathmandu'",
    "interval": f"make_interval(months => {INTEGER}, days => {INTEGER}, secs => random() * 1e7) - interval '1 d 25 h'",
    "timetz": f"({MOMENT})::time at time zone interval '5:45'",
    "bit": "n::bit(9)",
    "varbit": "n::bit(9)::varbit",
    "numeric": "case n when 1 then 'NaN' when 2 then '-Infinity' else round((random() * 1e9)::numeric, n % 9 - 3) end",
    "refcursor": "md5(random()::text)::refcursor",
    "regprocedure": "'pg_catalog.upper(text)'::regprocedure",
    "regoper": "'pg_catalog.||/'::regoper",
    "regoperator": "'pg_catalog.+(int4,int4)'::regoperator",
    "regclass": "'pg_catalog.pg_class'::regclass",
    "regcollation": "'pg_catalog.\"C\"'::regcollation",
    "regtype": "'timestamptz'::regtype",
    "regrole": "'pg_monitor'::regrole",
    "regnamespace": "'pg_catalog'::regnamespace",
    "uuid": "gen_random_uuid()",
    "pg_lsn": "'0/0'::pg_lsn + n",
    "tsvector": "to_tsvector('simple', format('a b%s a', n)) || setweight('x:3', 'B')",
    "tsquery": "case when n % 2 = 0 then to_tsquery('simple', 'dog & (cat & bird)') else 'a <2> (b | !c:*AB)' end",
    "regconfig": "'simple'::regconfig",
    "regdictionary": "'simple'::regdictionary",
    "jsonb": 'format(\'{"b": 1.%s0, "a": [null, 1e%s]}\', n, n)::jsonb',
    "jsonpath": "format('strict $.a[*] ? (@.b > %s)', n)::jsonpath",
    "txid_snapshot": "format('10:%s:', 20 + n)::txid_snapshot",
    "pg_snapshot": "format('10:%s:11,12', 20 + n)::pg_snapshot",
    "int4range": "int4range(n, n + 5, '[]')",
    "numrange": "numrange(n + 0.50, null)",
    "tsrange": f"tsrange({MOMENT}, null, '(]')",
    "tstzrange": "'empty'::tstzrange",
    "daterange": "daterange('2026-01-01', date '2026-01-01' + n, '[]')",
    "int8range": "int8range(null, n)",
    "int4multirange": "int4multirange(int4range(n, n + 5), int4range(n + 9, null))",
    "nummultirange": "nummultirange(numrange(n + 0.50, n + 9.0, '[]'))",
    "tsmultirange": f"tsmultirange(tsrange({MOMENT}, null))",
    "tstzmultirange": "'{}'::tstzmultirange",
    "datemultirange": "datemultirange(daterange('2026-01-01', null))",
    "int8multirange": "int8multirange(int8range(n, null))",
    "xid8": "n::text::xid8",
    "macaddr8": "format('08:00:2b:01:02:03:04:%s', lpad(to_hex(n), 2, '0'))::macaddr8",
}


@pytest.fixture(scope="module")
def made(postgres_server: PostgresServer) -> Iterator[str]:
    """A database with the tables v_TYPE and a_TYPE (arrays), and r_... into which their text was copied."""
    postgres_server.execute(f"create database {DATABASE} template template0")
    conninfo = postgres_server.conninfo(DATABASE)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("set extra_float_digits = 1")
        for name, expression in VALUES.items():
            kind, value = sql.Identifier(name), sql.SQL(expression)
            numbers = sql.Literal(VALUES_EACH)
            make = "create table {} as select ({})::pg_catalog.{} as x from generate_series(1, {}) n"
            connection.execute(sql.SQL(make).format(sql.Identifier(f"v_{name}"), value, kind, numbers))
            make = "create table {} as select array[null, x] as x from {} union all select array[[x], [x]] from {}"
            array, one = sql.Identifier(f"a_{name}"), sql.Identifier(f"v_{name}")
            connection.execute(sql.SQL(make).format(array, one, one))
            connection.execute(sql.SQL("update {} set x[1] = x[2] where array_ndims(x) = 1").format(array))
            connection.execute(
                sql.SQL("insert into {} select array_fill(x, '{{2}}', '{{-1}}') from {}").format(array, one)
            )
            for source in (f"v_{name}", f"a_{name}"):
                copy_as_a_dump_does(connection, source, f"r_{source}")
    yield conninfo
    postgres_server.execute(f"drop database {DATABASE} with (force)")


def copy_as_a_dump_does(connection: psycopg.Connection[tuple[object, ...]], source: str, target: str) -> None:
    names = sql.Identifier(target), sql.Identifier(source)
    connection.execute(sql.SQL("create table {} (like {})").format(*names))
    with connection.cursor() as cursor:
        with cursor.copy(sql.SQL("copy {} to stdout").format(names[1])) as out:
            text = b"".join(bytes(part) for part in out)
        with cursor.copy(sql.SQL("copy {} from stdin").format(names[0])) as into:
            into.write(text)


@pytest.fixture(scope="module")
def found(made: str) -> Fingerprint:
    return read_fingerprint(made)


@pytest.mark.parametrize("name", VALUES)
def test_values_and_arrays_of_a_type_hash_alike_after_a_dump_and_a_restore(found: Fingerprint, name: str) -> None:
    """A NaN's sign, a query's tree, an array's memory of a null are in no dump: they are in no hash either."""
    for table in (f"v_{name}", f"a_{name}"):
        assert found.tables[f"public.{table}"] == found.tables[f"public.r_{table}"]


def test_every_built_in_type_is_among_them(made: str) -> None:
    """A type that a later server adds is seen here."""
    query = "select typname from pg_type where typnamespace = 'pg_catalog'::regnamespace and typtype in ('b', 'r', 'm')"
    with psycopg.connect(made) as connection:
        names = {name for (name,) in connection.execute(query + " and typcategory <> 'A' and typrelid = 0")}

    assert names - NO_INPUT - {"int2vector", "oidvector"} == set(VALUES) - {"int2vector", "oidvector"}
