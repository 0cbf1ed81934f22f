"""Expiry on a store: what a plan says is what happens, whatever else goes on, and wherever a run is cut."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synapse_ops.domain.backup.expiry_plan import Action
from synapse_ops.domain.backup.layout import BACKUP, HEARTBEAT, pin_name, reading_name
from synapse_ops.domain.backup.retention import RetentionPolicy, Rule
from synapse_ops.errors import LeaseHeld, Refused, Unreachable
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup.expire import apply_expiry, make_expiry_plan
from synapse_ops.operations.backup.lease import hold_lease
from synapse_ops.operations.backup.pins import pin_backup
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.memory_store import MemoryStore
from tests.operations.expiry import DAY, NOW, POLICY, ids, kept_by, stored
from tests.stored_backups import store_backup, store_proof


def test_applying_removes_exactly_what_the_plan_named(repository: Repository, store: MemoryStore) -> None:
    """A dry run is the plan itself: what it keeps is what is listed afterwards, and nothing is left of the rest."""
    backups = stored(store, 40, 30, 20, 5, 1)
    plan = make_expiry_plan(repository, POLICY, NOW)

    report = apply_expiry(repository, plan.digest, NOW)

    assert ids(repository) == kept_by(plan) == [backup.place.backup_id for backup in reversed(backups[2:])]
    assert [entry.place.backup_id for entry in report.removed] == [
        backups[1].place.backup_id,
        backups[0].place.backup_id,
    ]
    assert not [key for key in store.objects if key.startswith((backups[0].place.prefix, backups[1].place.prefix))]


def test_too_large_a_part_is_refused_until_it_is_accepted(repository: Repository, store: MemoryStore) -> None:
    """A run over max_expiry_ratio asks, names both numbers, and its hint is the command that accepts."""
    stored(store, 60, 50, 40, 20, 1)
    plan = make_expiry_plan(repository, RetentionPolicy(window=10 * DAY, max_expiry_ratio=0.5), NOW)

    with pytest.raises(Refused, match=r"3 of 5 backups of synapse \(60%\), limit 50%") as refused:
        apply_expiry(repository, plan.digest, NOW)
    assert len(ids(repository)) == 5
    assert f"--apply {plan.digest} --accept-ratio 0.61" in refused.value.hint

    apply_expiry(repository, plan.digest, NOW, accept_ratio=0.61)
    assert len(ids(repository)) == 2


def test_nothing_expires_while_clocks_differ(repository: Repository, store: MemoryStore) -> None:
    """With 6 minutes between our clock and the store's Date nobody knows how old anything is."""
    stored(store, 40, 20, 1)
    good = make_expiry_plan(repository, POLICY, NOW)
    wrong = NOW + timedelta(minutes=6)

    plan = make_expiry_plan(repository, POLICY, wrong)

    assert {entry.rule for entry in plan.entries} == {Rule.CLOCKS_DIFFER}
    assert "differ by 360 s, limit 300 s" in plan.warnings[0]
    with pytest.raises(Refused, match="differ by 360 s"):
        apply_expiry(repository, good.digest, wrong)


@pytest.mark.parametrize("late", ["pin", "hold", "proof", "change"])
def test_what_came_after_the_plan_keeps_its_backup(repository: Repository, store: MemoryStore, late: str) -> None:
    """Apply re-checks every entry against a fresh listing: pinned, held or changed meanwhile means kept."""
    backups = stored(store, 40, 30, 20, 1)
    oldest = backups[0].place
    plan = make_expiry_plan(repository, POLICY, NOW)
    if late == "pin":
        pin_backup(repository, oldest, "audit", NOW)
    elif late == "hold":
        store.put_bytes(oldest.key(reading_name("restore")), b"{}")
    elif late == "proof":
        store_proof(store, backups[0], NOW)
    else:
        store.put_bytes(oldest.key("globals.sql"), b"-- changed")

    report = apply_expiry(repository, plan.digest, NOW)

    assert [row.entry.place for row in report.skipped] == [oldest]
    assert [entry.place for entry in report.removed] == [backups[1].place]
    assert oldest.backup_id in ids(repository)


def test_the_backup_that_justifies_an_expiry_is_judged_again(repository: Repository, store: MemoryStore) -> None:
    """When the newer proven backup is damaged after the plan, what it replaced stays."""
    backups = stored(store, 40, 20, 1)
    plan = make_expiry_plan(repository, POLICY, NOW)
    store.put_bytes(backups[1].place.key("database.dump"), b"damaged")

    report = apply_expiry(repository, plan.digest, NOW)

    assert report.removed == ()
    assert len(ids(repository)) == 3


