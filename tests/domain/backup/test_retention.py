"""Retention as properties over every repository, policy and clock, and its rules as examples."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synapse_ops.domain.backup.catalog import HOLD_GRACE, CatalogEntry
from synapse_ops.domain.backup.layout import KIND_DUMP, BackupPlace, Identity, new_backup_id
from synapse_ops.domain.backup.retention import (
    CLOCK_TOLERANCE,
    Clocks,
    Decision,
    RetentionPolicy,
    Rule,
    counts_as_proven,
    excesses,
    plan_retention,
    taken_at,
)
from synapse_ops.domain.durations import format_days

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY = timedelta(days=1)
IDENTITIES = [Identity("7400000000000000001", "0a1b2c3d"), Identity("7400000000000000001", "ffffffff")]
SAME_CLOCKS = Clocks(NOW, NOW)


def backup(
    age: timedelta,
    *,
    number: int = 0,
    database: str = "synapse",
    identity: Identity = IDENTITIES[0],
    proven: bool = True,
    pins: tuple[str, ...] = (),
    held_at: datetime | None = None,
    unreadable: bool = False,
) -> CatalogEntry:
    """A catalog entry of that age at NOW."""
    moment = NOW - age
    known = None if unreadable else moment
    return CatalogEntry(
        place=BackupPlace(identity, KIND_DUMP, database, new_backup_id(moment, number.to_bytes(3, "big"))),
        size_bytes=1000,
        listing_digest=number.to_bytes(16),
        finished_at=known,
        database_time=known,
        source_size_bytes=4000,
        item_count=10,
        duration_s=1.0,
        is_encrypted=False,
        not_in_backup=(),
        proven_at=moment + timedelta(minutes=1) if proven and not unreadable else None,
        last_verdict=None,
        last_proof_at=None,
        restore_s=None,
        not_attempted_at=None,
        doubt="" if proven and not unreadable else "not proven yet",
        pins=pins,
        held_at=held_at,
        unreadable_reason="cannot read backup.json" if unreadable else "",
    )


@st.composite
def repositories(draw: st.DrawFn) -> list[CatalogEntry]:
    """Up to 12 backups of two databases and two generations; old, new, future-dated; in every condition."""
    count = draw(st.integers(0, 12))
    return [
        backup(
            timedelta(hours=draw(st.integers(-2000, 3000))),
            number=number,
            database=draw(st.sampled_from(["synapse", "other"])),
            identity=draw(st.sampled_from(IDENTITIES)),
            proven=draw(st.booleans()),
            pins=("audit",) if draw(st.integers(0, 5)) == 0 else (),
            held_at=NOW - timedelta(minutes=draw(st.integers(0, 30))) if draw(st.integers(0, 5)) == 0 else None,
            unreadable=draw(st.integers(0, 7)) == 0,
        )
        for number in range(count)
    ]


POLICIES = st.builds(
    RetentionPolicy,
    window=st.timedeltas(timedelta(seconds=1), timedelta(days=4000)),
    max_expiry_ratio=st.floats(0, 1),
    proof_max_age=st.timedeltas(timedelta(seconds=1), timedelta(days=100)),
)
MOMENTS = st.timedeltas(timedelta(days=-4000), timedelta(days=4000)).map(lambda off: NOW + off)
CLOCKS = st.one_of(
    st.builds(lambda moment: Clocks(moment, moment), MOMENTS),
    st.builds(Clocks, MOMENTS, MOMENTS),
    st.builds(lambda moment, off: Clocks(moment, moment + off), MOMENTS, st.timedeltas(-2 * DAY, 2 * DAY)),
)


def removed(entries: list[CatalogEntry], policy: RetentionPolicy, clocks: Clocks) -> set[BackupPlace]:
    return {row.entry.place for row in plan_retention(entries, policy, clocks) if row.expires}


def group(entry: CatalogEntry) -> tuple[Identity, str]:
    return entry.place.identity, entry.place.subject


def only(entries: list[CatalogEntry], policy: RetentionPolicy, clocks: Clocks = SAME_CLOCKS) -> list[Decision]:
    """The decisions in the order in which the entries were given."""
    decided = {row.entry.place: row for row in plan_retention(entries, policy, clocks)}
    return [decided[entry.place] for entry in entries]


@given(repositories(), POLICIES, CLOCKS)
def test_the_last_proven_backup_survives_every_policy_and_every_clock(
    entries: list[CatalogEntry], policy: RetentionPolicy, clocks: Clocks
) -> None:
    """Whatever goes, the newest proven backup of its identity and database stays, by whatever order of time."""
    gone = removed(entries, policy, clocks)

    for one in entries:
        proven = [entry for entry in entries if group(entry) == group(one) and entry.proven_at is not None]
        if proven:
            assert max(proven, key=lambda entry: (taken_at(entry), entry.place.backup_id)).place not in gone


@given(repositories(), POLICIES, CLOCKS)
def test_whatever_expires_has_a_newer_proven_backup_that_stays(
    entries: list[CatalogEntry], policy: RetentionPolicy, clocks: Clocks
) -> None:
    """Of its own identity, kind and database; an unproven, unreadable or future-dated one satisfies nothing."""
    gone = removed(entries, policy, clocks)

    for one in [entry for entry in entries if entry.place in gone]:
        assert any(
            group(other) == group(one)
            and other.place not in gone
            and taken_at(other) >= taken_at(one)
            and counts_as_proven(other, clocks.earlier)
            for other in entries
            if other is not one
        )


@given(repositories(), POLICIES, CLOCKS)
def test_every_moment_of_the_window_that_was_restorable_stays_so(
    entries: list[CatalogEntry], policy: RetentionPolicy, clocks: Clocks
) -> None:
    """For each moment since the window's start, the newest proven dump at or before it is the same after expiry."""
    gone = removed(entries, policy, clocks)
    start = clocks.earlier - policy.window

    for one in entries:
        proven = [entry for entry in entries if group(entry) == group(one) and counts_as_proven(entry, clocks.earlier)]
        for moment in [start, *(taken_at(entry) for entry in proven if taken_at(entry) >= start)]:
            reachable = [entry for entry in proven if taken_at(entry) <= moment]
            if reachable:
                assert max(reachable, key=lambda entry: (taken_at(entry), entry.place.backup_id)).place not in gone


