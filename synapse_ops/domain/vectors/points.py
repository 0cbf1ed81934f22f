"""What a point of a collection is, as bytes: the hash of one point, and the digest of all of them.

A point is its id, its vectors by name, and its payload, exactly as the server's scroll and Qdrant's engine in process
both return them; so a copy opened without a server can be compared with what the live server said.
Canonical bytes of one point: the id as text and NUL; its vectors sorted by name ("" for the unnamed one), each as name,
NUL and float32 little-endian values in order (a sparse one: its indices ascending as uint32, then their values); the
payload as JSON with sorted keys and no spaces, whole numbers from 2**63 on as floats; a newline. The digest of a
collection is the sha256 over its points in
ascending id. Source: the data that the tests compare with, made from a real Qdrant 1.18.3.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

PointId = int | str  # an unsigned 64-bit number, or a UUID as text

_INT64_MAX = 2**63 - 1
_LONG_NUMBER = re.compile(r"[0-9]{19}")  # the shortest whole number beyond it has 19 digits
HASH_BYTES = 16  # of a sha256: two points of 50,000 collide by chance once in 10^29 collections


def order_of(point_id: PointId) -> tuple[int, int, str]:
    """Return the key by which ids ascend, as in a scroll: numbers first, then UUIDs."""
    return (0, point_id, "") if isinstance(point_id, int) else (1, 0, point_id)


def parse_id(text: str) -> PointId:
    """Return the id that `str` wrote: a UUID has hyphens, so it is never mistaken for a number."""
    return int(text) if text.isdecimal() else text


def canonical_point(point_id: PointId, vectors: Any, payload: Mapping[str, Any] | None) -> bytes:
    """Return a point's canonical bytes.

    vectors: as scroll returns them: a list (the unnamed vector), a list of lists (a multivector), or a mapping of names
    to those and to sparse vectors (`{"indices": [...], "values": [...]}`); None and {} mean that it has none.
    """
    named = vectors if isinstance(vectors, Mapping) and not _is_sparse(vectors) else {"": vectors}
    parts = [str(point_id).encode(), b"\0"]
    for name in sorted(named):
        if named[name] is not None:
            parts += [name.encode(), b"\0", _vector_bytes(named[name])]
    text = _json(payload or {})
    if _LONG_NUMBER.search(text):
        text = _json(_as_nodes_send(payload))
    parts += [text.encode("utf-8", "surrogatepass"), b"\n"]
    return b"".join(parts)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _as_nodes_send(value: Any) -> Any:
    """Return a payload with whole numbers beyond int64 as floats: so a node of a cluster hands on those of another."""
    if isinstance(value, Mapping):
        return {name: _as_nodes_send(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_nodes_send(one) for one in value]
    return float(value) if isinstance(value, int) and value > _INT64_MAX else value


def point_hash(canonical: bytes) -> str:
    """Return the hash of one point, 32 hex digits. canonical: of `canonical_point`."""
    return hashlib.sha256(canonical).digest()[:HASH_BYTES].hex()


class PointsDigest:
    """The digest of all points of a collection and that of their ids alone. Points must come in ascending id."""

    def __init__(self) -> None:
        self._points = hashlib.sha256()
        self._ids = hashlib.sha256()
        self._last: tuple[int, int, str] | None = None
        self.count = 0

    def add(self, point_id: PointId, canonical: bytes = b"") -> None:
        """Take one point. Raises ValueError for an id that does not come after the last one."""
        order = order_of(point_id)
        if self._last is not None and order <= self._last:
            raise ValueError(f"point {point_id} does not come after {self._last[2] or self._last[1]}")
        self._last = order
        self._points.update(canonical)
        self._ids.update(f"{point_id}\n".encode())
        self.count += 1

    @property
    def points(self) -> str:
        """The sha256 (hex) over everything that was added."""
        return self._points.hexdigest()

    @property
    def ids(self) -> str:
        """The sha256 (hex) over the ids alone, one a line."""
        return self._ids.hexdigest()


def sample_rank(seed: str, point_id: PointId) -> bytes:
    """Return by what a seeded sample is drawn: the ids of the lowest ranks are the sample, whatever order they come in.

    The same seed finds the same ids in the copy, and an id's place in the sample says nothing about its content.
    """
    return hashlib.sha256(f"{seed}\0{point_id}".encode()).digest()


def _is_sparse(vector: Mapping[str, Any]) -> bool:
    return vector.keys() == {"indices", "values"}


def _vector_bytes(vector: Any) -> bytes:
    if isinstance(vector, Mapping):
        pairs = sorted(zip(vector["indices"], vector["values"], strict=True))
        return _little("I", [index for index, _ in pairs]) + _little("f", [value for _, value in pairs])
    if vector and isinstance(vector[0], Sequence):
        return b"".join(_little("f", row) for row in vector)
    return _little("f", vector)


def _little(kind: str, values: Sequence[float]) -> bytes:
    packed = array(kind, values)
    if sys.byteorder != "little":
        packed.byteswap()
    return packed.tobytes()
