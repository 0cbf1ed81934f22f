"""How an object store is reached, and what it answers: rows of listings, receipts of writes, what it honours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from synapse_ops.redaction import remember


@dataclass(frozen=True)
class StoreAccess:
    """How to reach a bucket. `repr` never shows the secret.

    endpoint: None means AWS. ca_file: a bundle for a private certificate authority.
    """

    endpoint: str | None = None
    region: str = "us-east-1"
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    ca_file: Path | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ, prefix: str = "AWS") -> StoreAccess:
        """Return what `<prefix>_ACCESS_KEY_ID`, `_SECRET_ACCESS_KEY`, `_ENDPOINT_URL`, `_REGION` ... say.

        Keys that are absent are left to boto3's own chain (profile, instance role).
        """
        ca_file = environ.get(f"{prefix}_CA_BUNDLE")
        return cls(
            endpoint=environ.get(f"{prefix}_ENDPOINT_URL"),
            region=environ.get(f"{prefix}_REGION") or environ.get(f"{prefix}_DEFAULT_REGION") or "us-east-1",
            access_key=environ.get(f"{prefix}_ACCESS_KEY_ID"),
            secret_key=remember(environ.get(f"{prefix}_SECRET_ACCESS_KEY", "")) or None,
            session_token=remember(environ.get(f"{prefix}_SESSION_TOKEN", "")) or None,
            ca_file=Path(ca_file) if ca_file else None,
        )


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One row of a listing. `etag` without quotes; `modified_at` is the store's clock, aware UTC."""

    key: str
    size_bytes: int
    etag: str
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class WrittenObject:
    """What was sent and accepted. `sha256` (hex) is of the bytes we sent.

    checksum: what a store that keeps checksums must answer for it, in S3's form: base64 of the sha256 of all parts'
    sha256, "-" and their number. Empty where none was sent.
    """

    key: str
    size_bytes: int
    etag: str
    sha256: str
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class UploadInfo:
    """A multipart upload that was begun and not completed."""

    key: str
    upload_id: str
    initiated_at: datetime


@dataclass(frozen=True, slots=True)
class StoreFeatures:
    """What the store honours, found by trying. False also when the probe gave no result.

    keeps_checksums: it computes the sha256 of what arrives itself, refuses a write that announces another one, and
    answers a HEAD with it.
    """

    conditional_writes: bool
    keeps_checksums: bool

    def missing(self) -> list[str]:
        """Return, in words, what we do without on this store."""
        words = []
        if not self.conditional_writes:
            words.append("conditional writes: leases hold on this host only")
        if not self.keeps_checksums:
            words.append("stored checksums: every object is read back in full after its upload")
        return words
