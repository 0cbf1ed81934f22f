"""What one backup's listing and documents say together; pure, so that every combination is cheap to try."""

from __future__ import annotations

import hashlib
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_ops.domain.backup.catalog import (
    BackupFacts,
    CatalogEntry,
    ListedObject,
    ProofFacts,
    gather,
    judge,
)
from synapse_ops.domain.backup.layout import parse_key
from synapse_ops.domain.backup.proof_record import Verdict
from tests.stored_backups import place_of

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
MEMORY_PER_BACKUP = 1024  # bytes: 10,000 backups are 10 MiB
DATA = ("database.dump", "globals.sql", "fingerprint.json", "structure.json")
PLACE = place_of(NOON)


def listed(name: str, size_bytes: int = 100, version: str = "a") -> ListedObject:
    etag = hashlib.md5(f"{name}{version}".encode(), usedforsecurity=False).hexdigest()
    return ListedObject(name, size_bytes, etag, NOON)


ROWS = [
    listed(name) for name in (*DATA, "started.json", "heartbeat.json", "backup.json", "proof-20261102T120000Z.json")
]
BACKUP_FACTS = BackupFacts(
    sha256="b" * 64,
    objects=tuple((name, 100) for name in DATA),
    started_at=NOON,
    finished_at=NOON + timedelta(minutes=1),
    database_time=NOON,
)
PROOF_FACTS = ProofFacts(
    verdict=Verdict.PROVEN,
    finished_at=NOON + timedelta(days=1),
    backup_sha256="b" * 64,
    objects=tuple((row.name, row.size_bytes, row.etag) for row in ROWS[:4]),
    restore_s=4.0,
    reason="",
)
PARTIAL_PROOF = replace(PROOF_FACTS, objects=tuple(row for row in PROOF_FACTS.objects if row[0] != "globals.sql"))
EARLY_PROOF = replace(PROOF_FACTS, finished_at=NOON - timedelta(days=1))


def judged(
    rows: list[ListedObject] = ROWS, backup: BackupFacts = BACKUP_FACTS, proof: ProofFacts | None = PROOF_FACTS
) -> CatalogEntry:
    return judge(gather(PLACE, rows), {row.name: row for row in rows}, backup, proof)


def test_a_proof_of_exactly_what_is_stored_proves() -> None:
    """The one combination that counts."""
    entry = judged()

    assert (entry.doubt, entry.proven_at) == ("", PROOF_FACTS.finished_at)


@pytest.mark.parametrize(
    ("doubt", "change"),
    [
        ("not proven yet", {"proof": None}),
        ("newest proof: differs", {"proof": replace(PROOF_FACTS, verdict=Verdict.DIFFERS)}),
        ("newest proof: unproven: no key", {"proof": replace(PROOF_FACTS, verdict=Verdict.UNPROVEN, reason="no key")}),
        ("proof is void: backup.json has changed since", {"proof": replace(PROOF_FACTS, backup_sha256="c" * 64)}),
        ("proof is void: it did not read globals.sql", {"proof": PARTIAL_PROOF}),
        ("proof is void: it finished at 2026-10-31", {"proof": EARLY_PROOF}),
        ("proof is void: database.dump has changed since", {"rows": [listed("database.dump", version="b"), *ROWS[1:]]}),
        ("damaged: database.dump is missing", {"rows": ROWS[1:]}),
        ("damaged: database.dump has 99 bytes, recorded 100", {"rows": [listed("database.dump", 99), *ROWS[1:]]}),
        ("cut short", {"backup": BackupFacts(sha256="", unreadable_reason="cut short")}),
    ],
)  # fmt: skip
def test_anything_else_is_doubt_with_its_reason(doubt: str, change: dict[str, object]) -> None:
    """Not proven, and the first reason in words: what failed, what changed, what is missing."""
    entry = judged(**change)  # type: ignore[arg-type]

    assert entry.doubt.startswith(doubt)
    assert entry.proven_at is None


