"""Queries for what is programmed and defined: functions, operators, types, casts, languages, text search, foreign data.

Each returns (name, attributes). A name that begins with `=` carries its kind already.
"""

from __future__ import annotations

from synapse_ops.systems.postgres.catalog_sql import (
    attributes,
    function,
    is_created,
    is_ours,
    masked_options,
    owner,
    privileges,
)


def _in_schema(catalog: str, alias: str, prefix: str) -> str:
    """Return FROM and WHERE of a catalog whose objects live in schemas."""
    namespace = f"{alias}.{prefix}namespace"
    ours = is_ours("n.nspname", catalog, f"{alias}.oid")
    return f"FROM {catalog} {alias} JOIN pg_namespace n ON n.oid = {namespace} WHERE {ours}"


def _named_in_schema(catalog: str, alias: str, prefix: str, **columns: str) -> str:
    """Return a whole query: the objects of a catalog by their qualified names."""
    return (
        f"SELECT format('%I.%I', n.nspname, {alias}.{prefix}name), {attributes(**columns)}\n"
        f"  {_in_schema(catalog, alias, prefix)}"
    )


def _named(catalog: str, alias: str, prefix: str, **columns: str) -> str:
    """Return a whole query: objects of the database that live in no schema, those that came with it left out."""
    return (
        f"SELECT quote_ident({alias}.{prefix}name), {attributes(**columns)}\n"
        f"  FROM {catalog} {alias} WHERE {is_created(catalog, f'{alias}.oid')}"
    )


_FUNCTIONS = f"""
SELECT '=' || CASE p.prokind WHEN 'p' THEN 'procedure' WHEN 'a' THEN 'aggregate' ELSE 'function' END
       || ': ' || p.oid::regprocedure, {
    attributes(
        owner=owner("p.proowner"),
        privileges=privileges("p.proacl", "f", "p.proowner"),
        definition="CASE WHEN p.prokind <> 'a' THEN pg_get_functiondef(p.oid) END",
        arguments="CASE WHEN p.prokind = 'a' THEN pg_get_function_arguments(p.oid) END",
        result="CASE WHEN p.prokind = 'a' THEN pg_get_function_result(p.oid) END",
        parallel="CASE WHEN p.prokind = 'a' THEN p.proparallel END",
        aggregate="(SELECT to_jsonb(a) - '{aggfnoid,aggtranstype,aggmtranstype,aggsortop}'::text[]"
        " || jsonb_build_object('transtype', format_type(a.aggtranstype, NULL),"
        " 'mtranstype', nullif(a.aggmtranstype, 0)::regtype::text, 'sortop', nullif(a.aggsortop, 0)::regoperator::text)"
        " FROM pg_aggregate a WHERE a.aggfnoid = p.oid)",
    )
} {_in_schema("pg_proc", "p", "pro")}"""

_OPERATORS = f"""
SELECT o.oid::regoperator::text, {
    attributes(
        owner=owner("o.oprowner"),
        function=function("o.oprcode"),
        commutator="nullif(o.oprcom, 0)::regoperator::text",
        negator="nullif(o.oprnegate, 0)::regoperator::text",
        restriction=function("o.oprrest"),
        join=function("o.oprjoin"),
        merges="o.oprcanmerge",
        hashes="o.oprcanhash",
    )
} {_in_schema("pg_operator", "o", "opr")} AND o.oprcode <> 0"""

_OPERATOR_CLASSES = f"""
SELECT format('%I.%I using %I', n.nspname, o.opcname, (SELECT amname FROM pg_am WHERE oid = o.opcmethod)), {
    attributes(
        owner=owner("o.opcowner"),
        type="format_type(o.opcintype, NULL)",
        storage="nullif(o.opckeytype, 0)::regtype::text",
        default="o.opcdefault",
        family="(SELECT format('%I.%I', fn.nspname, f.opfname) FROM pg_opfamily f JOIN pg_namespace fn"
        " ON fn.oid = f.opfnamespace WHERE f.oid = o.opcfamily)",
    )
} {_in_schema("pg_opclass", "o", "opc")}"""

