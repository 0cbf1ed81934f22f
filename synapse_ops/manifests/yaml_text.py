"""Writes YAML: plain data to text that YAML 1.1 and 1.2 readers take for the same values.

A writer of our own, because the bytes are a promise: a library's next release may fold or quote differently, and a
release would look changed when nothing is. A string stands bare only where no reader could take it for anything else;
several lines stand as a block, so that a person can read and diff them. Keys keep the order in which they were given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal

# bare: starts with a letter, / or _, holds nothing that YAML gives a meaning to, and is no word of YAML 1.1
_BARE = re.compile(
    r"[A-Za-z_/][A-Za-z0-9_./-]*(?:[ =@+][A-Za-z0-9_./@+-]+)*|[A-Za-z_/][A-Za-z0-9_./-]*:[A-Za-z0-9_./-]+"
)
_WORDS = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null"])
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
_LAST_OF_FOUR_DIGITS = 0xFFFF
_BLOCK = re.compile(
    r"[^\s\x00-\x1f\x7f-\xa0\u2028\u2029\ufeff\ud800-\udfff][^\x00-\x08\x0b-\x1f\x7f-\xa0\u2028\u2029\ufeff\ud800-\udfff]*\n"
)


def write_yaml(value: object) -> str:
    """Return the value as YAML text that ends in a newline.

    value: mappings with string keys, sequences, str, int, Decimal, bool, None. Raises TypeError for anything else, a
    float included: how it would be printed is not ours to promise.
    """
    if isinstance(value, Mapping | list | tuple) and value:
        return "".join(_lines(value, 0))
    return f"{_scalar(value, 0)}\n"


def write_entries(value: Mapping[str, object]) -> str:
    """Return a mapping with one line for each of its keys; what is below stands in braces and brackets, as in JSON."""
    return "".join(f"{_string(key)}: {_flow(below)}\n" for key, below in value.items())


def _flow(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_quoted(key)}: {_flow(below)}" for key, below in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _string(value) if isinstance(value, str) else _scalar(value, 0)


def _lines(value: Mapping[str, object] | Sequence[object], depth: int) -> Iterator[str]:
    indent = "  " * depth
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _entry(f"{indent}{_string(key)}:", below, depth)
        return
    for below in value:
        if isinstance(below, Mapping | list | tuple) and below:
            inner = "".join(_lines(below, depth + 1))
            yield f"{indent}- {inner[len(indent) + 2 :]}"
        else:
            yield f"{indent}- {_scalar(below, depth)}\n"


def _entry(head: str, below: object, depth: int) -> Iterator[str]:
    if isinstance(below, Mapping | list | tuple) and below:
        yield f"{head}\n"
        yield from _lines(below, depth + 1)
    else:
        yield f"{head} {_scalar(below, depth)}\n"


def _scalar(value: object, depth: int) -> str:
    if isinstance(value, str):
        if "\n" in value and _BLOCK.fullmatch(value if value.endswith("\n") else f"{value}\n"):
            return _block(value, depth)
        return _string(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, list | tuple):
        return "[]"
    raise TypeError(f"{type(value).__name__} has no place in a rendered document")


def _string(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"a key of type {type(text).__name__} has no place in a rendered document")
    if _BARE.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return _quoted(text)


def _quoted(text: str) -> str:
    return '"' + "".join(map(_character, text)) + '"'


def _character(character: str) -> str:
    """Return one character as it stands between double quotes."""
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code <= _LAST_OF_FOUR_DIGITS else f"\\U{code:08x}"


def _block(text: str, depth: int) -> str:
    """Return a literal block; `|` keeps one newline at the end, `|-` none, `|+` all."""
    body = text.rstrip("\n")
    endings = len(text) - len(body)
    mark = "|" if endings == 1 else "|-" if endings == 0 else "|+"
    indent = "  " * (depth + 1)
    lines = [f"{indent}{line}" if line else "" for line in body.split("\n")]
    return "\n".join([mark, *lines, *[""] * (endings - 1)])