def test_backup_json_goes_first_then_data_then_markers(repository: Repository, store: MemoryStore) -> None:
    """Deletion is the write order turned round, so that a cut never leaves a listed backup without its data."""
    stored(store, 40, 35, 20, 1)
    apply_expiry(repository, make_expiry_plan(repository, POLICY, NOW).digest, NOW)

    first, second, third = [[key.rsplit("/", 1)[1] for key in call] for call in store.delete_calls]

    assert first == [BACKUP] * 2
    assert set(second) == {"database.dump", "globals.sql", "fingerprint.json", "structure.json"}
    assert {HEARTBEAT, "started.json"} < set(third)


@pytest.mark.parametrize("before_effect", [True, False], ids=["before-effect", "after-effect"])
@pytest.mark.parametrize("step", range(3))
def test_a_cut_run_leaves_a_repository_that_reads_well(
    repository: Repository, store: MemoryStore, step: int, before_effect: bool
) -> None:
    """Whatever delete call is the last: every backup still listed is whole and proven, and planning again finishes."""
    stored(store, 60, 50, 40, 20, 1)
    plan = make_expiry_plan(repository, POLICY, NOW)
    store.cut_after, store.cut_before_effect = step, before_effect

    with pytest.raises(Unreachable):
        apply_expiry(repository, plan.digest, NOW)

    assert all(entry.proven_at and not entry.doubt for entry in read_catalog(repository).backups)
    assert set(kept_by(plan)) <= set(ids(repository))
    apply_expiry(repository, make_expiry_plan(repository, POLICY, NOW).digest, NOW)
    assert ids(repository) == kept_by(plan)
    assert read_catalog(repository).left_overs == ()


def test_applying_a_cut_plan_again_goes_on(repository: Repository, store: MemoryStore) -> None:
    """Only a plan that was done to its end is spent; what a cut run removed is not missed."""
    stored(store, 60, 50, 40, 20, 1)
    plan = make_expiry_plan(repository, POLICY, NOW)
    store.undeletable = {next(key for key in store.objects if key.endswith(BACKUP))}

    with pytest.raises(Unreachable, match="could not delete 1 object of"):
        apply_expiry(repository, plan.digest, NOW)
    store.undeletable = set()
    apply_expiry(repository, plan.digest, NOW)

    assert ids(repository) == kept_by(plan)


def test_an_expiry_that_fails_says_what_it_removed_before(repository: Repository, store: MemoryStore) -> None:
    """One object that cannot be deleted makes the run an error; what is gone all the same is named with it."""
    backups = stored(store, 60, 50, 40, 20, 1)
    plan = make_expiry_plan(repository, POLICY, NOW)
    store.undeletable = {backups[0].place.key(BACKUP)}

    with pytest.raises(Unreachable, match="could not delete 1 object of") as failed:
        apply_expiry(repository, plan.digest, NOW)

    lines = failed.value.detail.splitlines()
    assert [f"removed: {backup.place.prefix}" in lines for backup in backups] == [False, True, True, False, False]
    assert any(line.startswith("removed before that: 2 entries, ") for line in lines)


@pytest.mark.parametrize("step", range(3))
def test_an_expiry_that_is_cut_says_what_it_may_have_removed(
    repository: Repository, store: MemoryStore, step: int
) -> None:
    """The store vanished in the middle of the second batch: the first is gone, of the second a part may be."""
    backups = stored(store, *range(80, 20, -1), 1)
    plan = make_expiry_plan(repository, POLICY, NOW)
    store.cut_after = 3 + step

    with pytest.raises(Unreachable, match="the run was cut here") as cut:
        apply_expiry(repository, plan.digest, NOW)

    lines = cut.value.detail.splitlines()
    removed = {line.removeprefix("removed: ") for line in lines if line.startswith("removed: ")}
    begun = {line.rpartition(": ")[2] for line in lines if line.startswith("removal begun, not finished: ")}
    assert (len(removed), len(begun)) == (50, 9)
    assert removed | begun == {entry.place.prefix for entry in plan.entries if entry.removes}
    assert not [key for key in store.objects if key.startswith(tuple(removed))]
    assert backups[-1].place.prefix not in removed | begun


def test_a_backup_whose_backup_json_stays_keeps_its_data(repository: Repository, store: MemoryStore) -> None:
    """A delete that the store refused stops the later steps of that backup: no listed backup without data."""
    backups = stored(store, 40, 20, 1)
    plan = make_expiry_plan(repository, POLICY, NOW)
    store.undeletable = {backups[0].place.key(BACKUP)}

    with pytest.raises(Unreachable):
        apply_expiry(repository, plan.digest, NOW)

    oldest = read_catalog(repository).backups[-1]
    assert (oldest.place, oldest.doubt) == (backups[0].place, "")


