"""What a catalog says about a repository: read from a real store, whatever was done to it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from synapse_ops.domain.backup.dump_record import DumpRecord
from synapse_ops.domain.backup.layout import BACKUP, pin_name, proof_name, reading_name
from synapse_ops.domain.backup.proof_record import Verdict
from synapse_ops.errors import ConfigError, WrongIdentity
from synapse_ops.operations.backup.catalog import find_backup, list_own_objects, read_catalog, read_proofs, read_record
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.store import ObjectInfo, ObjectStore, StoreAccess
from tests.stored_backups import place_of, store_backup, store_data, store_proof

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


class ShuffledStore(ObjectStore):
    """The real store, listed in an order that no store would choose."""

    seed = 0

    def list_objects(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        rows = list(super().list_objects(prefix, start_after=start_after))
        random.Random(self.seed).shuffle(rows)
        yield from rows


@pytest.fixture
def repository(object_store_access: StoreAccess, bucket_url: str, tmp_path: Path) -> Repository:
    return Repository(ObjectStore(bucket_url, object_store_access), cache_dir=tmp_path / "cache", state_dir=tmp_path)


def test_an_empty_repository_is_a_catalog_without_backups(repository: Repository) -> None:
    """Nothing stored is a result, not an error."""
    catalog = read_catalog(repository)

    assert (catalog.backups, catalog.left_overs, catalog.foreign_count) == ((), (), 0)


def test_backups_are_listed_newest_first_and_a_proof_makes_one_proven(repository: Repository) -> None:
    """A backup exists when its backup.json exists; a passed proof of exactly these objects makes it proven."""
    old = store_backup(repository.store, NOON)
    new = store_backup(repository.store, NOON + DAY)
    store_proof(repository.store, old, NOON + timedelta(hours=1))

    newest, oldest = read_catalog(repository).backups

    assert (newest.place, newest.doubt) == (new.place, "not proven yet")
    assert (oldest.place, oldest.doubt, oldest.proven_at) == (old.place, "", NOON + timedelta(hours=1))
    assert read_catalog(repository).object_count == 15


def test_a_catalog_never_lists_wal(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """A month of WAL is millions of keys (W6): they are neither read nor foreign, and what lies beside them is."""
    backup = store_backup(repository.store, NOON)
    identity = backup.place.identity
    for name in (
        f"{identity}/wal/00000001/claim.json",
        f"{identity}/wal/00000001/000000010000000000000001.zst",
        f"{identity}/notes.txt",
        "wal/notes.txt",
        "notes.txt",
    ):
        repository.store.put_bytes(name, b"")
    listed: list[str] = []
    list_objects = ObjectStore.list_objects

    def noted(self: ObjectStore, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        listed.append(prefix)
        return list_objects(self, prefix, start_after=start_after)

    monkeypatch.setattr(ObjectStore, "list_objects", noted)

    catalog = read_catalog(repository)

    assert [entry.place for entry in catalog.backups] == [backup.place]
    assert catalog.foreign_count == 3
    assert sorted(listed) == [f"{identity}/dump/", "wal/"]


def test_a_catalog_of_one_database_leaves_the_others_out(repository: Repository) -> None:
    """Partitions are databases; non-ASCII names and dots are names like any other."""
    store_backup(repository.store, NOON, database="synapse")
    other = store_backup(repository.store, NOON, database="büro.2")

    assert [entry.place for entry in read_catalog(repository, subject="büro.2").backups] == [other.place]
    assert read_catalog(repository).subjects() == ("büro.2", "synapse")


def test_a_newer_proof_that_differs_takes_the_proof_away(repository: Repository) -> None:
    """Doubt about the same bytes counts more than an older pass."""
    backup = store_backup(repository.store, NOON)
    store_proof(repository.store, backup, NOON + DAY)
    store_proof(repository.store, backup, NOON + 2 * DAY, verdict=Verdict.DIFFERS)

    [entry] = read_catalog(repository).backups

    assert (entry.proven_at, entry.last_verdict, entry.doubt) == (None, Verdict.DIFFERS, "newest proof: differs")
    assert [proof.verdict for proof in read_proofs(repository, backup.place)] == [Verdict.PROVEN, Verdict.DIFFERS]


def test_data_rewritten_after_the_proof_voids_it(repository: Repository) -> None:
    """A proof counts for the ETags it read, whatever the sizes say."""
    backup = store_backup(repository.store, NOON)
    store_proof(repository.store, backup, NOON + DAY)
    assert read_catalog(repository).backups[0].proven_at is not None
    original = repository.store.read_bytes(backup.place.key("database.dump"))

    repository.store.put_bytes(backup.place.key("database.dump"), b"X" + original[1:])

    [entry] = read_catalog(repository).backups
    assert entry.proven_at is None
    assert "proof is void: database.dump has changed since" in entry.doubt


def test_data_that_is_missing_or_cut_is_damage(repository: Repository) -> None:
    """A backup whose listed objects are not those of its backup.json satisfies nothing."""
    missing = store_backup(repository.store, NOON)
    cut = store_backup(repository.store, NOON + DAY)
    store_proof(repository.store, missing, NOON + DAY)
    repository.store.delete([missing.place.key("globals.sql")])
    repository.store.put_bytes(cut.place.key("database.dump"), b"PG")

    newest, oldest = read_catalog(repository).backups

    assert (oldest.doubt, oldest.proven_at) == ("damaged: globals.sql is missing", None)
    assert "database.dump has 2 bytes, recorded" in newest.doubt


def test_swapped_backups_are_caught(repository: Repository) -> None:
    """backup.json says where it belongs; one that lies elsewhere is unreadable, and cannot be restored by mistake."""
    first = store_backup(repository.store, NOON)
    second = store_backup(repository.store, NOON + DAY)
    repository.store.put_bytes(first.place.key(BACKUP), second.record.to_json())
    repository.store.put_bytes(second.place.key(BACKUP), first.record.to_json())

    assert all("says it belongs to" in entry.unreadable_reason for entry in read_catalog(repository).backups)
    with pytest.raises(WrongIdentity, match="says it belongs to"):
        read_record(repository, first.place)


def test_swapped_data_voids_both_proofs(repository: Repository) -> None:
    """Objects of the same size exchanged between two proven backups leave none of them proven."""
    first = store_backup(repository.store, NOON)
    second = store_backup(repository.store, NOON + DAY)
    for backup in (first, second):
        store_proof(repository.store, backup, NOON + 2 * DAY)
    keys = [backup.place.key("database.dump") for backup in (first, second)]
    bodies = [repository.store.read_bytes(key) for key in keys]

    for key, body in zip(keys, reversed(bodies), strict=True):
        repository.store.put_bytes(key, body)

    assert [entry.proven_at is not None for entry in read_catalog(repository).backups] == [False, False]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b'{"format_version": 2}'])
def test_an_unreadable_backup_json_is_an_entry_with_its_reason(repository: Repository, body: bytes) -> None:
    """Torn, foreign and newer documents are named, never guessed at and never fatal."""
    place = place_of(NOON)
    store_data(repository.store, place, NOON)
    repository.store.put_bytes(place.key(BACKUP), body)

    for _ in ("cold", "warm"):
        [entry] = read_catalog(repository).backups
        assert (entry.proven_at, entry.started_at) == (None, NOON)
        assert entry.unreadable_reason


def test_a_torn_proof_is_doubt_and_not_the_absence_of_one(repository: Repository) -> None:
    """The newest proof decides even when it cannot be read: an older pass does not stand in for it."""
    backup = store_backup(repository.store, NOON)
    store_proof(repository.store, backup, NOON + DAY)
    repository.store.put_bytes(backup.place.key(proof_name(NOON + 2 * DAY)), b"{")

    for _ in ("cold", "warm"):
        [entry] = read_catalog(repository).backups
        assert (entry.proven_at, entry.last_verdict) == (None, Verdict.UNPROVEN)
        assert "cannot read" in entry.doubt
    assert len(read_proofs(repository, backup.place)) == 1


def test_a_proof_of_another_backup_proves_nothing(repository: Repository) -> None:
    """A proof document copied beside another backup is doubt, whatever it says."""
    proven = store_backup(repository.store, NOON)
    other = store_backup(repository.store, NOON + DAY)
    proof = store_proof(repository.store, proven, NOON + 2 * DAY)
    repository.store.put_bytes(other.place.key(proof_name(NOON + 2 * DAY)), proof.to_json())

    newest, _ = read_catalog(repository).backups

    assert newest.proven_at is None
    assert f"is a proof of backup {proven.place.backup_id}" in newest.doubt


def test_the_order_of_the_listing_does_not_matter(repository: Repository) -> None:
    """Stores sort differently; even objects of one backup may come apart, and the catalog is the same."""
    for number in range(4):
        store_proof(repository.store, store_backup(repository.store, NOON + number * DAY), NOON + 9 * DAY)
    store_data(repository.store, place_of(NOON + 8 * DAY), NOON + 8 * DAY)
    repository.store.put_bytes("foreign", b"x")
    expected = read_catalog(repository)

    for seed in range(3):
        shuffled = ShuffledStore(repository.store.url, repository.store.access)
        shuffled.seed = seed
        found = read_catalog(Repository(shuffled, cache_dir=repository.cache_dir))
        assert (found.backups, found.left_overs) == (expected.backups, expected.left_overs)
        assert (found.object_count, found.foreign_count) == (expected.object_count, 1)


def test_a_prefix_without_backup_json_is_a_left_over(repository: Repository) -> None:
    """An interrupted dump is never a backup; its objects are named."""
    place = place_of(NOON)
    store_data(repository.store, place, NOON)

    catalog = read_catalog(repository)

    assert catalog.backups == ()
    [left] = catalog.left_overs
    assert (left.place, left.object_count) == (place, 6)
    assert abs(left.touched_at - catalog.read_at) < timedelta(minutes=1)


def test_foreign_objects_are_counted_and_belong_to_nothing(repository: Repository) -> None:
    """A key that this tool does not write is not ours, even inside a backup's own prefix."""
    backup = store_backup(repository.store, NOON)
    for key in (
        "README.md",
        "other/tool/x",
        f"{backup.place.prefix}notes.txt",
        f"{backup.place.prefix}database.dump.bak",
    ):
        repository.store.put_bytes(key, b"foreign")

    catalog = read_catalog(repository)

    assert catalog.foreign_count == 4
    [entry] = catalog.backups
    assert entry.doubt == "not proven yet"
    assert entry.size_bytes == sum(row.size_bytes for row in list_own_objects(repository.store, backup.place))


