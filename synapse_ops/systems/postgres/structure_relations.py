"""Queries for tables, views, sequences, and what hangs on them: constraints, indexes, triggers, rules, policies.

Each returns (name, attributes). A name that begins with `=` carries its kind already.
Columns are one text each, as in CREATE TABLE, so that a difference shows the column whole.
"""

from __future__ import annotations

from synapse_ops.systems.postgres.catalog_sql import (
    attributes,
    is_ours,
    masked_options,
    owner,
    plain_privileges,
    privileges,
    sorted_texts,
    tablespace,
)

_RELATION_NAME = "format('%I.%I', n.nspname, c.relname)"
_OURS = is_ours("n.nspname", "pg_class", "c.oid")
_FROM = "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"

_COLUMN = f"""
concat_ws(' ', quote_ident(a.attname), format_type(a.atttypid, a.atttypmod),
  CASE WHEN a.attcollation <> t.typcollation THEN 'COLLATE ' || a.attcollation::regcollation END,
  CASE WHEN a.attnotnull THEN 'NOT NULL' END,
  CASE WHEN a.attgenerated <> '' THEN 'GENERATED ' || a.attgenerated::text || ' AS ' || pg_get_expr(d.adbin, d.adrelid)
       WHEN d.adbin IS NOT NULL THEN 'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid) END,
  CASE a.attidentity WHEN 'a' THEN 'IDENTITY ALWAYS' WHEN 'd' THEN 'IDENTITY BY DEFAULT' END,
  CASE WHEN a.attstorage <> t.typstorage THEN 'STORAGE ' || a.attstorage::text END,
  CASE WHEN a.attcompression <> '' THEN 'COMPRESSION ' || a.attcompression::text END,
  CASE WHEN coalesce(a.attstattarget, -1) >= 0 THEN 'STATISTICS ' || a.attstattarget END,
  CASE WHEN a.attoptions IS NOT NULL THEN 'OPTIONS ' || ({sorted_texts("a.attoptions")})::text END,
  CASE WHEN a.attfdwoptions IS NOT NULL THEN 'FOREIGN OPTIONS ' || ({masked_options("a.attfdwoptions")})::text END,
  CASE WHEN a.attacl IS NOT NULL THEN 'PRIVILEGES ' || ({plain_privileges("a.attacl")})::text END)"""

_INHERITS = "(EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid) AND NOT c.relispartition)"

_COLUMNS = f"""(
SELECT to_jsonb(array_agg(column_text ORDER BY position, column_text COLLATE "C")) FROM (
  SELECT {_COLUMN} AS column_text, CASE WHEN {_INHERITS} THEN 0 ELSE a.attnum END AS position
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) listed)"""

_RELATIONS = f"""
SELECT '=' || CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'c' THEN 'type'
                             WHEN 'f' THEN 'foreign table' ELSE 'table' END || ': ' || {_RELATION_NAME},
       {
    attributes(
        owner=owner("c.relowner"),
        privileges=f"CASE WHEN c.relkind = 'c' THEN {privileges('ty.typacl', 'T', 'c.relowner')}"
        f" ELSE {privileges('c.relacl', 'r', 'c.relowner')} END",
        persistence="c.relpersistence",
        columns=_COLUMNS,
        local_columns=f"CASE WHEN {_INHERITS} THEN (SELECT jsonb_agg(a.attname ORDER BY a.attname)"
        " FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attislocal AND NOT a.attisdropped) END",
        options=sorted_texts("c.reloptions"),
        toast_options=f"(SELECT {sorted_texts('toast.reloptions')} FROM pg_class toast"
        " WHERE toast.oid = c.reltoastrelid)",
        tablespace=tablespace("c.reltablespace"),
        access_method="(SELECT amname FROM pg_am WHERE oid = c.relam)",
        replica_identity="c.relreplident",
        row_security="c.relrowsecurity",
        force_row_security="c.relforcerowsecurity",
        of_type="CASE WHEN c.reloftype <> 0 THEN format_type(c.reloftype, NULL) END",
        partition_key="CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END",
        partition_bound="pg_get_expr(c.relpartbound, c.oid)",
        parents="(SELECT jsonb_agg(i.inhparent::regclass::text ORDER BY i.inhseqno) FROM pg_inherits i"
        " WHERE i.inhrelid = c.oid)",
        foreign_server="(SELECT s.srvname FROM pg_foreign_table f JOIN pg_foreign_server s ON s.oid = f.ftserver"
        " WHERE f.ftrelid = c.oid)",
        foreign_options=f"(SELECT {masked_options('f.ftoptions')} FROM pg_foreign_table f WHERE f.ftrelid = c.oid)",
        definition="CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END",
    )
}
  {_FROM} LEFT JOIN pg_type ty ON ty.oid = c.reltype
 WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm', 'c') AND {_OURS}"""

