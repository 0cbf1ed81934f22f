"""The JSON that a restored copy is compared with: one form of bytes, so that a digest names it, and its reading."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from synapse_ops.domain.bounded_json import read_json
from synapse_ops.errors import DocumentUnreadable

MAX_BYTES = 512 * 1024 * 1024  # the structure of a database of some hundred thousand objects


def canonical_json(version: int, fields: Mapping[str, Any], *, is_compact: bool = False) -> bytes:
    """Return the canonical bytes: sorted keys, UTF-8, one final newline. is_compact: no white space, for very many."""
    layout: dict[str, Any] = {"separators": (",", ":")} if is_compact else {"indent": 1}
    body = {"format_version": version, **fields}
    return (json.dumps(body, sort_keys=True, ensure_ascii=False, **layout) + "\n").encode()


@contextmanager
def reading(data: bytes, what: str, *versions: int) -> Iterator[dict[str, Any]]:
    """Yield the fields of a document; whatever else it is, the block included, is DocumentUnreadable.

    what: names the document in the message, with its article. versions: at least one, the newest first; with several,
    the field `format_version` says which it is.
    """
    try:
        body = read_json(data, max_bytes=MAX_BYTES)
        _refuse_other_version(body["format_version"], versions)
        if len(versions) == 1:
            del body["format_version"]
        yield body
    except (ValueError, TypeError, LookupError, AttributeError) as fault:
        raise DocumentUnreadable(
            f"cannot read {what}: {fault}", hint="Was it cut short, or written by another version? Take a new backup."
        ) from fault


def _refuse_other_version(found: object, versions: Sequence[int]) -> None:
    if found not in versions:
        raise ValueError(f"format_version is {found}, this reads {' and '.join(map(str, versions))}")
