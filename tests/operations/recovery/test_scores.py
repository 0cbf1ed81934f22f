"""Scores in a real bucket: beside the backups, known to what lists the repository, and never a reason to stop."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from synapse_ops.domain.recovery.drill_score import DrillScore, Of, Scenario
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.recovery.scores import read_scores, write_score
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess

SCORE = DrillScore(
    scenario=Scenario.RECOVERY_DRILL,
    of=Of.COPY,
    at=datetime(2026, 11, 28, 5, 0, tzinfo=UTC),
    reason="",
    phases=(("database", 20.5),),
    predicted=None,
    lost_writes=None,
    rto_s=20.5,
    rpo_s=0.5,
    size_bytes=1 << 30,
    code_version="0.1.0",
)


def test_scores_are_kept_beside_the_backups_and_an_unreadable_one_stops_nothing(
    object_store_access: StoreAccess, bucket_url: str
) -> None:
    """Newest first; what is torn, too large or not ours is named or left out; no left-over, and nothing foreign."""
    repository = Repository(ObjectStore(bucket_url, object_store_access))
    later = replace(SCORE, at=SCORE.at + timedelta(weeks=1))
    keys = [write_score(repository, one) for one in (SCORE, later)]
    repository.store.put_bytes("drills/20261129T050000Z-000001.json", b'{"format_version": 1')
    repository.store.put_bytes("drills/20261129T050000Z-000002.json", b" " * (1 << 17))
    repository.store.put_bytes("drills/notes.txt", b"not ours")

    found = read_scores(repository)
    catalog = read_catalog(repository)

    assert found.scores == (later, SCORE)
    assert [key[:24] for key in keys] == ["drills/20261128T050000Z-", "drills/20261205T050000Z-"]
    assert len(found.unreadable) == 2
    assert all(f"00000{number}.json" in " ".join(found.unreadable) for number in (1, 2))
    assert (catalog.backups, catalog.left_overs, catalog.foreign_count) == ((), (), 0)
