"""Queries for the database itself, for what is said of other objects, and for what belongs to the whole server.

Each returns (name, attributes). The database's own name is in no entry: a restore may give it another.
"""

from __future__ import annotations

from synapse_ops.systems.postgres.catalog_sql import (
    attributes,
    is_created,
    not_of_extension,
    owner,
    privileges,
    sorted_texts,
    tablespace,
)

_OWN_SETTING = "synapse_ops."  # our generation token is not part of what is backed up

_DATABASE = f"""
SELECT 'this', {
    attributes(
        owner=owner("d.datdba"),
        privileges=privileges("d.datacl", "d", "d.datdba"),
        encoding="pg_encoding_to_char(d.encoding)",
        collate="d.datcollate",
        ctype="d.datctype",
        provider="d.datlocprovider",
        locale="coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale')",
        locale_rules="to_jsonb(d) ->> 'daticurules'",
        connection_limit="d.datconnlimit",
        allows_connections="d.datallowconn",
        is_template="d.datistemplate",
        tablespace=f"nullif({tablespace('d.dattablespace')}, 'pg_default')",
        comment="shobj_description(d.oid, 'pg_database')",
    )
} FROM pg_database d WHERE d.datname = current_database()"""

_SETTINGS = f"""
SELECT CASE s.setrole WHEN 0 THEN 'database' ELSE 'role ' || quote_ident(pg_get_userbyid(s.setrole)) END || ' '
       || split_part(given, '=', 1),
       {attributes(value="substr(given, strpos(given, '=') + 1)")}
  FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) given
 WHERE d.datname = current_database() AND NOT starts_with(given, '{_OWN_SETTING}')"""

_SCHEMAS = f"""
SELECT quote_ident(n.nspname),
       {attributes(owner=owner("n.nspowner"), privileges=privileges("n.nspacl", "n", "n.nspowner"))}
  FROM pg_namespace n
 WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND {not_of_extension("pg_namespace", "n.oid")}"""

_EXTENSIONS = f"""
SELECT quote_ident(x.extname), {attributes(schema="n.nspname")}
  FROM pg_extension x JOIN pg_namespace n ON n.oid = x.extnamespace"""

_EXTENSION_DEPENDENCIES = f"""
SELECT format('%s %s', i.type, i.identity),
       {attributes(extensions="jsonb_agg(x.extname ORDER BY x.extname)")}
  FROM pg_depend d JOIN pg_extension x ON d.refclassid = 'pg_extension'::regclass AND x.oid = d.refobjid,
       pg_identify_object(d.classid, d.objid, d.objsubid) i
 WHERE d.deptype = 'x' GROUP BY 1"""

_EVENT_TRIGGERS = f"""
SELECT quote_ident(e.evtname), {
    attributes(
        owner=owner("e.evtowner"),
        event="e.evtevent",
        function="e.evtfoid::regprocedure::text",
        enabled="e.evtenabled",
        tags=sorted_texts("e.evttags"),
    )
} FROM pg_event_trigger e WHERE {is_created("pg_event_trigger", "e.oid")}"""

_PUBLICATIONS = f"""
SELECT quote_ident(p.pubname), {
    attributes(
        owner=owner("p.pubowner"),
        facts="to_jsonb(p) - '{oid,pubname,pubowner}'::text[]",
        tables="(SELECT jsonb_agg(concat_ws(' ', r.prrelid::regclass, (SELECT array_agg(a.attname ORDER BY a.attname)"
        " FROM pg_attribute a WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs)),"
        " 'WHERE ' || pg_get_expr(r.prqual, r.prrelid))"
        ' ORDER BY r.prrelid::regclass::text COLLATE "C")'
        " FROM pg_publication_rel r WHERE r.prpubid = p.oid)",
        schemas="(SELECT jsonb_agg(n.nspname ORDER BY n.nspname) FROM pg_publication_namespace r"
        " JOIN pg_namespace n ON n.oid = r.pnnspid WHERE r.pnpubid = p.oid)",
    )
} FROM pg_publication p"""

_SUBSCRIPTIONS = f"""
SELECT quote_ident(s.subname), {
    attributes(
        owner=owner("s.subowner"),
        publications=sorted_texts("s.subpublications"),
        facts="to_jsonb(s) - '{oid,subdbid,subname,subowner,subconninfo,subenabled,subskiplsn,subtwophasestate,"
        "subpublications}'::text[]",
    )
} FROM pg_subscription s WHERE s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())"""

_DEFAULT_PRIVILEGES = f"""
SELECT format('%I %s %s', pg_get_userbyid(d.defaclrole),
              coalesce('in schema ' || (SELECT quote_ident(nspname) FROM pg_namespace WHERE oid = d.defaclnamespace),
                       'everywhere'), d.defaclobjtype),
       {attributes(privileges=sorted_texts("d.defaclacl"))}
  FROM pg_default_acl d"""

_INFORMATION = "coalesce(to_regnamespace('information_schema'), 0::oid)"  # pg_dump never looks into it

