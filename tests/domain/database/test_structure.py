"""The comparison of two structures: a difference names its object, equal meanings are equal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from synapse_ops.domain.database.structure import Structure, compare
from synapse_ops.errors import DocumentUnreadable


def structure(**entries: dict[str, object]) -> Structure:
    return Structure(17, {name.replace("_", ": "): entry for name, entry in entries.items()})


def test_a_lost_an_added_and_a_changed_object_are_named() -> None:
    """Each difference begins with the kind and the name of its object."""
    expected = structure(index_a={"definition": "x"}, table_b={"owner": "ann"})
    actual = structure(index_c={"definition": "x"}, table_b={"owner": "bob"})

    assert compare(expected, actual) == (
        "index: a: missing",
        "index: c: not in the backup",
        "table: b: owner is bob, expected ann",
    )


def test_bodies_are_never_quoted() -> None:
    """A function's body may hold a secret: its difference is stated without quoting it."""
    expected = structure(function_f={"definition": "SELECT 'hunter2'"})
    actual = structure(function_f={"definition": "SELECT 'hunter3'"})

    assert compare(expected, actual) == ("function: f: definition differs",)


def test_what_means_the_same_is_no_difference_and_only_unequal_values_are_asked_about() -> None:
    """The server that holds the copy is asked whether two printed definitions mean the same."""
    expected = structure(view_a={"definition": "x", "owner": "ann"}, view_b={"definition": "y"})
    actual = structure(view_a={"definition": "(x)", "owner": "ann"}, view_b={"definition": "z"})
    asked: list[tuple[object, ...]] = []

    def is_same(*question: object) -> bool:
        asked.append(question)
        return question[3] == "(x)"

    assert compare(expected, actual, is_same=is_same) == ("view: b: definition differs",)
    assert asked == [("view: a", "definition", "x", "(x)"), ("view: b", "definition", "y", "z")]


def test_kinds_and_tablespaces_left_out_on_purpose_are_not_compared() -> None:
    """A restore that leaves subscriptions and tablespaces out says so, and only those are passed over."""
    expected = structure(subscription_s={}, tablespace_fast={}, table_t={"tablespace": "fast", "owner": "a"})
    actual = structure(table_t={"tablespace": "", "owner": "a"})

    assert compare(expected, actual, without_kinds=["subscription"], without_tablespaces=True) == ()
    assert len(compare(expected, actual)) == 3


def test_json_form_is_inverted_and_anything_else_is_refused() -> None:
    """What was written is read back equal; a torn document is unreadable."""
    one = structure(table_t={"columns": ["a", "b"], "acl": None})

    assert Structure.from_json(one.to_json()) == one
    assert Structure.from_json(one.to_json()).digest() == one.digest()
    with pytest.raises(DocumentUnreadable):
        Structure.from_json(one.to_json()[:-20])


def test_what_version_1_did_not_look_at_is_no_difference_to_it() -> None:
    """A stored structure of version 1 is compared by what it holds."""
    former = Structure(17, {"table: public.daughter": {"owner": "x"}}, version=1)
    now = Structure(17, {"table: public.daughter": {"owner": "x", "local_columns": ["a"]}}, version=1)

    assert compare(former, now) == ()
    assert compare(replace(former, version=2), replace(now, version=2)) == (
        'table: public.daughter: local_columns is ["a"], expected null',
    )