@pytest.mark.parametrize("proof", [None, PROOF_FACTS, replace(PROOF_FACTS, verdict=Verdict.DIFFERS)])
def test_a_proof_that_could_not_be_attempted_changes_no_verdict(proof: ProofFacts | None) -> None:
    """A host without the key says nothing of a backup: what was proven stays so, what was not does not become so."""
    attempt = listed("attempt-20261103T120000Z.json")
    rows = ROWS if proof is not None else ROWS[:-1]

    before, after = judged(rows, proof=proof), judged([*rows, attempt], proof=proof)

    assert (after.proven_at, after.last_verdict) == (before.proven_at, before.last_verdict)
    assert after.doubt.startswith(before.doubt)
    assert bool(after.doubt) == bool(before.doubt)
    assert after.not_attempted_at == datetime(2026, 11, 3, 12, tzinfo=UTC)
    assert after.was_tried


def test_damage_after_a_pass_shows_behind_an_attempt_too() -> None:
    """Only bytes that are stored as they were proven stay proven."""
    attempt = listed("attempt-20261103T120000Z.json")

    entry = judged([listed("database.dump", version="b"), *ROWS[1:], attempt])

    assert entry.proven_at is None
    assert "database.dump has changed since" in entry.doubt


@pytest.mark.parametrize("name", ["attempt-20261101T120000Z.json", "attempt-20260230T120000Z.json"])
def test_an_attempt_before_the_newest_proof_or_of_no_day_warns_of_nothing(name: str) -> None:
    """The proof that followed is the newer word; a date that does not exist is nobody's."""
    assert judged([*ROWS, listed(name)]).not_attempted_at is None


@given(st.permutations(ROWS))
def test_the_order_of_a_listing_does_not_matter(rows: list[ListedObject]) -> None:
    """Stores sort in their own ways; digests are over names in one order."""
    assert judged(rows) == judged()


@given(st.sampled_from(ROWS), st.sampled_from(["size", "etag", "gone"]))
def test_the_listing_digest_sees_every_change_that_lasts(row: ListedObject, change: str) -> None:
    """A plan is for one listing; only markers that come and go do not count."""
    changed = {"size": [replace(row, size_bytes=7)], "etag": [replace(row, etag="other")], "gone": []}[change]
    rest = [one for one in ROWS if one != row]

    same = gather(PLACE, [*rest, *changed]).listing_digest == gather(PLACE, ROWS).listing_digest

    assert same == (row.name == "heartbeat.json")


def test_facts_come_back_from_a_cache_as_they_were() -> None:
    """What is kept by ETag is all that is needed to judge again."""
    assert BackupFacts.from_json(BACKUP_FACTS.as_json()) == BACKUP_FACTS
    assert ProofFacts.from_json(PROOF_FACTS.as_json()) == PROOF_FACTS


def test_a_backup_takes_at_most_a_kibibyte_of_memory() -> None:
    """10,000 backups fit into 10 MiB, pins and holds included."""
    count = 4000  # what the interpreter keeps for reuse weighs little beside them
    tracemalloc.start()
    try:
        entries = []
        for number in range(count):
            place = place_of(NOON + timedelta(hours=number), number=number)
            rows = [replace(row, etag=f"{number:032x}") for row in ROWS]
            rows += [listed("pin-audit.json"), replace(listed("reading-a.json"), modified_at=NOON + timedelta(number))]
            parsed = parse_key(place.key("backup.json"))
            assert parsed is not None
            facts = BackupFacts.from_json({**BACKUP_FACTS.as_json(), "item_count": 10**9 + number, "duration_s": 1 / 3})
            proof = ProofFacts.from_json(
                {**PROOF_FACTS.as_json(), "verdict": "differs", "reason": f"table {number}: x"}
            )
            entries.append(judge(gather(parsed.place, rows), {row.name: row for row in rows}, facts, proof))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(entries) == count
    assert taken / count <= MEMORY_PER_BACKUP