# Objects of initdb, and of extensions in version 1, whose privileges were changed later: pg_dump carries the change.
_CHANGED_PRIVILEGES = "\nUNION ALL".join(
    f"""
SELECT format('%s %s', i.type, i.identity), {attributes(privileges=privileges(f"o.{acl}", kind, f"o.{role}"))}
  FROM {catalog} o LEFT JOIN pg_init_privs p
       ON p.classoid = '{catalog}'::regclass AND p.objoid = o.oid AND p.objsubid = 0,
       pg_identify_object('{catalog}'::regclass, o.oid, 0) i
 WHERE (o.oid < 16384 OR NOT {not_of_extension(catalog, "o.oid")}) AND o.{acl} IS NOT NULL {condition}
   AND {sorted_texts(f"o.{acl}")} <> {privileges("p.initprivs", kind, f"o.{role}")}"""
    for catalog, acl, role, kind, condition in (
        ("pg_class", "relacl", "relowner", "r", f"AND o.relkind <> 'S' AND o.relnamespace <> {_INFORMATION}"),
        ("pg_proc", "proacl", "proowner", "f", f"AND o.pronamespace <> {_INFORMATION}"),
        ("pg_type", "typacl", "typowner", "T", f"AND o.typnamespace <> {_INFORMATION}"),
        ("pg_language", "lanacl", "lanowner", "l", ""),
        ("pg_namespace", "nspacl", "nspowner", "n", "AND o.nspname NOT IN ('public', 'information_schema')"),
        ("pg_foreign_data_wrapper", "fdwacl", "fdwowner", "F", ""),
    )
)

_COMMENTS = f"""
SELECT format('%s %s', i.type, i.identity), {attributes(text="d.description")}
  FROM pg_description d, pg_identify_object(d.classoid, d.objoid, d.objsubid) i
 WHERE (d.objoid >= 16384 OR (d.classoid = 'pg_namespace'::regclass AND d.objoid = to_regnamespace('public')))
   AND i.identity IS NOT NULL  -- a subscription's comment survives it
   AND NOT EXISTS (SELECT FROM pg_depend member WHERE member.deptype = 'e' AND member.classid = d.classoid
                                                  AND member.objid = d.objoid)"""

_SECURITY_LABELS = f"""
SELECT format('%s %s by %s', i.type, i.identity, l.provider), {attributes(label="l.label")}
  FROM pg_seclabel l, pg_identify_object(l.classoid, l.objoid, l.objsubid) i"""

_ROLES = f"""
SELECT quote_ident(r.rolname), {
    attributes(
        facts="to_jsonb(r) - '{oid,rolname,rolpassword}'::text[]",
        settings=f"(SELECT {sorted_texts('s.setconfig')} FROM pg_db_role_setting s"
        " WHERE s.setrole = r.oid AND s.setdatabase = 0)",
        member_of="(SELECT jsonb_agg(to_jsonb(m) - '{oid,roleid,member,grantor}'::text[] || jsonb_build_object('role',"
        " pg_get_userbyid(m.roleid), 'grantor', pg_get_userbyid(m.grantor)) ORDER BY pg_get_userbyid(m.roleid),"
        " pg_get_userbyid(m.grantor)) FROM pg_auth_members m WHERE m.member = r.oid)",
        comment="shobj_description(r.oid, 'pg_authid')",
    )
} FROM pg_authid r WHERE r.rolname !~ '^pg_'"""

_TABLESPACES = f"""
SELECT quote_ident(t.spcname), {
    attributes(
        owner=owner("t.spcowner"),
        privileges=privileges("t.spcacl", "t", "t.spcowner"),
        options=sorted_texts("t.spcoptions"),
        comment="shobj_description(t.oid, 'pg_tablespace')",
    )
} FROM pg_tablespace t WHERE t.oid >= 16384"""

_PARAMETER_PRIVILEGES = f"""
SELECT p.parname, {attributes(privileges=sorted_texts("p.paracl"))} FROM pg_parameter_acl p"""

# Version 2 compares those of extensions whole.
CHANGED_PRIVILEGES_OF_INITDB = _CHANGED_PRIVILEGES.replace("(o.oid < 16384 OR NOT ", "(o.oid < 16384 AND ")

DATABASE_QUERIES = {
    "database": _DATABASE,
    "setting": _SETTINGS,
    "schema": _SCHEMAS,
    "extension": _EXTENSIONS,
    "extension dependency": _EXTENSION_DEPENDENCIES,
    "event trigger": _EVENT_TRIGGERS,
    "publication": _PUBLICATIONS,
    "subscription": _SUBSCRIPTIONS,
    "default privileges": _DEFAULT_PRIVILEGES,
    "changed privileges": _CHANGED_PRIVILEGES,
    "comment": _COMMENTS,
    "security label": _SECURITY_LABELS,
}

_SETTINGS_OF_ALL_ROLES = f"""
SELECT split_part(given, '=', 1), {attributes(value="substr(given, strpos(given, '=') + 1)")}
  FROM pg_db_role_setting s, unnest(s.setconfig) given
 WHERE s.setrole = 0 AND s.setdatabase = 0 AND NOT starts_with(given, '{_OWN_SETTING}')"""

# The kinds are those of domain.structure.SHARED_KINDS.
SHARED_QUERIES = {
    "role": _ROLES,
    "tablespace": _TABLESPACES,
    "parameter privileges": _PARAMETER_PRIVILEGES,
    "setting of all roles": _SETTINGS_OF_ALL_ROLES,
}