@given(repositories(), POLICIES, CLOCKS, st.data())
def test_adding_a_pin_never_removes_more(
    entries: list[CatalogEntry], policy: RetentionPolicy, clocks: Clocks, data: st.DataObject
) -> None:
    """A pin keeps its own backup and changes nothing for the others."""
    if not entries:
        return
    chosen = data.draw(st.integers(0, len(entries) - 1))
    pinned = [replace(entry, pins=("new",)) if at == chosen else entry for at, entry in enumerate(entries)]

    assert removed(pinned, policy, clocks) == removed(entries, policy, clocks) - {entries[chosen].place}


@given(repositories(), POLICIES, CLOCKS, st.timedeltas(timedelta(0), timedelta(days=4000)))
def test_shortening_retention_never_keeps_more(
    entries: list[CatalogEntry], policy: RetentionPolicy, clocks: Clocks, longer: timedelta
) -> None:
    """What a long window removes, a shorter one removes too."""
    long_policy = replace(policy, window=policy.window + longer)

    assert removed(entries, long_policy, clocks) <= removed(entries, policy, clocks)


@given(repositories(), POLICIES, CLOCKS)
def test_pinned_held_unreadable_and_future_dated_backups_stay(
    entries: list[CatalogEntry], policy: RetentionPolicy, clocks: Clocks
) -> None:
    """None of them expires under any policy."""
    gone = removed(entries, policy, clocks)

    for one in entries:
        held = one.held_at is not None and clocks.stores - one.held_at <= HOLD_GRACE
        future = taken_at(one) > clocks.earlier + CLOCK_TOLERANCE
        if one.pins or held or one.unreadable_reason or future:
            assert one.place not in gone


@given(repositories(), POLICIES, CLOCKS, st.randoms(use_true_random=False))
def test_the_order_of_the_listing_does_not_matter(
    entries: list[CatalogEntry], policy: RetentionPolicy, clocks: Clocks, shuffler: random.Random
) -> None:
    """The plan is a function of the set of backups."""
    shuffled = list(entries)
    shuffler.shuffle(shuffled)

    assert list(plan_retention(shuffled, policy, clocks)) == list(plan_retention(entries, policy, clocks))


@given(repositories(), POLICIES, CLOCKS)
def test_every_backup_is_decided_once_with_a_reason_of_one_line(
    entries: list[CatalogEntry], policy: RetentionPolicy, clocks: Clocks
) -> None:
    """Nothing is forgotten, nothing is decided twice, and no reason is empty."""
    decisions = list(plan_retention(entries, policy, clocks))

    assert sorted(row.entry.place for row in decisions) == sorted(entry.place for entry in entries)
    assert all(row.reason and "\n" not in row.reason for row in decisions)


@settings(max_examples=50)
@given(repositories(), POLICIES, MOMENTS, st.timedeltas(CLOCK_TOLERANCE + timedelta(seconds=1), timedelta(days=4000)))
def test_nothing_expires_while_the_clocks_differ(
    entries: list[CatalogEntry], policy: RetentionPolicy, moment: datetime, off: timedelta
) -> None:
    """More than five minutes either way between our clock and the store's Date."""
    assert not removed(entries, policy, Clocks(moment, moment + off))
    assert not removed(entries, policy, Clocks(moment + off, moment))


