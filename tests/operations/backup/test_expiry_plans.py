"""A plan of expiry is a document: named by its content, refused when old or edited, spent once, removed in the end."""

from __future__ import annotations

from datetime import timedelta

import pytest

from synapse_ops.domain.backup.layout import pin_name
from synapse_ops.domain.backup.retention import RetentionPolicy, Rule
from synapse_ops.errors import ConfigError, DocumentUnreadable, PlanChanged
from synapse_ops.operations.backup.expire import apply_expiry, make_expiry_plan, read_plan
from synapse_ops.operations.repository import Repository
from tests.memory_store import MemoryStore
from tests.operations.expiry import DAY, NOW, POLICY, stored


def test_every_entry_of_a_plan_has_a_reason_in_one_line(repository: Repository, store: MemoryStore) -> None:
    """Kept or removed: no entry is without its rule and a line a person can read."""
    stored(store, 40, 30, 20, 5, 1)
    stored(store, 3, proven=False, database="other")

    plan = make_expiry_plan(repository, POLICY, NOW)

    assert all(entry.reason and "\n" not in entry.reason and entry.rule in Rule for entry in plan.entries)


def test_a_digest_names_content_and_not_the_moment(repository: Repository, store: MemoryStore) -> None:
    """Planning again without a change gives the same digest; a new proof or pin gives another."""
    backups = stored(store, 40, 20, 1)
    first = make_expiry_plan(repository, POLICY, NOW)

    store.now = NOW + timedelta(minutes=30)
    again = make_expiry_plan(repository, POLICY, store.now)
    store.put_bytes(backups[0].place.key(pin_name("audit")), b"{}")
    pinned = make_expiry_plan(repository, POLICY, store.now)

    assert first.digest == again.digest
    assert pinned.digest != first.digest


def test_a_stored_plan_is_read_back_as_it_was_made(repository: Repository, store: MemoryStore) -> None:
    """The JSONL under plans/ is the plan; a torn or edited one is refused."""
    stored(store, 40, 20, 1)
    plan = make_expiry_plan(repository, POLICY, NOW)
    key = f"plans/expiry-{plan.digest}.jsonl"

    assert read_plan(repository, plan.digest) == plan
    store.objects[key] = (store.objects[key][0].replace(b'"keep"', b'"expire"'), NOW)
    with pytest.raises(DocumentUnreadable, match="digest"):
        read_plan(repository, plan.digest)


def test_a_used_digest_does_nothing_a_second_time(repository: Repository, store: MemoryStore) -> None:
    """An approval is spent: re-executing the run of yesterday removes nothing."""
    stored(store, 40, 20, 1)
    plan = make_expiry_plan(repository, POLICY, NOW)
    apply_expiry(repository, plan.digest, NOW)
    before = len(store.delete_calls)

    report = apply_expiry(repository, plan.digest, NOW)

    assert (report.removed, report.applied_at) == ((), NOW)
    assert len(store.delete_calls) == before


def test_a_plan_older_than_a_day_is_refused(repository: Repository, store: MemoryStore) -> None:
    """An approval is for the repository of today."""
    stored(store, 40, 20, 1)
    plan = make_expiry_plan(repository, POLICY, NOW)
    store.now = NOW + timedelta(hours=25)

    with pytest.raises(PlanChanged, match=r"25\.0 h ago, limit 24 h"):
        apply_expiry(repository, plan.digest, store.now)


@pytest.mark.parametrize(
    ("digest", "error"), [("0" * 16, PlanChanged), ("nonsense", ConfigError), ("../x", ConfigError)]
)
def test_a_digest_without_a_plan_is_refused(repository: Repository, digest: str, error: type[Exception]) -> None:
    """Nothing is applied that was not planned."""
    with pytest.raises(error):
        apply_expiry(repository, digest, NOW)