_OPERATOR_FAMILIES = f"""
SELECT format('%I.%I using %I', n.nspname, o.opfname, (SELECT amname FROM pg_am WHERE oid = o.opfmethod)), {
    attributes(
        owner=owner("o.opfowner"),
        operators="(SELECT jsonb_agg(format('%s %s %s %s', m.amopstrategy, m.amopopr::regoperator, m.amoppurpose,"
        " (SELECT s.opfname FROM pg_opfamily s WHERE s.oid = m.amopsortfamily))"
        ' ORDER BY m.amopstrategy, m.amopopr::regoperator::text COLLATE "C")'
        " FROM pg_amop m WHERE m.amopfamily = o.oid)",
        functions="(SELECT jsonb_agg(format('%s %s (%s, %s)', m.amprocnum, m.amproc::oid::regprocedure,"
        " m.amproclefttype::regtype, m.amprocrighttype::regtype)"
        ' ORDER BY m.amprocnum, m.amproc::oid::regprocedure::text COLLATE "C", m.amproclefttype::regtype::text'
        ' COLLATE "C", m.amprocrighttype::regtype::text COLLATE "C") FROM pg_amproc m WHERE m.amprocfamily = o.oid)',
    )
} {_in_schema("pg_opfamily", "o", "opf")}"""

_TYPES = f"""
SELECT '=' || CASE t.typtype WHEN 'd' THEN 'domain' ELSE 'type' END || ': ' || format('%I.%I', n.nspname, t.typname), {
    attributes(
        owner=owner("t.typowner"),
        privileges=privileges("t.typacl", "T", "t.typowner"),
        kind="t.typtype",
        defined="t.typisdefined",
        labels="(SELECT jsonb_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid)",
        base="CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) END",
        not_null="CASE WHEN t.typtype = 'd' THEN t.typnotnull END",
        default="coalesce(pg_get_expr(t.typdefaultbin, 0), t.typdefault)",
        collation="nullif(t.typcollation, 0)::regcollation::text",
        range="(SELECT jsonb_build_object('subtype', format_type(r.rngsubtype, NULL), 'collation',"
        " nullif(r.rngcollation, 0)::regcollation::text, 'canonical',"
        " nullif(r.rngcanonical::oid, 0)::regprocedure::text, 'difference',"
        " nullif(r.rngsubdiff::oid, 0)::regprocedure::text, 'multirange', r.rngmultitypid::regtype::text,"
        " 'operator_class', (SELECT oc.opcname FROM pg_opclass oc WHERE oc.oid = r.rngsubopc))"
        " FROM pg_range r WHERE r.rngtypid = t.oid)",
        base_type="CASE WHEN t.typtype = 'b' AND t.typisdefined THEN jsonb_build_object('length', t.typlen, 'by_value',"
        " t.typbyval, 'alignment', t.typalign, 'storage', t.typstorage, 'category', t.typcategory, 'preferred',"
        " t.typispreferred, 'delimiter', t.typdelim, 'input', t.typinput, 'output', t.typoutput, 'receive',"
        " t.typreceive, 'send', t.typsend, 'modifier_in', t.typmodin, 'modifier_out', t.typmodout, 'analyze',"
        " t.typanalyze, 'subscript', t.typsubscript, 'element', nullif(t.typelem, 0)::regtype::text) END",
    )
} {_in_schema("pg_type", "t", "typ")} AND t.typrelid = 0 AND t.typtype <> 'm'
   AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)"""

_CASTS = f"""
SELECT format('%s as %s', format_type(c.castsource, NULL), format_type(c.casttarget, NULL)),
       {attributes(function=function("c.castfunc"), context="c.castcontext", method="c.castmethod")}
  FROM pg_cast c WHERE {is_created("pg_cast", "c.oid")}"""

_CONVERSIONS = _named_in_schema(
    "pg_conversion",
    "c",
    "con",
    owner=owner("c.conowner"),
    source="pg_encoding_to_char(c.conforencoding)",
    target="pg_encoding_to_char(c.contoencoding)",
    function="c.conproc::text",
    default="c.condefault",
)

_COLLATIONS = _named_in_schema(
    "pg_collation",
    "c",
    "coll",
    owner=owner("c.collowner"),
    facts="to_jsonb(c) - '{oid,collname,collnamespace,collowner,collversion}'::text[]",
)

