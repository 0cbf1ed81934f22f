"""Which expression gives different values of a column different hashes, on any server.

Values differ here when their text forms do, because text is what a dump carries. PostgreSQL's own hash follows
equality, which is coarser: 1.0 equals 1.00 in numeric, -0 equals 0 in float, '1 mon' equals '30 days', a
case-insensitive collation makes 'A' equal 'a', {1} hashes as {{1}}. And it follows oids, which a restore gives anew to
enum labels, tables and roles. The binary form is finer for some types: a NaN has a sign, an array remembers that it
once held a null. So a column is hashed as it is, or by its binary form (cheap), only when its type is known to agree
with its text in this; otherwise by its text form. Measured on 1.5 million rows with numeric, float8 and jsonb: 0.67 s
as they are, 0.75 s with binary forms of numeric and float8, 1.04 s with the text of jsonb as well, against 1.5 s for
the dump.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from synapse_ops.domain.database.fingerprint import METHOD

# Equality is identity of the stored value, and the hash covers all of it. jsonb is not here: it holds numerics.
_EXACT = frozenset(
    {"bool", "char", "name", "int2", "int4", "int8", "text", "varchar", "bytea", "oid", "tid", "xid", "xid8", "cid"}
    | {"oidvector", "date", "time", "timetz", "timestamp", "timestamptz", "uuid", "inet", "cidr", "macaddr", "macaddr8"}
    | {"pg_lsn", "int4range", "int8range", "daterange", "tsrange", "tstzrange"}
    | {"int4multirange", "int8multirange", "datemultirange", "tsmultirange", "tstzmultirange"}
)
# The binary form says what the text form says, free of oids and of settings.
_BINARY = frozenset(
    {"numeric", "interval", "money", "bit", "varbit", "bpchar", "int2vector", "tsvector", "json", "jsonpath"}
    | {"txid_snapshot", "pg_snapshot"}
)
_FLOATS = frozenset({"float4", "float8"})  # the text form of a NaN has neither its sign nor its payload
# Binary forms that hold more than a dump carries: method 2 hashed them, and false alarms were its price.
_BINARY_OF_METHOD_2 = _BINARY | _FLOATS | {"tsquery", "point", "lseg", "path", "box", "polygon", "line", "circle"}
# Hash functions that SQL may call on such a column; those of bool, bytea, date and timestamptz are declared for others.
_CALLABLE = {
    **{name: f"hash{name}extended" for name in ("int2", "int4", "int8", "oid", "name", "char", "text", "bpchar")},
    **{name: f"hash{name}extended" for name in ("macaddr", "macaddr8", "inet")},
    **{name: f"{name}_hash_extended" for name in ("uuid", "timestamp", "time", "timetz", "pg_lsn")},
    "varchar": "hashtextextended",
    "cidr": "hashinetextended",
    "numeric": "hash_numeric_extended",
}
CHAINED_COLUMNS = 64  # the parser follows a chain by recursion, within the server's max_stack_depth
NULL_HASH = 1
_COLLATED = frozenset({"text", "varchar", "bpchar", "name"})
# Binary forms of arrays name the element type by oid: only built-in ones have the same oid everywhere.
_ARRAY_BINARY = (_EXACT | _BINARY) - {"json"}
_ARRAY_BINARY_OF_METHOD_2 = (_EXACT | _BINARY_OF_METHOD_2) - {"json"}
_HAS_NULLS = 7  # last byte of the second word of an array's binary form: set, and kept when the last null is replaced


@dataclass(frozen=True, slots=True)
class TypeFacts:
    """One row of pg_type: schema, name, typtype, what it is made of, and its output functions as SQL names.

    output: "" where the function takes another type. base: of a domain. element: of a true array, 0 otherwise.
    type_modifier: of a domain, -1 otherwise.
    """

    schema: str
    name: str
    kind: str
    base: int
    element: int
    type_modifier: int
    output: str
    send: str


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """One live column: `name` quoted; `is_deterministic` of its collation, True where it has none.

    is_generated: computed from other columns, so that no dump carries its values.
    """

    name: str
    type_oid: int
    type_modifier: int
    is_deterministic: bool
    is_generated: bool = False


def column_expression(column: ColumnFacts, types: Mapping[int, TypeFacts], method: int = METHOD) -> str:
    """Return the SQL whose hash differs for any two different values; the column's own name when it is exact.

    types: by oid, all but composite ones, which are given as text. method: 2 to compare with what method 2 hashed.
    """
    facts, modifier = _base(column, types)
    if facts is None:  # composite: the text form of a record holds that of every field
        return f"pg_catalog.record_out({column.name})::text"
    if facts.element:
        return _array_expression(column.name, types.get(facts.element), method)
    if facts.schema == "pg_catalog":
        has_scale = facts.name in {"numeric", "bpchar"} and modifier >= 0
        if has_scale or facts.name in _EXACT:
            needs_bytes = facts.name in _COLLATED and not column.is_deterministic
            return f'{column.name} COLLATE "C"' if needs_bytes else column.name
        if facts.name in (_BINARY if method > 2 else _BINARY_OF_METHOD_2):
            return f"{facts.send}({column.name})"
        if facts.name in _FLOATS:
            nan = f"'NaN'::pg_catalog.{facts.name}"
            return f"{facts.send}(CASE WHEN {column.name} = {nan} THEN {nan} ELSE {column.name} END)"
    if not facts.output:  # the function is made for another type, to which this one is an alias
        return f"{column.name}::text"
    return f"{facts.output}({column.name})::text"


def _base(column: ColumnFacts, types: Mapping[int, TypeFacts]) -> tuple[TypeFacts | None, int]:
    """Return the type below all domains, None for a composite one, and the modifier that applies."""
    facts, modifier = types.get(column.type_oid), column.type_modifier
    while facts is not None and facts.kind == "d":
        modifier = facts.type_modifier if modifier < 0 else modifier
        facts = types.get(facts.base)
    return facts, modifier


def _array_expression(name: str, element: TypeFacts | None, method: int) -> str:
    text = f"pg_catalog.array_out({name})::text"
    if element is None or element.schema != "pg_catalog":
        return text
    if method == 2:
        return f"pg_catalog.array_send({name})" if element.name in _ARRAY_BINARY_OF_METHOD_2 else text
    binary = f"pg_catalog.set_byte(pg_catalog.array_send({name}), {_HAS_NULLS}, 0)"
    if element.name in _FLOATS:
        nan = f"'NaN'::pg_catalog.{element.name}"
        return f"CASE WHEN {nan} = ANY ({name}) THEN pg_catalog.textsend({text}) ELSE {binary} END"
    return binary if element.name in _ARRAY_BINARY else text


def given_row_expression(
    columns: Sequence[ColumnFacts], types: Mapping[int, TypeFacts], *, keeps_order: bool, method: int = METHOD
) -> str | None:
    """Return the hash of what was given, without the generated columns; None for a table that has none.

    Functions of generated columns are replaced without the rows: this tells such a table from one that was damaged.
    """
    given = [column for column in columns if not column.is_generated]
    if method == 2 or len(given) in {0, len(columns)}:
        return None
    return row_expression(given, types, keeps_order=keeps_order, is_whole_table=False, method=method)


def row_expression(
    columns: Sequence[ColumnFacts],
    types: Mapping[int, TypeFacts],
    *,
    keeps_order: bool,
    is_whole_table: bool = True,
    method: int = METHOD,
) -> str:
    """Return the bigint hash of one row of a table with the alias `t`, in which no column is merely added to another.

    keeps_order: whether a restore keeps the order of the columns. It does not for tables that inherit: their inherited
    columns come first, so they are hashed in the order of their names. is_whole_table: `columns` are all that it has.
    """
    ordered = sorted(columns, key=lambda column: column.name) if not keeps_order else list(columns)
    # Qualified, and the row as t.*: a table may have a column named t.
    named = [replace(column, name=f"t.{column.name}") for column in ordered]
    chained: list[str] = []
    others: list[str] = []
    for column in named:
        expression = column_expression(column, types, method)
        function = _function(column, expression, types)
        if function and len(chained) < CHAINED_COLUMNS:
            chained.append(f"coalesce(pg_catalog.{function}({expression}, 0), {NULL_HASH})")
        else:
            others.append(expression)
    is_whole = is_whole_table and keeps_order and others == [column.name for column in named]
    record = "t.*" if is_whole else f"ROW({', '.join(others)})"
    hashed = f"pg_catalog.hash_record_extended({record}, 0)" if others or not chained else chained.pop()
    whole = f"pg_catalog.hashint8extended({hashed}, 0)"
    for one in reversed(chained):
        whole = f"pg_catalog.hashint8extended({one}, {whole})"
    return whole


def _function(column: ColumnFacts, expression: str, types: Mapping[int, TypeFacts]) -> str | None:
    """Return the name of the hash function that SQL can call on the column's expression, if there is one."""
    if expression.endswith("::text"):
        return _CALLABLE["text"]
    if expression not in {column.name, f'{column.name} COLLATE "C"'}:
        return None
    facts, _ = _base(column, types)
    return _CALLABLE.get(facts.name) if facts is not None else None
