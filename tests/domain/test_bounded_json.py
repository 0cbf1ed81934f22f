"""What anyone can write where we read JSON: a value of ours, or a ValueError in words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_ops.domain.bounded_json import MAX_DEPTH, read_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**39), 10**39) | st.floats(-1e39, 1e39) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_what_json_writes_is_read(value: object) -> None:
    """Names of databases are any text, control characters included."""
    assert read_json(json.dumps(value)) == value
    assert read_json(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary())
def test_any_bytes_are_a_value_or_a_value_error(data: bytes) -> None:
    """No other class of error, whatever the bytes."""
    try:
        read_json(data)
    except ValueError:
        return


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[" * 100_000, f"nested deeper than {MAX_DEPTH}"),
        (b"[" * 200 + b"]" * 200, f"nested deeper than {MAX_DEPTH}"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, f"nested deeper than {MAX_DEPTH}"),
        (b"NaN", "a number that is none"),
        (b'{"a": [-1e999]}', "a number that is none"),
        (b"9" * 50, "a number that is none"),
        (b"9" * 5000, "4300 digits"),
        (b'["\\ud800"]', "surrogates not allowed"),
        (b'{"\\udfff": 1}', "surrogates not allowed"),
        (b"\xed\xa0\x80", "Expecting value"),
        (b'"\xed\xa0\x80"', "surrogates not allowed"),
        (b" " * 2000, "it has 2000 bytes, limit 1000"),
    ],
)
def test_what_no_document_of_ours_holds_is_refused(data: bytes, words: str) -> None:
    """Half of a surrogate pair cannot be printed or stored, infinity not added, 1,000 nested lists not compared."""
    with pytest.raises(ValueError, match=words):
        read_json(data, max_bytes=1000 if data.isspace() else len(data))