def test_a_lost_backup_json_makes_a_left_over_that_goes_after_its_grace(
    repository: Repository, store: MemoryStore
) -> None:
    """Delete the newest backup.json: its objects are named, stay for the grace of the last heartbeat, then go."""
    backups = stored(store, 20, 1)
    store.now = NOW - timedelta(hours=2)
    newest = store_backup(store, store.now)
    store.now = NOW
    del store.objects[newest.place.key(BACKUP)]

    young = make_expiry_plan(repository, POLICY, NOW).entries[-1]
    store.now = NOW + DAY
    old = make_expiry_plan(repository, POLICY, store.now)
    apply_expiry(repository, old.digest, store.now)

    assert (young.place, young.action, young.rule) == (newest.place, Action.KEEP, Rule.IN_GRACE)
    assert (old.entries[-1].place, old.entries[-1].action) == (newest.place, Action.REMOVE_LEFT_OVER)
    assert not [key for key in store.objects if key.startswith(newest.place.prefix)]
    assert len(ids(repository)) == len(backups)


def test_nothing_under_a_fresh_heartbeat_is_a_left_over(repository: Repository, store: MemoryStore) -> None:
    """A dump that runs for a week renews its heartbeat; its objects and its upload are work, not left-overs."""
    store.now = NOW - 7 * DAY
    running = store_backup(store, store.now)
    del store.objects[running.place.key(BACKUP)]
    store.begin_upload(running.place.key("database.dump"))
    store.now = NOW
    store.put_bytes(running.place.key(HEARTBEAT), b'{"beats": 2}')

    plan = make_expiry_plan(repository, POLICY, NOW)

    assert [(entry.action, entry.rule) for entry in plan.entries] == [(Action.KEEP, Rule.IN_GRACE)] * 2


def test_work_that_begins_again_saves_a_left_over(repository: Repository, store: MemoryStore) -> None:
    """A heartbeat after the plan keeps the prefix, although no lasting object changed."""
    store.now = NOW - 2 * DAY
    place = store_backup(store, store.now).place
    del store.objects[place.key(BACKUP)]
    store.now = NOW
    plan = make_expiry_plan(repository, POLICY, NOW)
    store.put_bytes(place.key(HEARTBEAT), b'{"beats": 2}')

    report = apply_expiry(repository, plan.digest, NOW)

    assert report.removed == ()
    assert store.head(place.key("database.dump")) is not None


def test_dangling_uploads_are_aborted_and_foreign_ones_left(repository: Repository, store: MemoryStore) -> None:
    """An upload of ours past its grace is aborted; one under a key that is not ours is nobody's business here."""
    [backup] = stored(store, 3)
    store.now = NOW - 2 * DAY
    store.begin_upload(backup.place.key("globals.sql"))
    store.begin_upload("somebody/elses/object")
    store.now = NOW

    plan = make_expiry_plan(repository, POLICY, NOW)
    apply_expiry(repository, plan.digest, NOW)

    assert plan.totals.uploads == 1
    assert [upload.key for upload in store.uploads] == ["somebody/elses/object"]


def test_foreign_objects_are_never_touched(repository: Repository, store: MemoryStore) -> None:
    """Even inside the prefix of a backup that expires, only names that this tool writes are deleted."""
    backups = stored(store, 40, 20, 1)
    foreign = ["notes.txt", backups[0].place.key("notes.txt"), backups[0].place.prefix + "sub/database.dump"]
    for key in foreign:
        store.put_bytes(key, b"mine")

    plan = make_expiry_plan(repository, POLICY, NOW)
    apply_expiry(repository, plan.digest, NOW)

    assert plan.foreign_count == 3
    assert [key for key in foreign if key in store.objects] == foreign
    assert [key for key in store.objects if key.startswith(backups[0].place.prefix)] == foreign[1:]


def test_only_listed_keys_are_deleted(repository: Repository, store: MemoryStore) -> None:
    """Every key given to the store was in a listing of this run."""
    stored(store, 60, 40, 20, 1)
    before = set(store.objects)

    apply_expiry(repository, make_expiry_plan(repository, POLICY, NOW).digest, NOW)

    assert {key for call in store.delete_calls for key in call} <= before