def test_the_order_of_a_listing_does_not_matter(repository: Repository, store: MemoryStore) -> None:
    """Stores list by byte order, by directory, or backwards; the plan is the same."""
    stored(store, 60, 40, 20, 1)
    stored(store, 50, 15, 2, database="datenbänke")
    forwards = make_expiry_plan(repository, POLICY, NOW)
    store.reverse_listing = True

    assert make_expiry_plan(repository, POLICY, NOW).digest == forwards.digest


def test_applying_removes_the_plans_that_can_no_longer_be_applied(repository: Repository, store: MemoryStore) -> None:
    """Applied ones lose their plan at once and their marker after a week; others go after a week; each is reported."""
    stored(store, 60, 40, 30, 20, 1)
    keys = {name: f"plans/expiry-{name * 16}" for name in "abc"}
    store.now = NOW - 8 * DAY
    for key in (keys["a"] + ".jsonl", keys["a"] + ".applied.json", keys["b"] + ".jsonl"):
        store.put_bytes(key, b"{}")
    store.now = NOW - 2 * DAY
    for key in (keys["c"] + ".jsonl", keys["c"] + ".applied.json"):
        store.put_bytes(key, b"{}")
    store.now = NOW
    unused = make_expiry_plan(repository, RetentionPolicy(window=35 * DAY, max_expiry_ratio=1.0), NOW)
    plan = make_expiry_plan(repository, POLICY, NOW)

    report = apply_expiry(repository, plan.digest, NOW)

    assert report.old_plans_removed == (
        keys["a"] + ".applied.json",
        keys["a"] + ".jsonl",
        keys["b"] + ".jsonl",
        keys["c"] + ".jsonl",
    )
    assert sorted(key for key in store.objects if key.startswith("plans/")) == sorted(
        [
            keys["c"] + ".applied.json",
            f"plans/expiry-{unused.digest}.jsonl",
            f"plans/expiry-{plan.digest}.jsonl",
            f"plans/expiry-{plan.digest}.applied.json",
        ]
    )


def test_a_used_digest_is_known_without_its_plan(repository: Repository, store: MemoryStore) -> None:
    """The plan's own document is gone after the next apply; the digest stays spent, and is no unknown one."""
    stored(store, 60, 40, 30, 20, 1)
    first = make_expiry_plan(repository, RetentionPolicy(window=35 * DAY, max_expiry_ratio=1.0), NOW)
    apply_expiry(repository, first.digest, NOW)
    second = make_expiry_plan(repository, POLICY, NOW)
    apply_expiry(repository, second.digest, NOW)

    assert f"plans/expiry-{first.digest}.jsonl" not in store.objects
    assert apply_expiry(repository, first.digest, NOW).applied_at == NOW


@pytest.mark.parametrize("name", ["expiry-notes.jsonl", "expiry-0123.jsonl", "rollout-0123456789abcdef.jsonl", "x/y"])
def test_what_only_lies_beside_plans_is_never_removed(repository: Repository, store: MemoryStore, name: str) -> None:
    """Only keys of our two forms are plans of expiry."""
    store.now = NOW - 30 * DAY
    store.put_bytes(f"plans/{name}", b"mine")
    stored(store, 40, 20, 1)

    report = apply_expiry(repository, make_expiry_plan(repository, POLICY, NOW).digest, NOW)

    assert report.old_plans_removed == ()
    assert f"plans/{name}" in store.objects


def test_what_the_store_does_not_delete_is_left_for_the_next_apply(repository: Repository, store: MemoryStore) -> None:
    """An old plan that stays is no reason to fail an expiry, and is not reported as removed."""
    store.now = NOW - 30 * DAY
    store.put_bytes("plans/expiry-aaaaaaaaaaaaaaaa.jsonl", b"{}")
    store.undeletable = {"plans/expiry-aaaaaaaaaaaaaaaa.jsonl"}
    stored(store, 40, 20, 1)

    report = apply_expiry(repository, make_expiry_plan(repository, POLICY, NOW).digest, NOW)

    assert (len(report.removed), report.old_plans_removed) == (1, ())