_LANGUAGES = _named(
    "pg_language",
    "l",
    "lan",
    owner=owner("l.lanowner"),
    privileges=privileges("l.lanacl", "l", "l.lanowner"),
    trusted="l.lanpltrusted",
    handler=function("l.lanplcallfoid"),
    inline=function("l.laninline"),
    validator=function("l.lanvalidator"),
)

_ACCESS_METHODS = _named("pg_am", "a", "am", handler="a.amhandler::text", kind="a.amtype")

_TRANSFORMS = f"""
SELECT format('%s language %I', t.trftype::regtype, (SELECT lanname FROM pg_language WHERE oid = t.trflang)),
       {attributes(from_sql=function("t.trffromsql"), to_sql=function("t.trftosql"))}
  FROM pg_transform t WHERE {is_created("pg_transform", "t.oid")}"""

_TEXT_SEARCH_PARSERS = _named_in_schema(
    "pg_ts_parser", "p", "prs", functions="to_jsonb(p) - '{oid,prsname,prsnamespace}'::text[]"
)

_TEXT_SEARCH_TEMPLATES = _named_in_schema(
    "pg_ts_template", "t", "tmpl", functions="to_jsonb(t) - '{oid,tmplname,tmplnamespace}'::text[]"
)

_TEXT_SEARCH_DICTIONARIES = _named_in_schema(
    "pg_ts_dict",
    "d",
    "dict",
    owner=owner("d.dictowner"),
    template="(SELECT format('%I.%I', tn.nspname, t.tmplname) FROM pg_ts_template t JOIN pg_namespace tn"
    " ON tn.oid = t.tmplnamespace WHERE t.oid = d.dicttemplate)",
    options="d.dictinitoption",
)

_TEXT_SEARCH_CONFIGURATIONS = _named_in_schema(
    "pg_ts_config",
    "c",
    "cfg",
    owner=owner("c.cfgowner"),
    parser="(SELECT prsname FROM pg_ts_parser WHERE oid = c.cfgparser)",
    mappings="(SELECT jsonb_agg(format('%s %s', m.maptokentype, m.mapdict::regdictionary)"
    " ORDER BY m.maptokentype, m.mapseqno) FROM pg_ts_config_map m WHERE m.mapcfg = c.oid)",
)

_WRAPPERS = _named(
    "pg_foreign_data_wrapper",
    "w",
    "fdw",
    owner=owner("w.fdwowner"),
    privileges=privileges("w.fdwacl", "F", "w.fdwowner"),
    handler=function("w.fdwhandler"),
    validator=function("w.fdwvalidator"),
    options=masked_options("w.fdwoptions"),
)

_SERVERS = _named(
    "pg_foreign_server",
    "s",
    "srv",
    owner=owner("s.srvowner"),
    privileges=privileges("s.srvacl", "S", "s.srvowner"),
    wrapper="(SELECT fdwname FROM pg_foreign_data_wrapper WHERE oid = s.srvfdw)",
    type="s.srvtype",
    version="s.srvversion",
    options=masked_options("s.srvoptions"),
)

_USER_MAPPINGS = f"""
SELECT format('%I for %s', (SELECT srvname FROM pg_foreign_server WHERE oid = m.umserver),
              CASE m.umuser WHEN 0 THEN 'public' ELSE quote_ident(pg_get_userbyid(m.umuser)) END),
       {attributes(options=masked_options("m.umoptions"))}
  FROM pg_user_mapping m"""

CODE_QUERIES = {
    "function": _FUNCTIONS,
    "operator": _OPERATORS,
    "operator class": _OPERATOR_CLASSES,
    "operator family": _OPERATOR_FAMILIES,
    "type": _TYPES,
    "cast": _CASTS,
    "conversion": _CONVERSIONS,
    "collation": _COLLATIONS,
    "language": _LANGUAGES,
    "access method": _ACCESS_METHODS,
    "transform": _TRANSFORMS,
    "text search parser": _TEXT_SEARCH_PARSERS,
    "text search template": _TEXT_SEARCH_TEMPLATES,
    "text search dictionary": _TEXT_SEARCH_DICTIONARIES,
    "text search configuration": _TEXT_SEARCH_CONFIGURATIONS,
    "foreign data wrapper": _WRAPPERS,
    "foreign server": _SERVERS,
    "user mapping": _USER_MAPPINGS,
}