@given(repositories(), POLICIES, CLOCKS)
def test_expiring_twice_is_expiring_once(entries: list[CatalogEntry], policy: RetentionPolicy, clocks: Clocks) -> None:
    """What stayed stays when the same policy looks again."""
    gone = removed(entries, policy, clocks)

    assert not removed([entry for entry in entries if entry.place not in gone], policy, clocks)


POLICY = RetentionPolicy(window=30 * DAY)


def test_the_newest_proven_dump_older_than_the_window_reaches_its_start() -> None:
    """Without it, the first moments of "30 days" could not be restored."""
    entries = [backup(age * DAY, number=age) for age in (1, 31, 32)]

    assert [row.rule for row in only(entries, POLICY)] == [Rule.LAST_PROVEN, Rule.REACHES_BACK, Rule.PAST_WINDOW]


def test_where_that_one_is_not_proven_older_ones_stay_too() -> None:
    """An unproven backup protects nothing, so the proven one behind it reaches back instead."""
    entries = [
        backup(1 * DAY, number=1),
        backup(31 * DAY, number=2, proven=False),
        backup(32 * DAY, number=3),
        backup(33 * DAY, number=4),
    ]

    rules = [row.rule for row in only(entries, POLICY)]

    assert rules == [Rule.LAST_PROVEN, Rule.MAY_REACH_BACK, Rule.REACHES_BACK, Rule.PAST_WINDOW]


def test_without_any_proof_nothing_expires() -> None:
    """Age alone removes nothing."""
    entries = [backup(age * DAY, number=age, proven=False) for age in (1, 100, 1000)]

    assert [row.rule for row in only(entries, POLICY)] == [Rule.IN_WINDOW, Rule.NO_NEWER_PROVEN, Rule.NO_NEWER_PROVEN]


def test_another_database_or_generation_proves_nothing_for_this_one() -> None:
    """A newer proven backup counts only for its own kind, identity and database."""
    lonely = backup(100 * DAY, number=1, proven=False)
    others = [
        backup(age * DAY, number=10 + age, database=database, identity=identity)
        for age in (1, 40)
        for database, identity in (("other", IDENTITIES[0]), ("synapse", IDENTITIES[1]))
    ]

    assert only([lonely, *others], POLICY)[0].rule is Rule.NO_NEWER_PROVEN


def test_a_hold_frees_its_backup_when_the_reader_has_died() -> None:
    """30 missed renewals by the store's clock: then the reader is gone and the backup expires as any other."""
    fresh, dead = NOW - HOLD_GRACE, NOW - HOLD_GRACE - timedelta(seconds=1)
    entries = [
        backup(1 * DAY, number=1),
        backup(31 * DAY, number=2),
        backup(40 * DAY, number=3, held_at=fresh),
        backup(41 * DAY, number=4, held_at=dead),
    ]

    assert [row.rule for row in only(entries, POLICY)][2:] == [Rule.HELD, Rule.PAST_WINDOW]


def test_an_aged_proof_of_the_last_proven_backup_asks_for_another() -> None:
    """The proof still counts here, and the reason says that it is due again."""
    [decision] = only([backup(45 * DAY)], replace(POLICY, proof_max_age=30 * DAY))

    assert decision.rule is Rule.LAST_PROVEN
    assert "older than 30 d, prove it again" in decision.reason


@pytest.mark.parametrize(("ratio", "named"), [(0.5, 0), (0.49, 1)])
def test_a_ratio_is_exceeded_only_above_it(ratio: float, named: int) -> None:
    """Two of four is one half: allowed with 0.5, asked about with 0.49; each database counts by itself."""
    entries = [backup(age * DAY, number=age) for age in (1, 31, 32, 33)]
    entries += [backup(age * DAY, number=age, database="other") for age in (1, 2)]
    decisions = list(plan_retention(entries, POLICY, SAME_CLOCKS))

    found = excesses([(row.entry.place, row.expires) for row in decisions], ratio)

    assert [(row.place.subject, row.expiring, row.total) for row in found] == [("synapse", 2, 4)] * named


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (30 * DAY, "30 d"),
        (timedelta(hours=36), "36 h"),
        (timedelta(seconds=90), "90 s"),
        (timedelta(minutes=5), "5 min"),
    ],
)
def test_durations_are_named_in_their_largest_whole_unit(span: timedelta, text: str) -> None:
    """Reasons say `30 d` where the spec says 30d."""
    assert format_days(span) == text


@pytest.mark.parametrize("name", ["expire-plan", "expire-apply"])
def test_the_documents_of_a_plan_promise_every_rule(name: str) -> None:
    """A program that reads the JSON refuses a word that its schema does not know."""
    schema = (Path(__file__).parents[3] / "docs" / "json" / f"{name}.schema.json").read_text()

    assert [rule for rule in Rule if f'"{rule}"' not in schema] == []
