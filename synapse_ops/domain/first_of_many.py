"""Names in a sentence: all of a few, the first of many and how many there are besides."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 20  # a verdict is written again at each backup and proof: with every name, a night would write their square


def first_of_many(words: Sequence[str], separator: str = ", ") -> str:
    """Return the words joined; of more than `MOST` the first, and the number of the others."""
    more = len(words) - MOST
    return separator.join(words if more <= 0 else [*words[:MOST], f"and {more} more"])