_SEQUENCES = f"""
SELECT {_RELATION_NAME}, {
    attributes(
        owner=owner("c.relowner"),
        privileges=privileges("c.relacl", "s", "c.relowner"),
        persistence="c.relpersistence",
        type="format_type(s.seqtypid, NULL)",
        start="s.seqstart",
        increment="s.seqincrement",
        minimum="s.seqmin",
        maximum="s.seqmax",
        cache="s.seqcache",
        cycle="s.seqcycle",
        owned_by="(SELECT format('%s.%I', d.refobjid::regclass, a.attname) FROM pg_depend d JOIN pg_attribute a"
        " ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid WHERE d.classid = 'pg_class'::regclass"
        " AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i'))",
    )
}
  {_FROM} JOIN pg_sequence s ON s.seqrelid = c.oid WHERE {_OURS}"""

_CONSTRAINTS = f"""
SELECT format('%s.%I', c.oid::regclass, k.conname), {
    attributes(
        statement="pg_get_constraintdef(k.oid)",
        validated="k.convalidated",
        inheritable="CASE WHEN k.contype = 'c' THEN NOT k.connoinherit END",
        local=f"CASE WHEN k.contype = 'c' AND {_INHERITS} THEN k.conislocal END",
    )
}
  FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE {_OURS} AND k.contype <> 't' AND NOT (k.contype = 'f' AND k.conparentid <> 0)
UNION ALL
SELECT format('%s.%I', t.oid::regtype, k.conname),
       {attributes(statement="pg_get_constraintdef(k.oid)", validated="k.convalidated")}
  FROM pg_constraint k JOIN pg_type t ON t.oid = k.contypid JOIN pg_namespace n ON n.oid = t.typnamespace
 WHERE {is_ours("n.nspname", "pg_type", "t.oid")}"""

_INDEXES = f"""
SELECT {_RELATION_NAME}, {
    attributes(
        statement="pg_get_indexdef(c.oid)",
        valid="x.indisvalid",
        replica_identity="x.indisreplident",
        clustered="x.indisclustered",
        tablespace=tablespace("c.reltablespace"),
        statistics="(SELECT jsonb_agg(format('%s: %s', a.attnum, a.attstattarget) ORDER BY a.attnum)"
        " FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attstattarget >= 0)",
        parent="(SELECT i.inhparent::regclass::text FROM pg_inherits i WHERE i.inhrelid = c.oid)",
    )
}
  {_FROM} JOIN pg_index x ON x.indexrelid = c.oid JOIN pg_class o ON o.oid = x.indrelid
 WHERE {is_ours("n.nspname", "pg_class", "o.oid")} AND (x.indisvalid OR o.relkind = 'p')"""

_TRIGGERS = f"""
SELECT format('%s.%I', c.oid::regclass, g.tgname),
       {attributes(statement="pg_get_triggerdef(g.oid)", enabled="g.tgenabled")}
  FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE NOT g.tgisinternal AND {_OURS}"""

_RULES = f"""
SELECT format('%s.%I', c.oid::regclass, r.rulename),
       {attributes(definition="pg_get_ruledef(r.oid)", enabled="r.ev_enabled")}
  FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE r.rulename <> '_RETURN' AND {_OURS}"""

_POLICIES = f"""
SELECT format('%s.%I', c.oid::regclass, p.polname), {
    attributes(
        command="p.polcmd",
        permissive="p.polpermissive",
        roles="(SELECT jsonb_agg(name ORDER BY name) FROM (SELECT CASE role WHEN 0 THEN 'public' ELSE"
        " pg_get_userbyid(role) END AS name FROM unnest(p.polroles) role) named)",
        using="pg_get_expr(p.polqual, p.polrelid)",
        check="pg_get_expr(p.polwithcheck, p.polrelid)",
    )
}
  FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE {_OURS}"""

_STATISTICS = f"""
SELECT format('%I.%I', n.nspname, s.stxname), {
    attributes(
        statement="pg_get_statisticsobjdef(s.oid)",
        owner=owner("s.stxowner"),
        target="nullif(s.stxstattarget, -1)",
    )
}
  FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace
 WHERE {is_ours("n.nspname", "pg_statistic_ext", "s.oid")}"""

RELATION_QUERIES = {
    "table": _RELATIONS,
    "sequence": _SEQUENCES,
    "constraint": _CONSTRAINTS,
    "index": _INDEXES,
    "trigger": _TRIGGERS,
    "rule": _RULES,
    "policy": _POLICIES,
    "statistics": _STATISTICS,
}
