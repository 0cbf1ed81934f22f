"""A fake object store in memory, for tests that cut a run at every step or set the store's clock.

It is a fake and proves nothing about S3; tests/operations/test_memory_store.py holds it to the same contract as the
real client, and some examples of each property run on SeaweedFS too. Its own clock is `now`; a delete call can fail.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import BinaryIO

from synapse_ops.errors import ObjectMissing, Unreachable
from synapse_ops.systems.s3.store import ConditionFailed, ObjectInfo, StoreFeatures, UploadInfo, WrittenObject


class MemoryStore:
    """Objects by key. now: the store's clock. cut_after: the delete call (from 0) that raises.

    cut_before_effect: whether the cut call has deleted nothing yet, or everything.
    """

    url = "s3://memory/database/"

    def __init__(self, now: datetime = datetime(2026, 11, 1, tzinfo=UTC), *, conditional_writes: bool = True) -> None:
        self.now = now
        self.objects: dict[str, tuple[bytes, datetime]] = {}
        self.uploads: list[UploadInfo] = []
        self.features = StoreFeatures(conditional_writes=conditional_writes, keeps_checksums=True)
        self.delete_calls: list[tuple[str, ...]] = []
        self.cut_after: int | None = None
        self.cut_before_effect = True
        self.undeletable: set[str] = set()
        self.reverse_listing = False

    def full_url(self, key: str) -> str:
        return self.url + key

    def server_time(self) -> datetime:
        return self.now.replace(microsecond=0)

    def put_bytes(
        self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None
    ) -> WrittenObject:
        existing = self.objects.get(key)
        if (if_none_match and existing) or (if_match is not None and (not existing or _etag(existing[0]) != if_match)):
            raise ConditionFailed(f"could not write {key}: somebody else wrote it first")
        self.objects[key] = (data, self.now)
        return WrittenObject(key, len(data), _etag(data), hashlib.sha256(data).hexdigest())

    def put_file(self, key: str, file: BinaryIO) -> None:
        file.seek(0)
        self.put_bytes(key, file.read())

    def read_bytes(self, key: str, *, etag: str | None = None, max_bytes: int = 1 << 26) -> bytes:
        found = self.objects.get(key)
        if found is None:
            raise ObjectMissing(f"object {self.full_url(key)} is not in the store")
        if etag is not None and _etag(found[0]) != etag:
            raise ConditionFailed(f"could not read {key}: it has changed")
        return found[0]

    def read_listed(self, key: str, size_bytes: int, etag: str, *, max_bytes: int) -> bytes:
        return self.read_bytes(key, etag=etag, max_bytes=max(max_bytes, size_bytes))

    def read_with_etag(self, key: str, *, max_bytes: int = 1 << 16) -> tuple[bytes, str] | None:
        found = self.objects.get(key)
        return None if found is None else (found[0][:max_bytes], _etag(found[0]))

    def head(self, key: str) -> ObjectInfo | None:
        found = self.objects.get(key)
        return None if found is None else ObjectInfo(key, len(found[0]), _etag(found[0]), found[1])

    def list_objects(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        for key in sorted(self.objects, reverse=self.reverse_listing):
            if key.startswith(prefix) and key > start_after:
                data, modified_at = self.objects[key]
                yield ObjectInfo(key, len(data), _etag(data), modified_at)

    def list_level(self, prefix: str = "") -> tuple[list[ObjectInfo], list[str]]:
        rows = [row for row in self.list_objects(prefix) if "/" not in row.key[len(prefix) :]]
        return rows, self.list_prefixes(prefix)

    def list_prefixes(self, prefix: str = "") -> list[str]:
        rests = [key[len(prefix) :] for key in self.objects if key.startswith(prefix)]
        return sorted({rest.split("/", 1)[0] for rest in rests if "/" in rest})

    def delete(self, keys: Sequence[str]) -> dict[str, str]:
        cut = self.cut_after is not None and len(self.delete_calls) == self.cut_after
        self.delete_calls.append(tuple(keys))
        if cut and self.cut_before_effect:
            raise Unreachable("the run was cut here")
        for key in keys:
            if key not in self.undeletable:
                self.objects.pop(key, None)
        if cut:
            raise Unreachable("the run was cut here")
        return {key: "AccessDenied" for key in keys if key in self.undeletable}

    def list_uploads(self, prefix: str = "") -> Iterator[UploadInfo]:
        yield from [upload for upload in self.uploads if upload.key.startswith(prefix)]

    def begin_upload(self, key: str) -> str:
        upload = UploadInfo(key, f"upload-{len(self.uploads)}", self.now)
        self.uploads.append(upload)
        return upload.upload_id

    def abort_upload(self, upload: UploadInfo) -> None:
        self.uploads = [one for one in self.uploads if (one.key, one.upload_id) != (upload.key, upload.upload_id)]


def _etag(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
