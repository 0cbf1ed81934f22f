"""The comparison of two fingerprints: one row, one sequence value, one large object is seen and named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from synapse_ops.domain.database.fingerprint import (
    Fingerprint,
    LargeObjects,
    SequenceBracket,
    SequencePosition,
    TableContent,
    compare,
    environment_notes,
)
from synapse_ops.errors import DocumentUnreadable


def at(value: int, *, called: bool = True) -> SequencePosition:
    return SequencePosition(value, called)


BASE = Fingerprint(
    server_major=17,
    tables={"public.t": TableContent(3, "-12"), "public.empty": TableContent(0, "0")},
    materialized_views={"public.m": True},
    sequences={"public.s": SequenceBracket(at(5), at(5))},
    large_objects={16400: LargeObjects(1, 2048, "7", "8")},
    extensions={"plpgsql": "1.0"},
    collation_versions={"database": "2.36"},
)


def test_a_fingerprint_equals_itself_through_json() -> None:
    """Canonical JSON is inverted exactly, digest included."""
    again = Fingerprint.from_json(BASE.to_json())

    assert again == BASE
    assert again.digest() == BASE.digest()
    assert compare(BASE, again) == ()
    with pytest.raises(DocumentUnreadable):
        Fingerprint.from_json(b"{}")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tables": {"public.t": TableContent(3, "-12")}}, "table public.empty: missing"),
        ({"tables": {**BASE.tables, "x": TableContent(0, "0")}}, "table x: not in the backup"),
        ({"tables": {**BASE.tables, "public.t": TableContent(2, "1")}}, "table public.t: 2 rows, expected 3"),
        (
            {"tables": {**BASE.tables, "public.t": TableContent(3, "1")}},
            "table public.t: content of its 3 rows differs",
        ),
        ({"materialized_views": {"public.m": False}}, "materialized view public.m: populated is false, expected true"),
        (
            {"sequences": {"public.s": SequenceBracket(at(5, called=False), at(5, called=False))}},
            "sequence public.s: value 5 (not called), expected 5",
        ),
        ({"large_objects": {}}, "large object 16400: missing"),
        ({"large_objects": {16400: LargeObjects(1, 2048, "0", "8")}}, "large object 16400: content differs"),
        ({"large_objects": {16400: LargeObjects(1, 2048, "7", "0")}}, "large object 16400: owner or privileges differ"),
        ({"extensions": {"plpgsql": "1.1"}}, "extension plpgsql: version 1.1, expected 1.0"),
    ],
)
def test_each_change_is_the_one_difference_named(changed: dict[str, object], words: str) -> None:
    """A change of one thing is reported as exactly that thing."""
    assert compare(BASE, replace(BASE, **changed)) == (words,)  # type: ignore[arg-type]


@pytest.mark.parametrize(("restored", "is_allowed"), [(4, False), (5, True), (7, True), (9, True), (10, False)])
def test_a_sequence_in_use_is_restored_between_its_two_readings(restored: int, is_allowed: bool) -> None:
    """Sequences have no snapshot: the dump reads them at some moment between our two readings."""
    source = BASE.with_brackets({}, {"public.s": at(9)})
    copy = replace(BASE, sequences={"public.s": SequenceBracket(at(restored), at(restored))})

    assert (compare(source, copy) == ()) is is_allowed


def test_other_major_versions_are_not_compared() -> None:
    """Row hashes are comparable within one major version only: anything else is a difference, never a pass."""
    assert "not comparable" in compare(BASE, replace(BASE, server_major=18))[0]


def test_what_the_backup_skipped_by_name_is_not_held_against_the_copy() -> None:
    """An unlogged table cannot be read on a standby; the restored copy has it, empty."""
    source = replace(BASE, skipped={"public.u": "unlogged on a standby"})
    copy = replace(BASE, tables={**BASE.tables, "public.u": TableContent(0, "0")})

    assert compare(source, copy) == ()


def test_another_collation_library_is_a_note_not_a_difference() -> None:
    """A logical restore builds every index anew, so another library's sort order loses nothing."""
    copy = replace(BASE, collation_versions={"database": "2.41"})

    assert compare(BASE, copy) == ()
    assert environment_notes(BASE, copy) == ("collation database: version 2.41, was 2.36",)
