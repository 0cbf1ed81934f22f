"""SQL that carries what pg_dump and pg_dumpall leave out, and that can be carried.

pg_dump says nothing of a member's owner, and nothing of a member's privileges unless they differ from those that the
extension was created with: default privileges of that moment are lost. pg_dumpall says nothing of ALTER ROLE ALL.
Source: src/bin/pg_dump/pg_dump.c, dumpACL and selectDumpableExtension.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from psycopg import sql

from synapse_ops.domain.database.globals_script import quote_name
from synapse_ops.systems.postgres.structure_left_out import OWNED, is_member

if TYPE_CHECKING:
    import psycopg

HEAD = "-- Owners and privileges of the members of extensions, which pg_dump leaves out. Run it after pg_restore.\n"
_KEYWORD = {
    "pg_class": "CASE o.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END",
    "pg_proc": "'ROUTINE'",
    "pg_type": "'TYPE'",
    "pg_language": "'LANGUAGE'",
    "pg_namespace": "'SCHEMA'",
    "pg_foreign_data_wrapper": "'FOREIGN DATA WRAPPER'",
    "pg_foreign_server": "'FOREIGN SERVER'",
}
_ALTERED = {"FOREIGN SERVER": "SERVER"}  # the one keyword that ALTER and GRANT do not share
_GRANTEE = "CASE {0}.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid({0}.grantee)) END"
_OPTION = "CASE WHEN {0}.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END"


def _members(catalog: str, acl: str, role: str, condition: str) -> str:
    """Return a query for (keyword, identity, owner or null, grants or null) of the members that lie in a catalog."""
    granted = f"format('%s ON %s %s TO %s%s', g.privilege_type, {_KEYWORD[catalog]}, i.identity,"
    granted += f" {_GRANTEE.format('g')}, {_OPTION.format('g')})"
    owned = f"CASE WHEN o.{role} <> 10 THEN quote_ident(pg_get_userbyid(o.{role})) END"
    if catalog == "pg_class":  # the sequence of a column has the owner of its table
        of_a_column = (
            "EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = o.oid"
            " AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i'))"
        )
        owned = f"CASE WHEN NOT (o.relkind = 'S' AND {of_a_column}) THEN {owned} END"
    return f"""
SELECT {_KEYWORD[catalog]}, i.identity, {owned}, quote_ident(pg_get_userbyid(o.{role})),
       (SELECT array_agg({granted}) FROM aclexplode(o.{acl}) g)
  FROM {catalog} o, pg_identify_object('{catalog}'::regclass, o.oid, 0) i
 WHERE {is_member(catalog, "o.oid")} AND {condition} AND (o.{acl} IS NOT NULL OR o.{role} <> 10)"""


_COLUMNS = f"""
SELECT format('%s (%I) ON TABLE %s TO %s%s', g.privilege_type, a.attname, a.attrelid::regclass, {_GRANTEE.format("g")},
              {_OPTION.format("g")})
  FROM pg_attribute a, aclexplode(a.attacl) g
 WHERE {is_member("pg_class", "a.attrelid")}"""


def read_supplement(connection: psycopg.Connection[Any]) -> bytes:
    """Return the statements for the members of extensions, as an open transaction sees them; UTF-8."""
    return (HEAD + "".join(f"{statement};\n" for statement in _statements(connection))).encode()


def _statements(connection: psycopg.Connection[Any]) -> Iterator[str]:
    for one in OWNED:
        rows = connection.execute(_members(*one).encode()).fetchall()
        for keyword, identity, new_owner, owner, grants in rows:
            if new_owner is not None:
                yield f"ALTER {_ALTERED.get(keyword, keyword)} {identity} OWNER TO {new_owner}"
            if grants is not None:
                yield f"REVOKE ALL ON {keyword} {identity} FROM PUBLIC, {owner}"
                yield from (f"GRANT {grant}" for grant in sorted(grants))
    yield from (f"GRANT {grant}" for (grant,) in connection.execute(_COLUMNS.encode()).fetchall())


# Their values are lists of quoted names: src/backend/utils/misc/guc_tables.c, GUC_LIST_QUOTE.
_LISTS = frozenset(
    {"local_preload_libraries", "search_path", "session_preload_libraries", "shared_preload_libraries"}
    | {"temp_tablespaces", "unix_socket_directories"}
)
_ELEMENT = re.compile(r'"((?:[^"]|"")*)"|([^,\s]+)')


def settings_of_all_roles(entries: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Return `ALTER ROLE ALL SET ...` for the entries of that kind among those of `read_shared`; empty without any."""
    kind = "setting of all roles: "
    values = {key.removeprefix(kind): str(entry["value"]) for key, entry in entries.items() if key.startswith(kind)}
    lines = [
        f"ALTER ROLE ALL SET {quote_name(name)} TO {_value(name, value)};\n" for name, value in sorted(values.items())
    ]
    return "".join(["\n-- not of pg_dumpall\n", *lines] if lines else []).encode()


def _value(name: str, value: str) -> str:
    texts: Iterable[str] = [value]
    if name.lower() in _LISTS:
        texts = [quoted.replace('""', '"') or plain for quoted, plain in _ELEMENT.findall(value)] or [""]
    return ", ".join(sql.Literal(text).as_string(None) for text in texts)
