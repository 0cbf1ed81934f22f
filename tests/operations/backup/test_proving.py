"""The frame of every proof: its verdict is given last, and nothing that happens later contradicts it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from synapse_ops.domain.backup.layout import KIND_DUMP
from synapse_ops.domain.backup.proof_record import ProofRecord, Verdict
from synapse_ops.errors import ConfigError, Unreachable
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup.proving import Proof, ProofReport, carry_out_proof
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.store import ObjectInfo, ObjectStore
from tests.memory_store import MemoryStore
from tests.stored_backups import StoredBackup, store_backup

NOW = datetime(2026, 11, 1, tzinfo=UTC)
SHORT_S = 0.05
LONG_S = 60.0


class ListingStore(MemoryStore):
    """A store that notes each listing, of objects or of folders."""

    def __init__(self) -> None:
        super().__init__(NOW)
        self.listings: list[str] = []

    def list_objects(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        self.listings.append(prefix)
        return super().list_objects(prefix, start_after=start_after)

    def list_prefixes(self, prefix: str = "") -> list[str]:
        self.listings.append(f"folders of {prefix}")
        return super().list_prefixes(prefix)


@pytest.fixture
def store() -> ListingStore:
    return ListingStore()


@pytest.fixture
def backup(store: ListingStore) -> StoredBackup:
    return store_backup(store, NOW - timedelta(hours=2))


def prove(
    store: MemoryStore, work_dir: Path, prover: Callable[[Proof], None], *, timeout_s: float = LONG_S, **chosen: Any
) -> ProofReport | None:
    repository = Repository(cast("ObjectStore", store))
    return carry_out_proof(repository, KIND_DUMP, prover, work_dir=work_dir, timeout_s=timeout_s, **chosen)


def spend(proof: Proof) -> None:
    """Do a comparison that finds nothing and ends after the deadline."""
    proof.has_begun = True
    while not proof.deadline.has_passed():
        pass


def written(report: ProofReport | None) -> ProofRecord:
    assert report is not None
    return report.record


@pytest.mark.usefixtures("backup")
def test_a_comparison_that_ends_after_the_deadline_is_unproven(store: ListingStore, tmp_path: Path) -> None:
    """A time-out is never a pass, not even when the copy had just been compared and found equal."""
    report = prove(store, tmp_path, spend, timeout_s=SHORT_S)

    assert written(report).verdict is Verdict.UNPROVEN
    assert written(report).reason.startswith("DeadlineExceeded: ")
    assert report is not None
    assert report.exit_code == 14


@pytest.mark.usefixtures("backup")
def test_a_proof_that_the_store_did_not_take_is_no_success(
    store: ListingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict is shown; with keys that write, one that nobody else can read is the store's failure."""

    def refuse(*_: object, **__: object) -> None:
        raise Unreachable("the store is full")

    monkeypatch.setattr(store, "put_bytes", refuse)

    report = prove(store, tmp_path, lambda proof: None)

    assert report is not None
    assert report.is_proven
    assert report.not_recorded is not None
    assert report.exit_code == Unreachable.exit_code


@pytest.mark.parametrize("error", [Unreachable("the hold could not be lifted"), OSError("the copy was not removed")])
@pytest.mark.usefixtures("backup")
def test_what_fails_after_the_comparison_leaves_no_pass(store: ListingStore, tmp_path: Path, error: Exception) -> None:
    """Lifting the hold, removing the copy: the document says what failed, and never "proven" beside it."""

    def fail_late(proof: Proof) -> None:
        proof.has_begun = True
        raise error

    record = written(prove(store, tmp_path, fail_late))

    assert record.verdict is Verdict.UNPROVEN
    assert str(error.args[0]) in record.reason


@pytest.mark.usefixtures("backup")
def test_a_difference_that_was_found_outlives_what_fails_later(store: ListingStore, tmp_path: Path) -> None:
    """The copy differs whatever happens to the clean-up afterwards: exit code 13, and both are told."""

    def differ_and_fail(proof: Proof) -> None:
        proof.has_begun = True
        proof.differences.append("table a: 11 rows, expected 12")
        raise Unreachable("the hold could not be lifted")

    report = prove(store, tmp_path, differ_and_fail)

    assert written(report).verdict is Verdict.DIFFERS
    assert written(report).differences == ("table a: 11 rows, expected 12",)
    assert "the hold could not be lifted" in written(report).reason
    assert report is not None
    assert report.exit_code == 13


def test_a_proof_lists_its_repository_once(store: ListingStore, backup: StoredBackup, tmp_path: Path) -> None:
    """Which backup is next, whether it was tried, and how long it may take come from one listing."""
    prove(store, tmp_path, spend, timeout_s=SHORT_S, backup_id=backup.place.backup_id, only_untried=True)

    assert store.listings
    assert len(store.listings) == len(set(store.listings))


def test_a_backup_that_was_tried_is_left_alone_where_only_new_ones_are_asked_for(
    store: ListingStore, backup: StoredBackup, tmp_path: Path
) -> None:
    """The sensor's run finds that another has proven the backup meanwhile: nothing to do."""
    first = prove(store, tmp_path, lambda proof: None, backup_id=backup.place.backup_id, only_untried=True)
    second = prove(store, tmp_path, lambda proof: None, backup_id=backup.place.backup_id, only_untried=True)

    assert written(first).verdict is Verdict.PROVEN
    assert second is None
    [entry] = read_catalog(Repository(cast("ObjectStore", store))).backups
    assert entry.last_verdict is Verdict.PROVEN


@pytest.mark.usefixtures("backup")
def test_an_unknown_backup_is_refused_before_anything_is_written(store: ListingStore, tmp_path: Path) -> None:
    before = set(store.objects)

    with pytest.raises(ConfigError, match="there is no backup"):
        prove(store, tmp_path, spend, backup_id="20261123T201726Z-ffffff")

    assert set(store.objects) == before
