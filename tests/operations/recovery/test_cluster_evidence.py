"""To when the cluster can be restored: what WAL says where the primary does not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from synapse_ops.domain.backup.layout import Identity
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal_chain import ArchivedTimeline, WalArchive
from synapse_ops.domain.database.wal_facts import SegmentFacts, TimelineClaim
from synapse_ops.domain.database.wal_plan import Chunk
from synapse_ops.operations.recovery.cluster_evidence import _last_moment
from synapse_ops.spec import Spec

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
LAST_COMMIT, STORED = NOW - timedelta(seconds=9), NOW - timedelta(seconds=3)
SIZE = 16 * 1024 * 1024
STACK = cast("Any", SimpleNamespace(spec=Spec()))  # what WAL promises is in its spec


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
    assert _last_moment(archive(), cast("Any", Base), server_lsn, [], NOW, STACK) == to_at


def test_wal_that_was_acknowledged_and_is_gone_is_told() -> None:
    """The newest chunk was removed: the page says what a restore would say, and no later moment."""
    faults: list[str] = []
    lost = replace(archive(), acknowledged=(1, Lsn(SIZE + 9000)))

    assert _last_moment(lost, cast("Any", Base), Lsn(SIZE + 8192), faults, NOW, STACK) == LAST_COMMIT
    assert "000000010000000000000001" in faults[0]


def archive() -> WalArchive:
    open_facts = SegmentFacts(
        segment="000000010000000000000001", size_bytes=0, sha256="0" * 64, etag="", commits=1, max_commit_at=LAST_COMMIT
    )
    claim = TimelineClaim(
        system_identifier="7",
        timeline=1,
        forked_at=None,
        history_sha256=None,
        node="db:5432",
        server_version_num=170010,
        segment_bytes=SIZE,
        page_bytes=8192,
        byte_order="little",
        claimed_at=NOW,
    )
    line = ArchivedTimeline(
        timeline=1,
        claim=claim,
        segment_bytes=SIZE,
        chunks={1: (Chunk(0, 8192),)},
        open_facts=open_facts,
        stored_at=STORED,
    )
    return WalArchive(Identity("7", "00000000"), (line,), NOW)