def test_a_pinned_prefix_without_backup_json_is_left_for_a_person(repository: Repository, store: MemoryStore) -> None:
    """A pin says that somebody wants these bytes; markers without any data are cleared away all the same."""
    store.now = NOW - 50 * DAY
    salvage, emptied = (store_backup(store, store.now, number=number).place for number in (1, 2))
    for place in (salvage, emptied):
        store.put_bytes(place.key(pin_name("audit")), b"{}")
        del store.objects[place.key(BACKUP)]
    for name in ("database.dump", "globals.sql", "fingerprint.json", "structure.json"):
        del store.objects[emptied.key(name)]
    store.now = NOW

    plan = make_expiry_plan(repository, POLICY, NOW)

    assert {entry.place: entry.rule for entry in plan.entries} == {salvage: Rule.PINNED, emptied: Rule.ONLY_MARKERS}


def test_two_applies_exclude_one_another(repository: Repository, store: MemoryStore) -> None:
    """While another process holds the lease and renews it, an apply is refused with the holder's name."""
    stored(store, 40, 20, 1)
    plan = make_expiry_plan(repository, POLICY, NOW)

    with (
        hold_lease(repository, "expiry", owner="the other one", ttl_s=0.3),
        pytest.raises(LeaseHeld, match="the other"),
    ):
        apply_expiry(repository, plan.digest, NOW)

    assert len(ids(repository)) == 3


class LaterStore(ObjectStore):
    """The real store, whose clock can be set forward: nobody waits 24 hours for a left-over."""

    later = timedelta(0)

    def server_time(self) -> datetime:
        return super().server_time() + self.later


@pytest.fixture
def real(object_store_access: StoreAccess, bucket_url: str) -> LaterStore:
    return LaterStore(bucket_url, object_store_access)


def test_a_real_store_does_what_the_plan_says(real: LaterStore) -> None:
    """The same on SeaweedFS: old backups, an interrupted dump, its upload and a foreign object."""
    now = real.server_time()
    repository = Repository(real)
    backups = [store_backup(real, now - age * DAY) for age in (40, 30, 20, 1)]
    for backup in backups:
        store_proof(real, backup, backup.record.finished_at + timedelta(minutes=5))
    cut = store_backup(real, now - 5 * DAY).place
    real.delete([cut.key(BACKUP)])
    real.begin_upload(cut.key("database.dump"))
    real.put_bytes(backups[0].place.key("notes.txt"), b"mine")
    real.later = timedelta(hours=25)

    plan = make_expiry_plan(repository, POLICY, now + real.later)
    report = apply_expiry(repository, plan.digest, now + real.later)

    assert (plan.totals.expired, plan.totals.left_overs, plan.totals.uploads) == (2, 1, 1)
    assert len(report.removed) == 4
    assert ids(repository) == [backups[3].place.backup_id, backups[2].place.backup_id]
    assert [row.key for row in real.list_objects(backups[0].place.prefix)] == [backups[0].place.key("notes.txt")]
    assert not list(real.list_objects(cut.prefix))
    assert not list(real.list_uploads())
    assert apply_expiry(repository, plan.digest, now + real.later).applied_at is not None


AGES = st.lists(st.tuples(st.integers(0, 90), st.booleans(), st.booleans()), min_size=1, max_size=7)


@settings(max_examples=40, deadline=None)
@given(AGES, st.integers(1, 60), st.integers(0, 6), st.booleans())
def test_any_repository_survives_any_cut_and_ends_as_planned(
    ages: list[tuple[int, bool, bool]], window_days: int, step: int, before_effect: bool
) -> None:
    """Dry run equals what happens; a run cut at any delete call keeps whole backups, and a replan finishes."""
    store = MemoryStore(NOW)
    repository = Repository(store)
    for number, (age, proven, pinned) in enumerate(ages):
        store.now = NOW - age * DAY - timedelta(hours=2)
        backup = store_backup(store, store.now, number=number)
        if proven:
            store_proof(store, backup, store.now + timedelta(minutes=5))
        if pinned:
            store.put_bytes(backup.place.key(pin_name("audit")), b"{}")
    store.now = NOW
    policy = RetentionPolicy(window=window_days * DAY, max_expiry_ratio=1.0)
    plan = make_expiry_plan(repository, policy, NOW)
    before = {entry.place: entry for entry in read_catalog(repository).backups}
    store.cut_after, store.cut_before_effect = step, before_effect

    with suppress(Unreachable):
        apply_expiry(repository, plan.digest, NOW)

    for entry in read_catalog(repository).backups:
        assert entry == before[entry.place]
    assert set(kept_by(plan)) <= set(ids(repository))
    store.now = NOW + DAY  # a cut deletion's markers may have been written within the grace
    store.cut_after = None
    replan = make_expiry_plan(repository, RetentionPolicy(policy.window + DAY, 1.0), store.now)
    apply_expiry(repository, replan.digest, store.now)
    assert sorted(ids(repository)) == sorted(kept_by(plan))
    assert read_catalog(repository).left_overs == ()
