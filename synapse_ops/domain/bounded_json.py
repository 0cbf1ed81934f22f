"""The one reader of JSON that somebody else can have written: stored documents, notifications, answers of endpoints.

Whoever may write one object, or reach one port, chooses these bytes. What they can do is end in a ValueError: no other
class of error while they are read, and no value that breaks what prints, adds or stores it later.
"""

from __future__ import annotations

import json
from typing import Any

MAX_BYTES = 64 * 1024 * 1024
MAX_DEPTH = 150  # Qdrant's own JSON, which a collection's document holds, ends at 128
MAX_NUMBER = 1e40  # a vector's float32 ends at 3.4e38; sums and products of two of these are still numbers


def read_json(data: bytes | str, *, max_bytes: int = MAX_BYTES) -> Any:
    """Return the value. Raises ValueError, in words, for anything else, and for what no document of ours holds.

    That is: longer or deeper than the limits, a number that is none or too large, half of a surrogate pair.
    """
    if len(data) > max_bytes:
        raise ValueError(f"it has {len(data)} bytes, limit {max_bytes}")
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH}") from None
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return value
    raise ValueError(f"it is nested deeper than {MAX_DEPTH}")


def _inside(value: Any) -> Any:
    """Return what a value holds; raises ValueError for a value that is not of ours."""
    kind = type(value)
    if kind is str:
        if not value.isascii():
            value.encode()  # UnicodeEncodeError is a ValueError
    elif kind is dict:
        "".join(value).encode()
        return value.values()
    elif kind is list:
        return value
    elif (kind is int or kind is float) and not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise ValueError("it holds a number that is none, or is beyond 1e40")
    return ()
