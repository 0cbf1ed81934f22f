"""Text of others on a terminal, in a log line or a verdict: what is not a printable sign is shown by its number.

A key of a bucket, a name of a server, an answer of an endpoint may hold an escape sequence, which a terminal obeys.
"""

from __future__ import annotations

from collections.abc import Callable

_Escape = Callable[[str], str]


def printable(text: str, *, keep: str = "", escape: _Escape = lambda sign: ascii(sign)[1:-1]) -> str:
    r"""Return a text of which every control character, direction mark and half of a surrogate pair is written as \x1b.

    keep: signs that stay as they are. escape: how one sign is written, such as JSON's way.
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() or sign in keep else escape(sign) for sign in text)
