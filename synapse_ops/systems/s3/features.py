"""What an object store honours: asked with a probe object, never assumed from its name or version."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from typing import Protocol

from synapse_ops.errors import ConfigError, SynapseOpsError
from synapse_ops.systems.s3.errors import ConditionFailed
from synapse_ops.systems.s3.records import StoreFeatures, WrittenObject


class ProbedStore(Protocol):
    """What the probe needs of a store."""

    def put_bytes(
        self,
        key: str,
        data: bytes,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        checksum: str | None = None,
    ) -> WrittenObject: ...
    def kept_checksum(self, key: str) -> str | None: ...
    def delete(self, keys: Sequence[str]) -> dict[str, str]: ...


def sha256_base64(data: bytes) -> str:
    """Return a sha256 in the form of S3's checksum headers."""
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def ask_features(store: ProbedStore) -> StoreFeatures:
    """Find out what the store honours; the probe object is removed again."""
    probe = f"leases/probe-{os.urandom(8).hex()}.json"
    try:
        store.put_bytes(probe, b"{}")
        # both: rclone ignores the two, and a store that honours only one cannot keep leases
        conditional = not _takes(store, probe, if_none_match=True) and not _takes(store, probe, if_match="0" * 32)
        return StoreFeatures(conditional_writes=conditional, keeps_checksums=_keeps_checksums(store, probe))
    finally:
        store.delete([probe])


def _takes(store: ProbedStore, key: str, *, if_none_match: bool = False, if_match: str | None = None) -> bool:
    """Return whether the store writes over an existing object although the condition does not hold."""
    try:
        store.put_bytes(key, b"{}", if_none_match=if_none_match, if_match=if_match)
    except ConditionFailed:
        return False
    return True


def _keeps_checksums(store: ProbedStore, key: str) -> bool:
    """Return whether the store refuses a wrong sha256, takes the right one, and answers a HEAD with it.

    A store that takes a wrong one repeats what we say: its word on a backup would be our own.
    """
    data, right = b"{}", sha256_base64(b"{}")
    return (
        not _takes_announced(store, key, data, sha256_base64(b"[]"))
        and _takes_announced(store, key, data, right)
        and store.kept_checksum(key) == right
    )


def _takes_announced(store: ProbedStore, key: str, data: bytes, checksum: str) -> bool:
    try:
        store.put_bytes(key, data, checksum=checksum)
    except SynapseOpsError as refused:
        if refused.retryable or isinstance(refused, ConfigError):  # no answer, or it refuses us altogether
            raise
        return False
    return True
