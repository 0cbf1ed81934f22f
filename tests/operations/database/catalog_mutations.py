"""Every column of every catalog changed by hand in one row of each kind: finds what no statement was thought of for.

Expressions are not changed here: a tree of another row may end the server. `rich_database` has statements for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg

from tests.operations.database.mutations import Mutation

# What no dump carries, or what only restates something else, and why: names of catalogs and of their columns.
NOT_COMPARED = {
    "made anew by a restore; what users decide of it is elsewhere": "pg_depend pg_shdepend pg_init_privs",
    "ANALYZE makes it anew": "pg_statistic pg_statistic_ext_data",
    "progress of replication": "pg_replication_origin pg_subscription_rel pg_subscription.subenabled",
    "content, not structure: of_rows changes it": "pg_largeobject pg_largeobject_metadata pg_class.relispopulated",
    "version, which the fingerprint compares": "pg_extension.extversion",
    "keys of the row": "pg_attrdef.adnum pg_attrdef.adrelid pg_attribute.attrelid pg_attribute.attnum"
    " pg_aggregate.aggfnoid "
    "pg_foreign_table.ftrelid pg_index.indexrelid pg_inherits.inhrelid pg_partitioned_table.partrelid "
    "pg_range.rngtypid pg_range.rngmultitypid pg_sequence.seqrelid pg_description.objoid "
    "pg_description.objsubid pg_shdescription.objoid",
    "of the type": "pg_attribute.attalign pg_attribute.attbyval pg_attribute.attlen pg_attribute.atttypmod"
    " pg_type.typtypmod",
    "PostgreSQL ignores it": "pg_attribute.attndims pg_attribute.attcacheoff pg_inherits.inhseqno",
    "derived from other rows": "pg_attribute.atthasdef pg_attribute.atthasmissing pg_attribute.attmissingval "
    "pg_attribute.attinhcount pg_attribute.attgenerated pg_class.relnatts pg_class.relchecks "
    "pg_class.relhasindex pg_class.relhasrules pg_class.relhastriggers pg_class.relhassubclass "
    "pg_class.reltype pg_class.relispartition pg_class.relkind pg_constraint.connamespace "
    "pg_constraint.conindid pg_constraint.conparentid pg_constraint.contype pg_constraint.coninhcount "
    "pg_constraint.conrelid pg_index.indnatts pg_index.indnkeyatts pg_index.indisprimary "
    "pg_index.indisexclusion pg_index.indimmediate pg_partitioned_table.partdefid "
    "pg_partitioned_table.partnatts pg_operator.oprkind pg_operator.oprresult pg_amop.amopmethod "
    "pg_amop.amoplefttype pg_amop.amoprighttype pg_proc.pronargs pg_proc.pronargdefaults "
    "pg_proc.provariadic pg_database.dathasloginevt",
    "storage": "pg_class.relfilenode pg_class.relpages pg_class.reltuples pg_class.relallvisible "
    "pg_class.reltoastrelid pg_class.relfrozenxid pg_class.relminmxid pg_class.relrewrite "
    "pg_class.relisshared pg_database.datfrozenxid pg_database.datminmxid",
    "of the host's library": "pg_collation.collversion pg_database.datcollversion",
    "a secret": "pg_authid.rolpassword pg_subscription.subconninfo",
    "only its order counts": "pg_enum.enumsortorder pg_ts_config_map.mapseqno",
    "of the trigger's constraint": "pg_trigger.tgconstraint pg_trigger.tgconstrrelid pg_trigger.tgconstrindid"
    " pg_trigger.tgdeferrable pg_trigger.tginitdeferred",
    "derived from the base or the array type": "pg_type.typarray pg_type.typndims",
    "a restore gives another": "pg_database.datname",
    "pg_dump does not carry it": "pg_extension.extowner pg_extension.extrelocatable pg_extension.extcondition "
    "pg_inherits.inhdetachpending pg_language.lanispl",
    "states of a build": "pg_index.indcheckxmin pg_index.indislive pg_index.indisready",
}
_LEFT_OUT = frozenset(name for names in NOT_COMPARED.values() for name in names.split())

# Columns that mean something for some rows only.
_ONLY = {
    **{
        f"pg_constraint.{name}": "contype = 'f'"
        for name in ("confrelid", "confupdtype", "confdeltype", "confmatchtype")
    },
    "pg_constraint.connoinherit": "contype = 'c'",
    "pg_constraint.conislocal": "contype = 'c' AND conrelid IN (SELECT inhrelid FROM pg_inherits) AND NOT"
    " (SELECT relispartition FROM pg_class WHERE oid = conrelid)",
    "pg_attribute.attislocal": "attrelid IN (SELECT inhrelid FROM pg_inherits) AND NOT"
    " (SELECT relispartition FROM pg_class WHERE oid = attrelid)",
    "pg_class.relacl": "relkind <> 'c'",
    "pg_class.relam": "relkind IN ('r', 'm')",
    **{
        f"pg_proc.{name}": "prokind <> 'a'"
        for name in ("prolang", "procost", "prorows", "prosupport", "prosecdef", "proleakproof", "proisstrict")
    },
    **{f"pg_proc.{name}": "prokind <> 'a'" for name in ("provolatile", "prosrc", "probin", "proconfig")},
    **{f"pg_proc.{name}": "prokind <> 'a'" for name in ("prosrc", "probin", "proconfig")},
    **{
        f"pg_type.typ{name}": "typtype = 'b'"
        for name in ("len", "byval", "category", "ispreferred", "delim", "subscript", "elem", "input", "output")
    },
    **{f"pg_type.typ{name}": "typtype = 'b'" for name in ("receive", "send", "modin", "modout", "analyze", "align")},
    **{f"pg_type.typ{name}": "typtype = 'd'" for name in ("notnull", "basetype", "collation")},
    "pg_type.typstorage": "typtype = 'b'",
    "pg_type.typdefault": "typtype = 'b'",
    "pg_proc.proretset": "prokind = 'f'",
    "pg_proc.prorettype": "prokind = 'f'",
    "pg_proc.proargnames": "prokind = 'a'",
}

# Rows of one catalog that are of different kinds, and rows that are a user's.
_KINDS = {
    "pg_class": "relkind",
    "pg_type": "typtype",
    "pg_proc": "prokind",
    "pg_constraint": "contype",
    "pg_attribute": "(SELECT relkind FROM pg_class WHERE oid = m.attrelid)",
    "pg_default_acl": "defaclobjtype",
    "pg_shdescription": "classoid",
    "pg_description": "classoid",
    "pg_db_role_setting": "(setdatabase <> 0)",
    "pg_publication": "pubname",
}
_USERS = {
    "pg_class": "relnamespace = 'app'::regnamespace AND relkind NOT IN ('S', 'i', 'I')",
    "pg_constraint": "contype <> 't' AND connamespace = 'app'::regnamespace",
    "pg_type": "typnamespace = 'app'::regnamespace AND typtype <> 'm' AND typelem = 0 AND typrelid = 0",
    "pg_attribute": "attnum > 0 AND attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'app'::regnamespace"
    " AND relkind NOT IN ('S', 'i', 'I'))",
    "pg_index": "indrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'app'::regnamespace)",
    "pg_rewrite": "rulename <> '_RETURN'",
    "pg_trigger": "NOT tgisinternal",
}

_COLUMNS = """
SELECT c.relname, a.attname, format_type(a.atttypid, NULL),
       (SELECT k.attname FROM pg_attribute k WHERE k.attrelid = c.oid AND k.attnum > 0
         ORDER BY k.attname <> 'oid', k.attnum LIMIT 1)
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
 WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relkind = 'r' AND a.attname <> 'oid'
 ORDER BY 1, a.attnum"""

# Another value for a column of each type; {0} is the column, {1} its catalog, {2} a privilege.
_ANOTHER = (
    "(SELECT o.{0} FROM {1} o WHERE o.{0} <> m.{0} AND o.{0}::text NOT IN ('0', '-', '')"
    " ORDER BY o.{0}::text DESC LIMIT 1)"
)
_OTHER = {
    "boolean": "NOT m.{0}",
    "smallint": "coalesce(m.{0}, 0) + 1",
    "integer": "coalesce(m.{0}, 0) + 1",
    "bigint": "coalesce(m.{0} - 1, 1)",
    "real": "m.{0} + 1",
    "name": "'renamed'",
    "text": "coalesce(m.{0}, '') || 'x'",
    '"char"': _ANOTHER,
    "oid": _ANOTHER,
    "regproc": _ANOTHER,
    "text[]": "coalesce(m.{0}, '{{}}') || ARRAY['x=1']",
    "aclitem[]": "coalesce(m.{0}, '{{}}') || makeaclitem('rich_group'::regrole, 10, '{2}', true)",
    "timestamp with time zone": "coalesce(m.{0}, now()) + '1 day'",
}
_PRIVILEGE = {
    "pg_proc": "EXECUTE",
    "pg_class": "SELECT",
    "pg_attribute": "SELECT",
    "pg_database": "CONNECT",
    "pg_tablespace": "CREATE",
    "pg_parameter_acl": "SET",
}


def of_catalogs(connection: psycopg.Connection[Any]) -> Iterator[Mutation]:
    """Yield a change to each column of each catalog, in the last row of each kind: extensions come first."""
    for catalog, column, type_, key in connection.execute(_COLUMNS).fetchall():
        if type_ not in _OTHER or not _LEFT_OUT.isdisjoint({catalog, f"{catalog}.{column}"}):
            continue
        if column.endswith("owner"):
            other = "(SELECT oid FROM pg_roles WHERE rolname = 'rich_super')"
        else:
            other = _OTHER[type_].format(column, catalog, _PRIVILEGE.get(catalog, "USAGE"))
        kind = _KINDS.get(catalog, "''::text")
        rows = connection.execute(
            f"SELECT DISTINCT ON ({kind}) m.ctid::text, {kind}::text, m.{key}::text FROM {catalog} m"
            f" WHERE m.{key}::oid::int8 >= 16384 AND {_USERS.get(catalog, 'true')}"
            f" AND {_ONLY.get(f'{catalog}.{column}', 'true')}"
            f" AND ({other}) IS NOT NULL AND ({other})::text IS DISTINCT FROM m.{column}::text"
            " AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = m.tableoid AND d.objid = m."
            f"{key}::oid AND d.deptype = 'e') ORDER BY {kind}, m.{key}::oid::int8 DESC"
        ).fetchall()
        for ctid, of_kind, row in rows:
            yield Mutation(
                f"{catalog}.{column} {of_kind} of {row}",
                f"SET LOCAL allow_system_table_mods = on;"
                f" UPDATE {catalog} m SET {column} = {other} WHERE ctid = '{ctid}'",
            )
