"""A conditional write that knows its own bytes again.

The S3 client repeats a request whose reply was lost. The repetition of a conditional write then meets the first one
and is answered 412, although it has succeeded. So the stored bytes decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from synapse_ops.systems.s3.errors import ConditionFailed

if TYPE_CHECKING:
    from synapse_ops.systems.s3.store import ObjectStore


def write_over(store: ObjectStore, key: str, data: bytes, *, etag: str = "") -> str:
    """Write `data` over the version with this ETag (empty: where no object is) and return the new ETag.

    Two writers of equal bytes both succeed: what must have one winner carries a token of its writer.
    Raises ConditionFailed when other bytes are stored; a store without conditional writes may honour no condition.
    """
    try:
        if etag:
            return store.put_bytes(key, data, if_match=etag).etag
        return store.put_bytes(key, data, if_none_match=True).etag
    except ConditionFailed:
        found = store.read_with_etag(key)
        if found is None or found[0] != data:
            raise
        return found[1]
