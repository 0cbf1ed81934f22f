"""For whom commits wait, by what the spec wants and who streams."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_ops.domain.database.synchronous import (
    RECEIVER,
    Synchronous,
    names_of,
    plan_synchronous,
    setting_of,
    unprotected,
)

NODES = ("db-primary", "db-standby")
BOTH = frozenset({"db-standby", RECEIVER})
WANTED = Synchronous(NODES, standby=True, receiver=True, streaming=BOTH, setting="")
ALL = 'FIRST 2 ("db-standby", "synapse-ops wal")'


def test_both_are_awaited_once_both_stream() -> None:
    """FIRST 2: a commit waits for each of them (W10)."""
    assert plan_synchronous(WANTED) == ALL


@pytest.mark.parametrize(
    ("streaming", "setting", "wanted"),
    [
        (frozenset(), "", ""),
        (frozenset({RECEIVER}), "", 'FIRST 1 ("synapse-ops wal")'),
        (frozenset({"db-standby"}), 'FIRST 1 ("synapse-ops wal")', ALL),
        (frozenset(), ALL, ALL),
        (BOTH, "ANY 1 (a, b)", ALL),
        (BOTH | {"pg_basebackup"}, ALL, ALL),
    ],
)
def test_each_is_awaited_from_when_it_streams_and_stays(streaming: frozenset[str], setting: str, wanted: str) -> None:
    """A standby that never came stops no commit; one that went away does, as the spec wants."""
    assert plan_synchronous(replace(WANTED, streaming=streaming, setting=setting)) == wanted


def test_what_the_spec_does_not_want_is_taken_back_and_what_is_not_ours_stays() -> None:
    nothing = replace(WANTED, standby=False, receiver=False)
    assert plan_synchronous(replace(nothing, setting=ALL)) == ""
    assert plan_synchronous(replace(nothing, setting='ANY 1 ("theirs")')) == 'ANY 1 ("theirs")'
    assert plan_synchronous(replace(nothing, setting="FIRST 1 (db-standby)")) == "FIRST 1 (db-standby)"
    assert plan_synchronous(replace(WANTED, receiver=False, setting=ALL)) == 'FIRST 1 ("db-standby")'


def test_another_managers_setting_stays_though_it_looks_like_ours() -> None:
    """CloudNativePG writes `FIRST 1 ("name")` as well; one that names the receiver is left of an earlier spec."""
    external = replace(WANTED, standby=False, receiver=False, is_external=True)
    assert plan_synchronous(replace(external, setting='FIRST 1 ("db-standby")')) == 'FIRST 1 ("db-standby")'
    assert plan_synchronous(replace(external, setting=ALL)) == ""


def test_off_empties_whatever_stands_there() -> None:
    assert plan_synchronous(replace(WANTED, setting=ALL, off="turned off at noon")) == ""


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (replace(WANTED, setting=ALL), ""),
        (replace(WANTED, standby=False, receiver=False), ""),
        (WANTED, "do not wait for the standby and the repository"),
        (replace(WANTED, setting='FIRST 1 ("synapse-ops wal")'), "do not wait for the standby yet"),
        (replace(WANTED, setting=ALL, streaming=frozenset({RECEIVER})), "stand still: they wait for db-standby"),
        (replace(WANTED, off="turned off at noon"), "the primary's disk alone, turned off at noon"),
    ],
)
def test_what_is_not_as_the_spec_wants_is_said(found: Synchronous, says: str) -> None:
    """Empty only when a commit that is acknowledged is on another disk, and none hangs."""
    assert bool(unprotected(found)) == bool(says)
    assert says in unprotected(found)


@given(st.lists(st.text(min_size=1), max_size=3).map(tuple))
def test_any_name_is_read_back(names: tuple[str, ...]) -> None:
    assert names_of(setting_of(names)) == names
