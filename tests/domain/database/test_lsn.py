"""WAL positions: text form and order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_ops.domain.database.lsn import Lsn


@given(st.integers(0, 2**64 - 1))
def test_text_form_is_inverted_by_parse(position: int) -> None:
    """Parsing what was printed gives the same position, over all 64 bits."""
    assert Lsn.parse(str(Lsn(position))) == Lsn(position)


def test_order_is_that_of_the_log_not_of_the_text() -> None:
    """0/9 lies before 0/10, though it sorts after it as text."""
    assert Lsn.parse("0/9") < Lsn.parse("0/10") < Lsn.parse("1/0")


@pytest.mark.parametrize("text", ["", "0", "0/", "/0", "g/0", "0/123456789", "0/0 ", "-1/0"])
def test_other_forms_are_refused(text: str) -> None:
    """Only X/Y with one to eight hexadecimal digits each is a position."""
    with pytest.raises(ValueError, match="is not a WAL position"):
        Lsn.parse(text)
