"""The secrets that this process knows, and texts that are freed from them before they leave it.

A library quotes what it cannot parse, and we cannot know every library's messages. So whatever resolves a secret tells
it here first, and every error, log line and traceback passes `redact`. Data that a person asked for does not: a weak
password, such as the name of the database, would make a table unreadable.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from urllib.parse import quote, unquote

MASK = "[secret]"
_LEAST = 4  # a shorter text is in every sentence
_LEAST_INSIDE = 8  # a shorter one, or a word, is replaced only where it stands by itself
_LEAST_PIECE = 6

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_NAMED = re.compile(r"(?i)\w*(?:pass|pwd|secret|token|key)\w*(?<!_id)\s*=\s*('(?:[^'\\]|\\.)*'|[^\s&;]+)")

_known: dict[str, None] = {}
_pattern: re.Pattern[str] | None = None


def remember(secret: str) -> str:
    """Have every later `redact` replace this secret, its lines, and the passwords in an address; returns it."""
    global _pattern
    forms = [form for part in _parts(secret) for form in _forms(part.strip()) if len(form) >= _LEAST]
    if not set(forms) <= _known.keys():
        _known.update(dict.fromkeys(forms))
        longest_first = sorted(_known, key=len, reverse=True)
        _pattern = re.compile("|".join(_expression(form) for form in longest_first))
    return secret


def redact(text: str) -> str:
    """Return a text without any secret that this process has resolved."""
    return text if _pattern is None else _pattern.sub(MASK, text)


def _parts(secret: str) -> Iterator[str]:
    """Yield the secret and what it consists of: a key file has lines, an address a password and perhaps a token."""
    yield secret
    lines = secret.splitlines()
    for line in lines if len(lines) > 1 else ():
        if not line.startswith(("#", "[", "-----")):
            yield line
    for value in _NAMED.findall(secret):
        yield value.strip("'")
    address = _ADDRESS.fullmatch(secret.strip())
    if address is None:
        return
    scheme, rest = address.groups()
    for end in {rest.find("@"), rest.rfind("@")} - {-1}:  # a bare @ is in a password, or begins the host
        password = rest[:end].partition(":")[2]
        yield password
        yield from (piece for piece in re.split(r"[/?#@:\[\]]", password) if len(piece) >= _LEAST_PIECE)
    if scheme.lower() in {"http", "https"}:  # the path of a webhook is its key
        pieces = re.split(r"[/?&=]", rest)[1:]
        yield from (piece for piece in pieces if len(piece) > _LEAST_INSIDE)


def _forms(part: str) -> Iterator[str]:
    """Yield how a part is written: as it is, encoded for an address, and as Python and JSON quote it, and what quotes.

    The last: a KeyError shows its message quoted, and a line of a log is JSON.
    """
    yield from (part, unquote(part), quote(part, safe=""), quote(part))
    for quoted in (*_quotations(part), repr(part.encode("utf-8", "surrogateescape"))[2:-1]):
        yield quoted
        yield from _quotations(quoted)


def _quotations(text: str) -> Iterator[str]:
    yield from (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1])


def _expression(form: str) -> str:
    if len(form) >= _LEAST_INSIDE and not form.isalpha():
        return re.escape(form)
    return rf"(?<![A-Za-z0-9]){re.escape(form)}(?![A-Za-z0-9])"
