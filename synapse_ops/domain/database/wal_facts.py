"""The documents beside WAL: who writes a timeline, what a segment holds, and the index of 256 segments.

Recovery to a time ends at the first commit later than it in the order of the log, and commit times are not monotonic.
So what decides whether a time can be reached is the running maximum, which readers form over `max_commit_at`.
"""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from pydantic import Field

from synapse_ops.domain.backup.document import Document, LsnText, Part, Sha256

FORMAT_VERSION = 1  # of everything below `wal/`; see docs/repository-format.md


class RestorePoint(Part):
    """A named restore point. stop_lsn: behind its record, where recovery to that name ends."""

    name: str
    lsn: LsnText
    stop_lsn: LsnText
    at: datetime


class ParameterChange(Part):
    """Settings of the primary that a copy must have at least, from this position on; else recovery stops there."""

    lsn: LsnText
    max_connections: int
    max_worker_processes: int
    max_wal_senders: int
    max_prepared_transactions: int
    max_locks_per_transaction: int


class SegmentFacts(Part):
    """One whole segment. size_bytes, sha256, etag: of the stored object.

    commits: records that end in it; min_commit_at, max_commit_at: of these, by the server's clock.
    """

    segment: str = Field(pattern=r"^[0-9A-F]{24}$")
    size_bytes: int = Field(ge=0)
    sha256: Sha256
    etag: str
    encrypted: bool = False
    commits: int = Field(default=0, ge=0)
    min_commit_at: datetime | None = None
    max_commit_at: datetime | None = None
    restore_points: tuple[RestorePoint, ...] = ()
    parameters: tuple[ParameterChange, ...] = ()


class PartialSegment(Part):
    """A segment that stays in chunks: what follows was lost. chunks: offsets in it, from and to."""

    segment: str = Field(pattern=r"^[0-9A-F]{24}$")
    chunks: tuple[tuple[int, int], ...]


class SegmentIndex(Document):
    """The facts of up to 256 segments in their order; of a single one until the index of its 256 is written.

    partial: those of the 256 that are not whole: nobody lists their chunks any more.
    """

    VERSIONS: ClassVar[tuple[int, ...]] = (FORMAT_VERSION,)
    SEALED: ClassVar[bool] = True

    segments: tuple[SegmentFacts, ...] = ()
    partial: tuple[PartialSegment, ...] = ()

    def names(self) -> list[str]:
        """Return the file names of its segments."""
        return [one.segment for one in self.segments] + [one.segment for one in self.partial]


_SAME = (
    "system_identifier",
    "timeline",
    "forked_at",
    "history_sha256",
    "segment_bytes",
    "page_bytes",
    "byte_order",
)


class TimelineClaim(Document):
    """The server whose WAL a timeline is. Written before the first byte of it; a server that differs is refused.

    forked_at: where it left its ancestor, None for one without. history_sha256: of its history file; None without.
    node: host and port when it was claimed, for people: a server may move.
    """

    VERSIONS: ClassVar[tuple[int, ...]] = (FORMAT_VERSION,)
    SEALED: ClassVar[bool] = True

    system_identifier: str
    timeline: int = Field(ge=1)
    forked_at: LsnText | None
    history_sha256: Sha256 | None
    node: str
    server_version_num: int
    segment_bytes: int
    page_bytes: int
    byte_order: str
    claimed_at: datetime

    def differs_from(self, other: TimelineClaim) -> list[str]:
        """Return, in words, how the server of another claim is not the one of this; empty: it is."""
        faults = [
            f"{name} is {getattr(other, name)}, claimed {getattr(self, name)}"
            for name in _SAME
            if getattr(self, name) != getattr(other, name)
        ]
        if self.server_version_num // 10000 != other.server_version_num // 10000:
            faults.append(f"PostgreSQL {other.server_version_num // 10000}, claimed {self.server_version_num // 10000}")
        return faults
