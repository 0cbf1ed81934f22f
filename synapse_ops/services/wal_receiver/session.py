"""What one session of the receiver was begun with, and what follows from it for each segment."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from synapse_ops.domain.database.wal import Segment, TimelineHistory
from synapse_ops.domain.database.wal_chain import WalArchive
from synapse_ops.domain.database.wal_facts import TimelineClaim
from synapse_ops.domain.database.wal_pages import PageJudge
from synapse_ops.domain.database.wal_start import StreamStart
from synapse_ops.operations.database.wal_source import WalServer


@dataclass(frozen=True)
class Session:
    """server: as it was when it was asked. history: of its timeline. history_data: of the timeline that is received,
    which is an ancestor until all of that is stored.
    """

    server: WalServer
    archive: WalArchive
    start: StreamStart
    history: TimelineHistory
    history_data: bytes

    def history_to(self, timeline: int) -> TimelineHistory:
        """Return the way to an ancestor, which is the beginning of the way to its descendant."""
        return TimelineHistory(timeline, tuple(fork for fork in self.history.forks if fork.timeline < timeline))

    def judge(self, segment: Segment) -> PageJudge:
        """Return what judges WAL from a segment's first byte on."""
        return PageJudge(
            system_identifier=self.server.identity.system_identifier,
            history=self.history_to(segment.timeline),
            start=segment.start,
            segment_bytes=self.server.segment_bytes,
            page_bytes=self.server.page_bytes,
            major=self.server.version_num // 10000,
        )

    def claim(self) -> TimelineClaim:
        """Return who writes the timeline that is received."""
        timeline = self.start.segment.timeline
        history = self.history_to(timeline)
        return TimelineClaim(
            system_identifier=self.server.identity.system_identifier,
            timeline=timeline,
            forked_at=str(history.begins_at) if history.forks else None,
            history_sha256=hashlib.sha256(self.history_data).hexdigest() if history.forks else None,
            node=self.server.address,
            server_version_num=self.server.version_num,
            segment_bytes=self.server.segment_bytes,
            page_bytes=self.server.page_bytes,
            byte_order="little",
            claimed_at=datetime.now(UTC).replace(microsecond=0),
        )
