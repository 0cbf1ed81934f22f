"""What an object store tells: rows of listings, receipts of writes, and what the store honours."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


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
    """What the store honours, found by trying. False also when the probe could not tell.

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