def test_pins_and_fresh_holds_are_seen(repository: Repository) -> None:
    """A pin carries its label; a hold counts from the store's own time of its last write."""
    backup = store_backup(repository.store, NOON)
    repository.store.put_bytes(backup.place.key(pin_name("audit 2026")), b"{}")
    repository.store.put_bytes(backup.place.key(reading_name("restore/1")), b"{}")

    catalog = read_catalog(repository)

    [entry] = catalog.backups
    assert entry.pins == ("audit 2026",)
    assert entry.held_at is not None
    assert abs(entry.held_at - catalog.read_at) < timedelta(minutes=1)


@pytest.mark.parametrize("spoil", ["nothing", "torn", "foreign", "deleted"])
def test_the_cache_never_changes_what_a_catalog_says(repository: Repository, spoil: str) -> None:
    """Cold, warm, torn or gone: the cache only changes the speed."""
    for number in range(3):
        store_proof(repository.store, store_backup(repository.store, NOON + number * DAY), NOON + 5 * DAY)
    cold = read_catalog(repository)
    assert repository.cache_dir is not None
    path = repository.cache_dir / "catalog.sqlite"
    assert path.exists()
    actions: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "torn": lambda: path.write_bytes(path.read_bytes()[:100] + b"\0" * 5000),
        "foreign": lambda: path.write_text("not a database"),
        "deleted": path.unlink,
    }
    actions[spoil]()

    assert read_catalog(repository).backups == cold.backups


def test_a_document_rewritten_after_it_was_cached_is_read_again(repository: Repository) -> None:
    """The cache is believed for one ETag only."""
    backup = store_backup(repository.store, NOON)
    store_proof(repository.store, backup, NOON + DAY)
    assert read_catalog(repository).backups[0].proven_at is not None
    edited = DumpRecord.model_validate({**backup.record.model_dump(), "row_count": 99})

    repository.store.put_bytes(backup.place.key(BACKUP), edited.to_json())

    [entry] = read_catalog(repository).backups
    assert (entry.proven_at, entry.doubt) == (None, "proof is void: backup.json has changed since")


def test_a_backup_is_found_by_its_id_and_a_wrong_id_names_near_ones(repository: Repository) -> None:
    """An id is enough to act on; a typing error is answered with what exists."""
    backup = store_backup(repository.store, NOON)
    wrong = backup.place.backup_id[:-1] + "f"

    assert find_backup(repository, backup.place.backup_id) == backup.place
    with pytest.raises(ConfigError, match="there is no backup") as caught:
        find_backup(repository, wrong)
    assert backup.place.backup_id in caught.value.detail
