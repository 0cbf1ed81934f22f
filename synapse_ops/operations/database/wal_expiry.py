"""The WAL of a repository as expiry sees it: what base backups need of it, what goes, and in which order.

Index first, then the facts beside segments, then segments and chunks: a cut at any step leaves no document that names
WAL which is gone. What a cut left lies in no index, so that the next reading of the archive lists it and finds it.
Claims and histories of timelines stay: a few hundred bytes, by which a server that was left behind is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from synapse_ops.domain.backup.base_record import BaseRecord
from synapse_ops.domain.backup.catalog import CatalogEntry
from synapse_ops.domain.backup.expiry_plan import Action, PlanEntry
from synapse_ops.domain.backup.layout import KIND_BASE, WAL, BackupPlace, Identity
from synapse_ops.domain.backup.retention import Clocks, Decision, RetentionPolicy, Rule, is_carrier
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Segment
from synapse_ops.domain.database.wal_chain import WalArchive
from synapse_ops.domain.database.wal_facts import TimelineClaim
from synapse_ops.domain.database.wal_keys import GROUP, claim_key, parse_wal_key, timeline_prefix
from synapse_ops.domain.database.wal_retention import (
    BaseSpan,
    KeptWal,
    WalGroup,
    carries,
    kept_wal,
    plan_wal_retention,
)
from synapse_ops.errors import DocumentUnreadable, ObjectMissing
from synapse_ops.operations.backup.catalog import read_record
from synapse_ops.operations.database.wal_archive import READERS, list_wal_identities, read_wal_archive
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.store import ObjectInfo


class WalExpiry:
    """One reading of a repository's WAL; what it says is of the moment at which it was asked first."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._archives: dict[Identity, WalArchive] = {}
        self._spans: dict[BackupPlace, BaseSpan | None] = {}

    def carries(self, entry: CatalogEntry, since: datetime) -> bool:
        """Return whether a backup restores what was at a moment; a base backup by its WAL, all others by themselves."""
        if entry.place.kind != KIND_BASE:
            return True
        span = self._span(entry.place)
        return span is not None and carries(self._archive(entry.place.identity), span, since)

    def plan(
        self,
        decisions: Sequence[Decision],
        unfinished: Iterable[BackupPlace],
        policy: RetentionPolicy,
        clocks: Clocks,
    ) -> tuple[tuple[PlanEntry, ...], tuple[str, ...]]:
        """Return the groups of segments that expire, and in one line for each server what stays and why.

        decisions: about every backup of the repository. What stays is no entry: it grows each second.
        """
        if clocks.differ:
            return (), ()
        unfinished = [place for place in unfinished if place.kind == KIND_BASE]
        entries: list[PlanEntry] = []
        notes = []
        for identity in list_wal_identities(self._repository):
            needed = kept_wal(
                [row for row in decisions if row.entry.place.identity == identity],
                [place for place in unfinished if place.identity == identity],
                self._span,
                lambda entry: is_carrier(entry, policy, clocks, self.carries),
                clocks,
            )
            going, note = self._plan_identity(identity, needed)
            entries += going
            notes.append(note)
        return tuple(entries), tuple(notes)

    def _plan_identity(self, identity: Identity, needed: Sequence[KeptWal]) -> tuple[list[PlanEntry], str]:
        groups = self._groups(identity)
        decided = list(plan_wal_retention(groups, needed))
        expiring = [row for row in decided if row.expires]
        with ThreadPoolExecutor(READERS, thread_name_prefix="wal") as pool:
            listed = pool.map(lambda row: list(self._list_group(identity, row.group)), expiring)
            going = [_entry(identity, row.group, row.reason, rows) for row, rows in zip(expiring, listed, strict=True)]
        kept_bytes = sum(groups[row.group] for row in decided if not row.expires)
        first = min(needed, key=lambda one: one.start)
        return (
            going,
            f"WAL of {identity} that stays: {kept_bytes / 2**20:.1f} MiB, from {first.start} on, for {first.why}",
        )

    def list_again(self, entry: PlanEntry) -> tuple[bytes, tuple[list[str], ...]]:
        """Return the digest of what lies in a group now, and its keys in the steps in which they go."""
        claim = self._claim(entry.place)
        group = WalGroup.of(Segment.parse(entry.place.backup_id, claim.segment_bytes))
        rows = list(self._list_group(entry.place.identity, group))
        return _digest(rows), steps_of(rows)

    def _claim(self, place: BackupPlace) -> TimelineClaim:
        timeline = int(place.backup_id[:8], 16)
        key = claim_key(place.identity, timeline)
        return TimelineClaim.from_json(self._repository.store.read_bytes(key), key=key)

    def _archive(self, identity: Identity) -> WalArchive:
        if identity not in self._archives:
            self._archives[identity] = read_wal_archive(self._repository, identity)
        return self._archives[identity]

    def _span(self, place: BackupPlace) -> BaseSpan | None:
        if place not in self._spans:
            self._spans[place] = self._read_span(place)
        return self._spans[place]

    def _read_span(self, place: BackupPlace) -> BaseSpan | None:
        try:
            record = read_record(self._repository, place)
        except (DocumentUnreadable, ObjectMissing):
            return None
        if not isinstance(record, BaseRecord):
            return None
        return BaseSpan(record.timeline, Lsn.parse(record.start_lsn), Lsn.parse(record.stop_lsn))

    def _groups(self, identity: Identity) -> dict[WalGroup, int]:
        """Return the groups of which something is stored, with the bytes of their whole segments, as far as is known.

        By what the archive knows: 100,000 segments are not listed to find the few that go. A timeline without a claim
        is foreign, and holds nothing here.
        """
        found: dict[WalGroup, int] = {}
        for row in self._archive(identity).timelines:
            for number in {*row.segments, *row.unread, *row.chunks}:
                group = WalGroup(row.timeline, number // GROUP, row.segment_bytes)
                facts = row.segments.get(number)
                found[group] = found.get(group, 0) + (facts.size_bytes if facts is not None else 0)
        return found

    def _list_group(self, identity: Identity, group: WalGroup) -> Iterator[ObjectInfo]:
        last = Segment(group.timeline, group.first.number + GROUP - 1, group.segment_bytes)
        shared = _common_prefix(group.first.name, last.name)
        for prefix in (timeline_prefix(identity, group.timeline), f"{timeline_prefix(identity, group.timeline)}index/"):
            for row in self._repository.store.list_objects(prefix + shared):
                key = parse_wal_key(row.key)
                if key is not None and WalGroup.of(Segment.parse(key.segment, group.segment_bytes)) == group:
                    yield row


def _common_prefix(one: str, other: str) -> str:
    count = next((n for n, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), len(one))
    return one[:count]


def steps_of(rows: Iterable[ObjectInfo]) -> tuple[list[str], ...]:
    """Return the keys of a group in the three steps in which they go: index, facts, bytes."""
    order = {"index": 0, "facts": 1}
    steps: tuple[list[str], ...] = ([], [], [])
    for row in rows:
        key = parse_wal_key(row.key)
        if key is not None:
            steps[order.get(key.kind, 2)].append(row.key)
    return steps


def _entry(identity: Identity, group: WalGroup, reason: str, rows: Sequence[ObjectInfo]) -> PlanEntry:
    return PlanEntry(
        action=Action.EXPIRE_WAL,
        place=BackupPlace(identity, WAL, f"timeline {group.timeline}", group.first.name),
        rule=Rule.PAST_WINDOW,
        reason=reason,
        size_bytes=sum(row.size_bytes for row in rows),
        listing_digest=_digest(rows),
        taken_at=None,
        proven_at=None,
        doubt="",
        upload=None,
    )


def _digest(rows: Iterable[ObjectInfo]) -> bytes:
    digest = hashlib.sha256()
    for key, size_bytes, etag in sorted((row.key, row.size_bytes, row.etag) for row in rows):
        digest.update(f"{key}\0{size_bytes}\0{etag}\n".encode())
    return digest.digest()[:16]
