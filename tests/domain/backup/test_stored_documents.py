"""What is stored stays byte for byte what it was: tests/domain/backup/golden holds documents of an earlier version."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from synapse_ops.domain.backup.kinds import parse_backup
from synapse_ops.domain.backup.proof_record import ProofRecord
from synapse_ops.domain.backup.record import StartedRecord

GOLDEN = Path(__file__).parent / "golden"
STARTED_AT = datetime(2026, 11, 23, 20, 17, 26, 123456, tzinfo=UTC)


@pytest.mark.parametrize("kind", ["dump", "snapshot", "rdb"])
def test_a_stored_backup_json_is_read_and_written_unchanged(kind: str) -> None:
    """Format version 1: a backup that was taken before this version stays readable, and its digest stays the same."""
    stored = (GOLDEN / f"backup-{kind}.json").read_bytes()

    record = parse_backup(stored, key="backup.json")

    assert record.kind == kind
    assert record.to_json() == stored


@pytest.mark.parametrize("kind", ["dump", "snapshot", "rdb"])
def test_a_stored_proof_is_read_and_written_unchanged(kind: str) -> None:
    stored = (GOLDEN / f"proof-{kind}.json").read_bytes()

    assert ProofRecord.from_json(stored, key="proof.json").to_json() == stored


@pytest.mark.parametrize(("kind", "subject"), [("dump", "dätä"), ("snapshot", "documents"), ("rdb", "localhost:6379")])
def test_started_json_is_written_unchanged(kind: str, subject: str) -> None:
    """Each kind stores its subject under its own name: database, collection, address."""
    started = StartedRecord(
        kind=kind,
        subject=subject,
        backup_id="20261123T201726Z-3f9a1c",
        identity="7400000000000000001-0a1b2c3d",
        started_at=STARTED_AT,
        host="h",
        pid=7,
        correlation_id="run-1",
    )

    assert started.to_json() == (GOLDEN / f"started-{kind}.json").read_bytes()
