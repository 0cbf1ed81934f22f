"""Which columns are hashed as they are, and which in another form (pure: no server)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from synapse_ops.systems.postgres.row_hash import (
    CHAINED_COLUMNS,
    ColumnFacts,
    TypeFacts,
    column_expression,
    row_expression,
)

BUILT_IN = TypeFacts("pg_catalog", "int4", "b", 0, 0, -1, "int4out", "int4send")
TYPES = {
    1: BUILT_IN,
    2: replace(BUILT_IN, name="text", output="textout", send="textsend"),
    3: replace(BUILT_IN, name="numeric", output="numeric_out", send="numeric_send"),
    4: replace(BUILT_IN, name="mood", schema="app", kind="e", output="enum_out"),
    5: replace(BUILT_IN, name="price", schema="app", kind="d", base=3, type_modifier=65540),
    6: replace(BUILT_IN, name="_int4", element=1, output="array_out"),
    7: replace(BUILT_IN, name="_mood", schema="app", element=4, output="array_out"),
    8: replace(BUILT_IN, name="text", schema="app", output="app.textout"),
}
COLUMN = ColumnFacts("c", 1, -1, True)


@pytest.mark.parametrize(
    ("column", "expression"),
    [
        (COLUMN, "c"),
        (replace(COLUMN, type_oid=2), "c"),
        (replace(COLUMN, type_oid=2, is_deterministic=False), 'c COLLATE "C"'),
        (replace(COLUMN, type_oid=3), "numeric_send(c)"),
        (replace(COLUMN, type_oid=3, type_modifier=65540), "c"),
        (replace(COLUMN, type_oid=4), "enum_out(c)::text"),
        (replace(COLUMN, type_oid=5), "c"),
        (replace(COLUMN, type_oid=6), "pg_catalog.set_byte(pg_catalog.array_send(c), 7, 0)"),
        (replace(COLUMN, type_oid=7), "pg_catalog.array_out(c)::text"),
        (replace(COLUMN, type_oid=8), "app.textout(c)::text"),
        (replace(COLUMN, type_oid=99), "pg_catalog.record_out(c)::text"),
    ],
)
def test_a_column_is_hashed_in_a_form_that_tells_values_apart(column: ColumnFacts, expression: str) -> None:
    """Exact built-in types stay; a fixed scale makes numeric exact; a namesake elsewhere is another type."""
    assert column_expression(column, TYPES) == expression


def test_method_2_hashes_as_it_did() -> None:
    """A backup of former times is compared by the method that it records."""
    array, number = replace(COLUMN, type_oid=6), replace(COLUMN, type_oid=9)
    types = {**TYPES, 9: replace(BUILT_IN, name="float8", output="float8out", send="float8send")}

    assert column_expression(array, types, 2) == "pg_catalog.array_send(c)"
    assert column_expression(number, types, 2) == "float8send(c)"
    assert column_expression(number, types) != "float8send(c)"


def test_tables_that_inherit_are_hashed_in_the_order_of_names() -> None:
    """A restore puts inherited columns first, so only their names keep their order."""
    columns = [replace(COLUMN, name="b"), replace(COLUMN, name="a")]

    in_place, by_name = (row_expression(columns, TYPES, keeps_order=keeps) for keeps in (True, False))
    assert in_place.index("t.b") < in_place.index("t.a")
    assert by_name.index("t.a") < by_name.index("t.b")


def test_the_chain_of_a_wide_table_has_an_end() -> None:
    """The server parses a chain by recursion: columns beyond its length share one record, and none is left out."""
    columns = [replace(COLUMN, name=f"c{number}") for number in range(CHAINED_COLUMNS + 3)]

    expression = row_expression(columns, TYPES, keeps_order=True)

    assert expression.count("hashint4extended") == CHAINED_COLUMNS
    assert f"ROW({', '.join(f't.c{CHAINED_COLUMNS + more}' for more in range(3))})" in expression
