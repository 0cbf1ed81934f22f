"""What stands in a rendered YAML document is what every reader takes from it."""

from __future__ import annotations

import io
from decimal import Decimal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from synapse_ops.manifests.yaml_text import write_entries, write_yaml

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    [
        "",
        " ",
        "on",
        "No",
        "1e3",
        "0x1f",
        "1:30",
        "2026-01-01",
        "a: b",
        "a #b",
        "- a",
        "* *",
        "~",
        "=",
        "<<",
        "|",
        "\n",
        "a\n",
        "a\n\n",
        " a\nb",
        "a\n b \n",
        "\ta\n",
        "a\r\nb",
        "\x85",
        "\ufeffa\nb",
    ]
)
VALUES = st.recursive(
    TEXT | st.integers() | st.booleans() | st.none(),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(TEXT, below, max_size=4),
    max_leaves=12,
)


@settings(max_examples=600, deadline=None)
@given(VALUES)
def test_yaml_1_1_and_1_2_readers_take_back_what_was_written(value: object) -> None:
    """Docker and Kubernetes read YAML 1.1 words (on, yes), others 1.2: a document means the same to both."""
    text = write_yaml(value)

    assert yaml.load(text, yaml.CSafeLoader) == value
    assert YAML(typ="safe", pure=True).load(io.StringIO(text)) == value


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(TEXT, VALUES, min_size=1, max_size=4))
def test_a_mapping_of_one_line_a_key_is_taken_back_as_well(value: dict[str, object]) -> None:
    """Braces and brackets give more characters a meaning than blocks do."""
    text = write_entries(value)

    assert yaml.load(text, yaml.CSafeLoader) == value
    assert YAML(typ="safe", pure=True).load(io.StringIO(text)) == value
    assert text.count("\n") == len(value)


def test_a_decimal_number_is_written_in_its_digits() -> None:
    """Readers of YAML 1.1 take 1e-07 for text."""
    assert write_yaml({"a": Decimal("0.0000001")}) == "a: 0.0000001\n"


def test_a_float_is_refused() -> None:
    """How a float is printed is nobody's promise, so none gets in."""
    with pytest.raises(TypeError, match="float has no place"):
        write_yaml({"a": [0.5]})


def test_a_script_stands_as_a_block() -> None:
    """Several lines are read and compared by people."""
    assert (
        write_yaml({"run": "set -eu\n\necho 1\n", "then": "a\nb"})
        == "run: |\n  set -eu\n\n  echo 1\nthen: |-\n  a\n  b\n"
    )
