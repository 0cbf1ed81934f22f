"""To when the cluster can be restored: what WAL says where the primary does not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from synapse_ops.domain.backup.layout import Identity
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal_chain import ArchivedTimeline, WalArchive
from synapse_ops.domain.database.wal_facts import SegmentFacts
from synapse_ops.domain.database.wal_plan import Chunk
from synapse_ops.operations.recovery.cluster_evidence import _last_moment

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
LAST_COMMIT, STORED = NOW - timedelta(seconds=9), NOW - timedelta(seconds=3)
SIZE = 16 * 1024 * 1024


class Base:
    start_lsn = "0/1000000"
    stopped_time = NOW - timedelta(hours=1)


@pytest.mark.parametrize(
    ("server_lsn", "to_at"),
    [(Lsn(SIZE + 8192), NOW), (Lsn(SIZE + 9000), STORED), (None, LAST_COMMIT)],
    ids=["all is stored", "it has more", "it does not answer"],
)
def test_the_last_moment_of_a_dead_server_is_its_last_commit(server_lsn: Lsn | None, to_at: datetime) -> None:
    """What was stored last may be anything; what a restore brings back is the last commit."""
    open_facts = SegmentFacts(
        segment="000000010000000000000001", size_bytes=0, sha256="0" * 64, etag="", commits=1, max_commit_at=LAST_COMMIT
    )
    line = ArchivedTimeline(
        timeline=1, segment_bytes=SIZE, chunks={1: (Chunk(0, 8192),)}, open_facts=open_facts, stored_at=STORED
    )
    archive = WalArchive(Identity("7", "00000000"), (line,), NOW)

    assert _last_moment(archive, cast("Any", Base), server_lsn, [], NOW) == to_at
