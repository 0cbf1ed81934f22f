"""One change after another to a copy of a database, made from its own catalogs: each must be seen as a difference.

`of_objects`: every object that pg_identify_object names is dropped; some of each kind are renamed, moved, given away,
granted and commented on. `of_rows`: in every table a row is lost, doubled, and changed in each column; sequences and
large objects are altered. `catalog_mutations.of_catalogs` changes the catalogs by hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg


@dataclass(frozen=True)
class Mutation:
    """One change: its name, and the statements that make it."""

    name: str
    statement: str
    undo: str = ""  # of what a ROLLBACK leaves


# Objects that a user made, with what SQL calls them.
_OBJECTS = """
SELECT DISTINCT i.type, i.identity, d.classid::regclass::text, d.objid::int8
  FROM (SELECT classid, objid FROM pg_depend WHERE objid >= 16384
        UNION SELECT refclassid, refobjid FROM pg_depend WHERE refobjid >= 16384
        UNION SELECT 'pg_namespace'::regclass, oid FROM pg_namespace WHERE oid >= 16384
        UNION SELECT 'pg_cast'::regclass, oid FROM pg_cast WHERE oid >= 16384
        UNION SELECT 'pg_event_trigger'::regclass, oid FROM pg_event_trigger
        UNION SELECT 'pg_publication'::regclass, oid FROM pg_publication
        UNION SELECT 'pg_subscription'::regclass, oid FROM pg_subscription
        UNION SELECT 'pg_foreign_data_wrapper'::regclass, oid FROM pg_foreign_data_wrapper
        UNION SELECT 'pg_language'::regclass, oid FROM pg_language WHERE oid >= 16384
        UNION SELECT 'pg_largeobject'::regclass, oid FROM pg_largeobject_metadata
       ) d, pg_identify_object(d.classid, d.objid, 0) i
 WHERE i.identity IS NOT NULL AND coalesce(i.schema, '') !~ '^pg_'
   AND NOT EXISTS (SELECT FROM pg_depend e
                    WHERE e.classid = d.classid AND e.objid = d.objid AND e.deptype IN ('e', 'i'))
 ORDER BY 1, 2"""

_SQL_NAMES = {
    "foreign-data wrapper": "FOREIGN DATA WRAPPER",
    "statistics object": "STATISTICS",
    "composite type": "TYPE",
}
_CONSTRAINTS = {"table constraint": "TABLE", "domain constraint": "DOMAIN"}
_NOT_ALTERED = {"default value", "operator of access method", "function of access method", "publication relation"}
_NOT_ALTERED |= {
    "publication namespace",
    "toast table",
    "parameter acl",
    "role",
    "default acl",
    "database",
    "large object",
}
_NOT_RENAMED = {"cast", "user mapping", "transform", "extension", "access method", "operator"}
_UNOWNED = {"cast", "user mapping", "transform", "trigger", "rule", "policy", "index", "access method", "extension"}
_UNOWNED |= {"text search parser", "text search template", "composite type"}
_IN_SCHEMAS = {"table", "view", "materialized view", "foreign table", "sequence", "function", "procedure", "aggregate"}
_IN_SCHEMAS |= {"type", "domain", "collation", "conversion", "operator", "operator class", "operator family"}
_IN_SCHEMAS |= {"text search parser", "text search template", "text search dictionary", "text search configuration"}
_IN_SCHEMAS |= {"statistics object", "extension"}
_GRANTED = {
    "table": ("TABLE", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER", "MAINTAIN", "SELECT"),
    "view": ("TABLE", "INSERT"),
    "materialized view": ("TABLE", "SELECT"),
    "foreign table": ("TABLE", "SELECT"),
    "sequence": ("SEQUENCE", "UPDATE"),
    "schema": ("SCHEMA", "CREATE"),
    "type": ("TYPE", "USAGE"),
    "domain": ("DOMAIN", "USAGE"),
    "function": ("FUNCTION", "EXECUTE"),
    "procedure": ("PROCEDURE", "EXECUTE"),
    "aggregate": ("FUNCTION", "EXECUTE"),
    "language": ("LANGUAGE", "USAGE"),
    "foreign-data wrapper": ("FOREIGN DATA WRAPPER", "USAGE"),
    "server": ("FOREIGN SERVER", "USAGE"),
}
ALTERED_OF_A_KIND = 2  # every object is dropped; so many of each kind are altered as well


def of_objects(connection: psycopg.Connection[Any]) -> Iterator[Mutation]:
    """Yield what can be done to any object: each is dropped, renamed, moved, given away, granted and commented on."""
    seen: Counter[str] = Counter()
    for kind, identity, *_ in connection.execute(_OBJECTS).fetchall():
        if kind in _NOT_ALTERED:
            continue
        seen[kind] += 1
        changes = list(_changes_of_constraint(kind, identity) if kind in _CONSTRAINTS else _changes(kind, identity))
        chosen = changes if seen[kind] <= ALTERED_OF_A_KIND else changes[:1]
        yield from (Mutation(f"{statement}", statement) for statement in chosen)


def _changes_of_constraint(kind: str, identity: str) -> Iterator[str]:
    name, _, of = identity.partition(" on ")
    owner = _CONSTRAINTS[kind]
    yield f"ALTER {owner} {of} DROP CONSTRAINT {name} CASCADE"
    yield f"ALTER {owner} {of} RENAME CONSTRAINT {name} TO renamed"
    yield f"COMMENT ON CONSTRAINT {name} ON {'DOMAIN ' if owner == 'DOMAIN' else ''}{of} IS 'a new comment'"


def _changes(kind: str, identity: str) -> Iterator[str]:
    if kind == "user mapping":
        yield f"DROP USER MAPPING FOR {identity.replace(' on server ', ' SERVER ')}"
        return
    named = f"{_SQL_NAMES.get(kind, kind)} {identity}"
    if kind == "transform":
        named = f"TRANSFORM FOR {identity.removeprefix('for ').replace(' on language ', ' LANGUAGE ')}"
    yield f"DROP {named}{'' if kind == 'subscription' else ' CASCADE'}"
    yield f"COMMENT ON {named} IS 'a new comment'"
    if kind not in _NOT_RENAMED:
        yield f"ALTER {named} RENAME TO renamed"
    if kind not in _UNOWNED:
        yield f"ALTER {named} OWNER TO rich_super"
    if kind in _IN_SCHEMAS:
        yield f"CREATE SCHEMA moved; ALTER {named} SET SCHEMA moved"
    if kind in _GRANTED:
        word, *granted = _GRANTED[kind]
        for privilege in granted:
            yield f"GRANT {privilege} ON {word} {identity} TO rich_group"
        yield f"GRANT {privilege} ON {word} {identity} TO rich_group WITH GRANT OPTION"


_TABLES = """
SELECT c.oid::regclass::text, array_agg(quote_ident(a.attname) ORDER BY a.attnum),
       array_agg(format_type(t.oid, a.atttypmod) ORDER BY a.attnum), array_agg(a.attgenerated <> '' ORDER BY a.attnum)
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  JOIN pg_type t ON t.oid = a.atttypid
 WHERE c.relkind = 'r' AND c.oid >= 16384 AND c.relnamespace = 'app'::regnamespace GROUP BY 1 ORDER BY 1"""

# Another value of a type, as near as can be.
_OTHER = {
    "boolean": "NOT {0}",
    "numeric": "({0} || '0')::numeric",
    "numeric(9,3)": "{0} + 0.001",
    "real": "{0} + 0.0001",
    "money": "{0} + 0.01::money",
    "bytea": "{0} || '\\x00'",
    "bit(5)": "~ {0}",
    "bit varying": "{0} || B'0'",
    "date": "{0} + 1",
    "time without time zone": "{0} + '1 microsecond'",
    "time with time zone": "'01:02:03+03'::timetz - interval '-1 hour'",
    "timestamp without time zone": "{0} + '1 microsecond'",
    "timestamp with time zone": "{0} + '1 microsecond'",
    "interval": "'32 days'::interval",
    "uuid": "gen_random_uuid()",
    "json": "'{{\"a\":1}}'",
    "jsonb": "'{{\"a\": 1}}'",
    "jsonpath": "'strict $.a'",
    "xml": "'<a/>'",
    "inet": "'10.0.0.1'",
    "cidr": "'10.0.0.0/9'",
    "macaddr": "'08:00:2b:01:02:04'",
    "macaddr8": "'08:00:2b:01:02:03:04:06'",
    "tsrange": "'[2026-01-01,2026-01-03)'",
    "point": "'(1,-0)'",
    "line": "'{{1,2,4}}'",
    "lseg": "'[(3,4),(1,2)]'",
    "box": "'((3,5),(1,2))'",
    "path": "'((1,2),(3,4))'",
    "polygon": "'((3,4),(1,2))'",
    "circle": "'<(1,2),4>'",
    "tsvector": "'a:1A b:2'",
    "tsquery": "'b & a'",
    "pg_lsn": "{0} + 1",
    "pg_snapshot": "'10:20:11'",
    "integer[]": "'[0:1]={{1,2}}'",
    "text[]": "'{{a,NULL}}'",
    "double precision[]": "'{{1.5,-0}}'",
    "app.pair": "'(1,)'",
    "app.pair[]": "'{{\"(1,y)\"}}'",
    "app.mood": "'glad'",
    "app.mood[]": "'{{glad,sad}}'",
    "int4range": "'[1,5]'",
    "numrange": "'[1,5)'",
    "nummultirange": "'{{[1,2),[3,4]}}'",
    "app.word_span": "'[a,b]'",
    "app.email": "'c@b'",
    "hstore": "'k=>NULL'",
    "public.hstore": "'k=>NULL'",
    "citext": "'case'",
    "public.citext": "'case'",
    "ltree": "'a.c'",
    "public.ltree": "'a.c'",
    "app.tiny": "'6'",
    "regclass": "'app.orders'",
    "int2vector": "'2 1'",
    "xid": "'8'",
    "oid": "'43'",
    '"char"': "'y'",
    "name": "'Name'",
    "character(9)": "'B'",
    "character varying(10)": "'old'",
}


def of_rows(connection: psycopg.Connection[Any]) -> Iterator[Mutation]:
    """Yield changes of rows, of sequences and of large objects."""
    for table, columns, types, generated in connection.execute(_TABLES).fetchall():
        if connection.execute(f"SELECT FROM ONLY {table} LIMIT 1").fetchone() is None:
            continue
        one = f"ctid = (SELECT max(ctid) FROM ONLY {table})"
        listed = ", ".join(name for name, is_generated in zip(columns, generated, strict=True) if not is_generated)
        doubled = (
            f"INSERT INTO {table} ({listed}) OVERRIDING SYSTEM VALUE SELECT {listed} FROM ONLY {table} WHERE {one}"
        )
        free = f"{_FREE} AND attrelid = '{table}'::regclass; {_UNIQUE} '{table}'::regclass"
        yield Mutation(f"a row of {table} is lost", f"{free}; DELETE FROM ONLY {table} WHERE {one}")
        yield Mutation(f"all rows of {table} are lost", f"{free}; DELETE FROM ONLY {table}")
        if listed:
            yield Mutation(f"a row of {table} is there twice", f"{free}; {doubled}")
        for name, type_, is_generated in zip(columns, types, generated, strict=True):
            if is_generated:
                continue
            other = _other(name, type_)
            change = f"{free}; UPDATE ONLY {table} SET {name} = {{}} WHERE {one}"
            yield Mutation(f"another {type_} in {table}.{name}", change.format(other))
            null = f"CASE WHEN {name} IS NULL THEN ({other})::text::{type_} END"
            yield Mutation(f"null for {type_} in {table}.{name}, or the reverse", change.format(null))
    # what a sum of the columns, or of the rows of two tables, would not tell
    yield Mutation(
        "values of two rows are exchanged",
        "UPDATE app.orders SET person = CASE person WHEN 1 THEN 2 ELSE 1 END WHERE id < 3",
    )
    yield Mutation("values of two columns are exchanged", f"{_FREE} AND false; UPDATE app.daughter SET a = b, b = a")
    moved = "WITH m AS (DELETE FROM ONLY app.daughter RETURNING a, b) INSERT INTO app.mother SELECT * FROM m"
    yield Mutation("a row is in the parent", f"{_FREE} AND false; {moved}")
    yield from _of_sequences(connection)
    yield from _of_large_objects()


def _of_sequences(connection: psycopg.Connection[Any]) -> Iterator[Mutation]:
    """Yield changes that no ROLLBACK undoes."""
    for (name,) in connection.execute("SELECT seqrelid::regclass::text FROM pg_sequence ORDER BY 1").fetchall():
        row = connection.execute(f"SELECT last_value, is_called FROM {name}").fetchone()
        value, is_called = row or (0, False)
        undo = f"SELECT setval('{name}', {value}, {is_called})"
        yield Mutation(f"{name} is given out", f"SELECT setval('{name}', {value}, {not is_called})", undo)
        near = value - 1 if value < 0 else value + 1
        yield Mutation(f"{name} is moved", f"SELECT setval('{name}', {near}, {is_called})", undo)


def _of_large_objects() -> Iterator[Mutation]:
    for oid in (90001, 90002):
        for change in (
            f"SELECT lo_put({oid}, 10000, '\\x00')",
            f"SELECT lo_put({oid}, 1, '\\x01')",
            f"SELECT lo_truncate(lo_open({oid}, 131072), 1)",
            f"SELECT lo_truncate(lo_open({oid}, 131072), 0)",
            f"SELECT lo_unlink({oid})",
            f"SELECT lo_from_bytea({oid + 10}, lo_get({oid})); SELECT lo_unlink({oid})",
            f"ALTER LARGE OBJECT {oid} OWNER TO rich_super",
            f"GRANT UPDATE ON LARGE OBJECT {oid} TO rich_group",
        ):
            yield Mutation(change, change)
    yield Mutation("another large object", "SELECT lo_create(90009)")


# No publication, trigger, foreign key, NOT NULL or unique index refuses a change of rows.
_FREE = (
    "ALTER PUBLICATION news SET (publish = 'insert');"
    " SET LOCAL session_replication_role = replica; SET LOCAL allow_system_table_mods = on;"
    " UPDATE pg_attribute SET attnotnull = false WHERE attnum > 0"
)
_UNIQUE = "UPDATE pg_index SET indisunique = false WHERE indrelid ="


def _other(column: str, type_: str) -> str:
    if type_ == "double precision":
        return f"{column} * (1 + 2.220446049250313e-16)"
    if type_ in {"numeric(9,3)", "numeric"} and type_ in _OTHER:
        return f"coalesce({_OTHER[type_].format(column)}, 1)"
    if type_ in _OTHER:
        return _OTHER[type_].format(column)
    if type_ in {"integer", "bigint", "smallint", "app.small"}:
        return f"coalesce({column} + 1, 1)"
    if type_ == "text" or type_.startswith("character varying"):
        return f"coalesce({column} || ' ', '')"
    raise AssertionError(f"no other value of type {type_}")
