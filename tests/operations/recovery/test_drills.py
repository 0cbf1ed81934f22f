"""What all drills share: one at a time, never beside a backup, a score of every outcome, nothing left on the host."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from synapse_ops.domain.backup.layout import BackupPlace, Identity
from synapse_ops.domain.failover.incident import Entry
from synapse_ops.domain.failover.transitions import State
from synapse_ops.domain.progress import ReportProgress
from synapse_ops.domain.recovery.drill_score import DrillScore, Of, Scenario
from synapse_ops.errors import IntegrityError, Refused
from synapse_ops.operations.failover.ledger import Ledger
from synapse_ops.operations.recovery import drills
from synapse_ops.operations.recovery.drills import (
    drill_recovery,
    keep_incidents,
    keep_score,
    only_drill,
    refuse_beside_backup,
)
from synapse_ops.operations.recovery.recovery_drill import Rehearsal
from synapse_ops.operations.recovery.scores import read_scores
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.stack import Stack
from tests.memory_store import MemoryStore

NOW = datetime(2026, 11, 28, 4, 0, tzinfo=UTC)
SCORE = DrillScore(Scenario.FAILOVER_DRILL, Of.COPY, NOW, "", (("first write", 2.5),), None, 0, 2.5, 0.0, 1, "0.1.0")


def repository(now: datetime = NOW) -> Repository:
    return Repository(MemoryStore(now))


def test_the_tenth_drill_is_kept_with_what_the_nine_before_predict() -> None:
    """What is printed beside a measured time was decided without it."""
    bucket = repository()
    runs = [
        keep_score(bucket, replace(SCORE, at=NOW + timedelta(weeks=week), rto_s=2.5 + week / 10)) for week in range(9)
    ]
    tenth, url = keep_score(bucket, replace(SCORE, at=NOW + timedelta(weeks=9), rto_s=99.0))

    assert [score.predicted for score, _ in runs] == [None] * 9
    assert tenth.is_inside is False
    assert read_scores(bucket).scores[0] == tenth
    assert "/drills/20270130T040000Z-" in url


def test_no_drill_begins_beside_a_backup_that_is_being_taken() -> None:
    """A prefix without backup.json under a fresh heartbeat is a backup at work, under an old one a left-over."""
    place = BackupPlace(Identity("7", "00000001"), "base", "cluster", "20261128T035900Z-000001")
    fresh, old = repository(), repository(NOW - timedelta(hours=1))
    for bucket in (fresh, old):
        bucket.store.put_bytes(place.key("started.json"), b"{}")
    cast("Any", old.store).now = NOW

    with pytest.raises(Refused, match="a backup is being taken: base cluster"):
        refuse_beside_backup(fresh)
    refuse_beside_backup(old)


def test_a_second_drill_of_a_name_is_refused_and_another_one_is_not(tmp_path: Path) -> None:
    """The lock is the kernel's: a killed drill holds nothing."""
    with (
        only_drill(tmp_path, "failover"),
        only_drill(tmp_path, "recovery"),
        pytest.raises(Refused, match="another failover drill"),
        only_drill(tmp_path, "failover"),
    ):
        pass
    with only_drill(tmp_path, "failover"):
        pass


@pytest.mark.parametrize("outcome", ["passes", "has a fault", "raises"])
def test_every_outcome_of_a_recovery_drill_is_a_score_and_its_folder_is_gone(
    outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed one left is removed before; what went wrong is the reason, not silence."""
    seen: list[Path] = []

    def rehearse(_: Stack, folder: Path, __: ReportProgress) -> Rehearsal:
        seen.append(folder)
        assert list(folder.iterdir()) == []
        (folder / "cluster").mkdir()
        if outcome == "raises":
            raise IntegrityError("object base.tar has 1 bytes, expected 2")
        return Rehearsal({"read": 1.5}, 0.25, ("3 rows differ",) if outcome == "has a fault" else (), 4096)

    monkeypatch.setattr(drills, "rehearse", rehearse)
    stack = Stack(cast("Any", None), tmp_path)
    monkeypatch.setattr(drills, "server_identity", lambda: None)
    (tmp_path / "drills" / "recovery" / "left").mkdir(parents=True)

    score = drill_recovery(stack)

    reason = {"passes": "", "has a fault": "3 rows differ", "raises": "object base.tar has 1 bytes, expected 2"}[
        outcome
    ]
    assert (score.scenario, score.of, score.reason) == (Scenario.RECOVERY_DRILL, Of.COPY, reason)
    assert (score.rto_s is None) == (outcome == "raises")
    assert [folder.exists() for folder in seen] == [False]


def incident(number: int, *steps: tuple[State, float], **facts: object) -> list[Entry]:
    name, both = f"20261128T03{number:02}00Z-00000{number}", {"old": "a", "new": "b", **facts}
    return [Entry(name, state, None, NOW + timedelta(seconds=at_s), both) for state, at_s in steps]


def test_each_failover_of_this_system_that_has_ended_is_scored_once(tmp_path: Path) -> None:
    """The ledger is of this host, the score of everybody; what is still on its way waits, what was refused is none."""
    bucket, ledger = repository(), Ledger.of(tmp_path)
    done = ((State.CONFIRMED, 1.0), (State.FENCED, 1.5), (State.DONE, 2.5))
    planned = ((State.ASKED, -0.5), (State.STOPPING, 0.0), (State.DONE, 0.75))
    for entry in (
        *incident(1, *done, first_failed_at=NOW.isoformat(), lost_commits=3),
        *incident(2, *planned, lost_commits=0),
        *incident(3, (State.CONFIRMED, 1.0), (State.REFUSED, 1.5), reason="paused"),
        *incident(4, (State.ASKED, 0.0), (State.REFUSED, 0.5), reason="it lags"),
        *incident(5, *done),
        *incident(6, *done[:2]),
    ):
        ledger.append(entry)
    for number in (1, 2):
        ledger.write_rejoin(f"20261128T03{number:02}00Z-00000{number}", {"seconds": 4.5, "how": "rewound"})

    def keep(now: datetime) -> int:
        return keep_incidents(bucket, tmp_path, [row.key for row in bucket.store.list_objects("drills/")], now)

    assert [keep(NOW + timedelta(minutes=1)) for _ in range(2)] == [3, 0]
    found = {one.scenario: one for one in read_scores(bucket).scores if one.passed}
    failed_over, switched = found[Scenario.FAILOVER], found[Scenario.SWITCHOVER]
    assert {one.of for one in found.values()} == {Of.SYSTEM}
    assert (failed_over.rto_s, failed_over.lost_writes, failed_over.rpo_s) == (2.5, 3, None)
    assert failed_over.phases == (("confirmed", 1.0), ("fenced", 0.5), ("done", 1.0), ("rejoined", 4.5))
    assert (switched.rto_s, switched.rpo_s, switched.phases[0]) == (0.75, 0.0, ("stopping", 0.0))
    assert [one.reason for one in read_scores(bucket).scores if not one.passed] == ["refused: paused"]

    assert keep(NOW + timedelta(hours=2)) == 1
    assert "a did not come back: within an hour" in {one.reason for one in read_scores(bucket).scores}
