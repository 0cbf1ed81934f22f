"""Pieces of SQL that the structure's queries share. Each takes SQL expressions and returns one."""

from __future__ import annotations

# Names of options whose value must not be shown; a user mapping's user is one half of a credential.
_SECRET_OPTION = "(pass|secret|key|token|credential|user)"  # noqa: S105 - a pattern, not a secret


def attributes(**pairs: str) -> str:
    """Return a jsonb object of the given expressions, without those that are null."""
    listed = ", ".join(f"'{name}', {expression}" for name, expression in pairs.items())
    return f"jsonb_strip_nulls(jsonb_build_object({listed}))"


def owner(column: str) -> str:
    """Return the owner's name."""
    return f"pg_get_userbyid({column})"


def privileges(acl: str, kind: str, owner_column: str) -> str:
    """Return the privileges as sorted texts; a missing list means the built-in default, which is written out."""
    return _sorted(f"unnest(coalesce({acl}, acldefault('{kind}', {owner_column})))")


def plain_privileges(acl: str) -> str:
    """Return the privileges as sorted texts, null where there are none (columns)."""
    return f"CASE WHEN {acl} IS NOT NULL THEN {_sorted(f'unnest({acl})')} END"


def sorted_texts(array: str) -> str:
    """Return an array of texts sorted, null where it is null."""
    return f"CASE WHEN {array} IS NOT NULL THEN {_sorted(f'unnest({array})')} END"


def _sorted(rows: str) -> str:
    return f'to_jsonb(ARRAY(SELECT item::text FROM {rows} AS given(item) ORDER BY item::text COLLATE "C"))'


def masked_options(options: str) -> str:
    """Return foreign-data options as sorted `name=value`, with values that look like secrets masked."""
    shown = f"CASE WHEN option_name ~* '{_SECRET_OPTION}' THEN '***' ELSE option_value END"
    rows = f"SELECT option_name || '=' || {shown} FROM pg_options_to_table({options}) ORDER BY 1"
    return f"CASE WHEN {options} IS NOT NULL THEN to_jsonb(ARRAY({rows})) END"


def is_ours(namespace: str, catalog: str, oid: str) -> str:
    """Return the condition that an object is the user's: in no system schema, and of no extension."""
    return f"{namespace} !~ '^pg_' AND {namespace} <> 'information_schema' AND {not_of_extension(catalog, oid)}"


def is_created(catalog: str, oid: str) -> str:
    """Return the condition that an object outside schemas was made after initdb, and by no extension."""
    return f"{oid} >= 16384 AND {not_of_extension(catalog, oid)}"


def not_of_extension(catalog: str, oid: str) -> str:
    """Return the condition that an object is not a member of an extension."""
    return (
        "NOT EXISTS (SELECT FROM pg_depend member WHERE member.deptype = 'e'"
        f" AND member.classid = '{catalog}'::regclass AND member.objid = {oid})"
    )


def function(oid: str) -> str:
    """Return a function's signature, null for none."""
    return f"nullif({oid}, 0)::regprocedure::text"


def tablespace(oid: str) -> str:
    """Return a tablespace's name, null for the default one."""
    return f"(SELECT spcname FROM pg_tablespace WHERE oid = {oid})"
