"""What a command prints: nothing in it is obeyed by a terminal, and a JSON document reads back as it was."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_ops.cli.terminal import echo, print_json
from synapse_ops.domain.printable_text import printable

HOSTILE = "\x1b]0;owned\x07 \x9b31m \u202e \ud800 \x7f"


def test_control_characters_are_shown_by_their_number(capsys: pytest.CaptureFixture[str]) -> None:
    """On stdout and stderr; lines and tabs stay."""
    echo(f"one\n\ttwo {HOSTILE}")
    echo(HOSTILE, err=True)
    shown = capsys.readouterr()

    assert shown.out == "one\n\ttwo \\x1b]0;owned\\x07 \\x9b31m \\u202e \\ud800 \\x7f\n"
    assert shown.err == "\\x1b]0;owned\\x07 \\x9b31m \\u202e \\ud800 \\x7f\n"


def test_a_document_reads_back_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({HOSTILE: [HOSTILE, "büro", "\U0001f4a5"]})
    shown = capsys.readouterr().out

    assert json.loads(shown) == {HOSTILE: [HOSTILE, "büro", "\U0001f4a5"]}
    assert not set(shown) & set("\x1b\x07\x9b\u202e\ud800\x7f")
    assert "büro" in shown


@given(st.text())
def test_printable_text_is_printable(text: str) -> None:
    """Of any text; what is printable already stays as it is."""
    shown = printable(text)

    assert shown.isprintable()
    assert not text.isprintable() or shown == text
