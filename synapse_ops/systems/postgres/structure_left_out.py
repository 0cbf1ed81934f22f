"""Queries for what pg_dump leaves out: what extensions brought along, and what was put where it does not look.

The members of extensions are described by the same queries as other objects (`of_members`). Their owners and privileges
are carried by ourselves (supplement.py), and compared; everything else of them comes from the extension's own script
after a restore, and is compared to name what was changed by hand.
"""

from __future__ import annotations

from synapse_ops.systems.postgres.catalog_sql import attributes, not_of_extension, owner, sorted_texts

_NOT_A_MEMBER = not_of_extension("?", "?").partition(" WHERE ")[0]
_SYSTEM = "IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)"


def is_about_members(query: str) -> bool:
    """Return whether a query of the structure looks at objects that are no members of an extension."""
    return _NOT_A_MEMBER in query


def of_members(query: str) -> str:
    """Return the same query for the objects that are members of one."""
    return query.replace(_NOT_A_MEMBER, _NOT_A_MEMBER.removeprefix("NOT "))


def is_member(catalog: str, oid: str) -> str:
    """Return the condition that an object is a member of an extension."""
    return of_members(not_of_extension(catalog, oid))


# catalog, its columns of privileges and owner, and which of its rows have both
OWNED = (
    ("pg_class", "relacl", "relowner", "o.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')"),
    ("pg_proc", "proacl", "proowner", "true"),
    (
        "pg_type",
        "typacl",
        "typowner",
        "o.typrelid = 0 AND o.typtype <> 'm' AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = o.oid)",
    ),
    ("pg_language", "lanacl", "lanowner", "true"),
    ("pg_namespace", "nspacl", "nspowner", "true"),
    ("pg_foreign_data_wrapper", "fdwacl", "fdwowner", "true"),
    ("pg_foreign_server", "srvacl", "srvowner", "true"),
)

_MEMBERS_PRIVILEGES = "\nUNION ALL".join(
    f"""
SELECT format('%s %s', i.type, i.identity), {attributes(owner=owner(f"o.{role}"), privileges=sorted_texts(f"o.{acl}"))}
  FROM {catalog} o, pg_identify_object('{catalog}'::regclass, o.oid, 0) i
 WHERE {is_member(catalog, "o.oid")} AND {condition} AND (o.{acl} IS NOT NULL OR o.{role} <> 10)"""
    for catalog, acl, role, condition in OWNED
)

_MEMBERS_COLUMNS = f"""
SELECT format('column %s', i.identity), {attributes(privileges=sorted_texts("a.attacl"))}
  FROM pg_attribute a, pg_identify_object('pg_class'::regclass, a.attrelid, a.attnum) i
 WHERE a.attacl IS NOT NULL AND {is_member("pg_class", "a.attrelid")}"""

_CHANGED_COLUMNS = f"""
SELECT format('column %s', i.identity), {attributes(privileges=sorted_texts("a.attacl"))}
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
  LEFT JOIN pg_init_privs p ON p.classoid = 'pg_class'::regclass AND p.objoid = a.attrelid AND p.objsubid = a.attnum,
       pg_identify_object('pg_class'::regclass, a.attrelid, a.attnum) i
 WHERE a.attacl IS NOT NULL AND a.attrelid < 16384 AND c.relnamespace = 'pg_catalog'::regnamespace
   AND {sorted_texts("a.attacl")} IS DISTINCT FROM {sorted_texts("p.initprivs")}"""

LEFT_OUT_QUERIES = {
    "extension's privileges": f"{_MEMBERS_PRIVILEGES}\nUNION ALL{_MEMBERS_COLUMNS}",
    "changed column privileges": _CHANGED_COLUMNS,
}

_IN_SYSTEM_SCHEMAS = "\nUNION ALL".join(
    f"""
SELECT format('%s %s', i.type, i.identity)
  FROM {catalog} o, pg_identify_object('{catalog}'::regclass, o.oid, 0) i
 WHERE o.oid >= 16384 AND o.{prefix}namespace {_SYSTEM} AND {condition} AND {not_of_extension(catalog, "o.oid")}"""
    for catalog, prefix, condition in (
        ("pg_class", "rel", "o.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')"),
        ("pg_proc", "pro", "true"),
        ("pg_type", "typ", "o.typrelid = 0 AND o.typtype <> 'm' AND o.typelem = 0"),
        ("pg_operator", "opr", "true"),
        ("pg_opclass", "opc", "true"),
        ("pg_opfamily", "opf", "true"),
        ("pg_collation", "coll", "true"),
        ("pg_conversion", "con", "true"),
        ("pg_ts_config", "cfg", "true"),
        ("pg_ts_dict", "dict", "true"),
        ("pg_ts_parser", "prs", "true"),
        ("pg_ts_template", "tmpl", "true"),
        ("pg_statistic_ext", "stx", "true"),
    )
)

# initdb grants SELECT to PUBLIC on what is not a helper, with few exceptions, and records that nowhere.
_INFORMATION_SCHEMA = """
SELECT format('changed privileges of information_schema.%I', c.relname)
  FROM pg_class c
 WHERE c.relnamespace = 'information_schema'::regnamespace AND c.oid < 16384 AND c.relacl IS NOT NULL
   AND c.relkind IN ('r', 'v')
   AND (SELECT array_agg(g.grantee || ' ' || g.privilege_type) FROM aclexplode(c.relacl) g
         WHERE g.grantee <> c.relowner)
       IS DISTINCT FROM CASE WHEN c.relname !~ '^_pg_' THEN ARRAY['0 SELECT'] END"""

# One text each: what no dump carries, by name.
NAMES_LEFT_OUT = f"""{_IN_SYSTEM_SCHEMAS}
UNION ALL{_INFORMATION_SCHEMA}
UNION ALL
SELECT format('operator %s, which has no function', o.oid::regoperator) FROM pg_operator o WHERE o.oprcode = 0
UNION ALL
SELECT format('index %s, which is invalid', x.indexrelid::regclass)
  FROM pg_index x JOIN pg_class c ON c.oid = x.indrelid WHERE NOT x.indisvalid AND c.relkind <> 'p'
UNION ALL
SELECT format('prepared transaction %L, which is not committed', gid)
  FROM pg_prepared_xacts WHERE database = current_database()
ORDER BY 1"""
