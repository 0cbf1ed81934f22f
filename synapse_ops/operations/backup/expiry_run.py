"""Carries out the removing entries of an expiry plan: checked once more, in the order that leaves nothing untrue.

Only what the plan names, what is decided again now, and what still has the listing that the plan saw; only keys that
were listed a moment before. WAL goes last, and only when every base backup that was to go went.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Protocol

from synapse_ops.domain.backup.catalog import CatalogEntry, ListedObject, gather, is_data
from synapse_ops.domain.backup.expiry_plan import Action, ExpiryPlan, PlanEntry
from synapse_ops.domain.backup.layout import BACKUP, KIND_BASE, BackupPlace
from synapse_ops.domain.backup.left_overs import is_past_grace
from synapse_ops.domain.backup.retention import Clocks, Decision, RetentionPolicy, is_held
from synapse_ops.domain.progress import Progress, ReportProgress
from synapse_ops.operations.backup.catalog import list_own_objects
from synapse_ops.operations.backup.lease import Lease
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.store import UploadInfo

_GONE = "it is gone already"
BATCH = 50  # backups listed again and then removed together: 500 keys, about a second from re-check to removal


class Wal(Protocol):
    """The WAL of one repository: which base backups it carries, what of it goes, and in which steps."""

    def carries(self, entry: CatalogEntry, since: datetime) -> bool: ...

    def plan(
        self,
        decisions: Sequence[Decision],
        unfinished: Iterable[BackupPlace],
        policy: RetentionPolicy,
        clocks: Clocks,
    ) -> tuple[tuple[PlanEntry, ...], tuple[str, ...]]: ...

    def list_again(self, entry: PlanEntry) -> tuple[bytes, tuple[list[str], ...]]: ...


ReadWal = Callable[[Repository], Wal]


@dataclass(frozen=True, slots=True)
class Skipped:
    """An entry that the plan would have removed and that stays, and why."""

    entry: PlanEntry
    reason: str


@dataclass
class ExpiryRun:
    """One application of a plan's removing entries, batch by batch. begun: of these a part may be deleted."""

    repository: Repository
    lease: Lease
    fresh: ExpiryPlan
    wal: ReadWal | None = None
    removed: list[PlanEntry] = field(default_factory=list)
    begun: list[PlanEntry] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def apply(self, entries: Sequence[PlanEntry], progress: ReportProgress) -> None:
        now_wanted = {_name(entry): entry for entry in self.fresh.entries}
        agreed = []
        for entry in entries:
            decided = now_wanted.get(_name(entry))
            reason = _objection(entry, decided)
            if reason:
                self.skipped.append(Skipped(entry, reason))
            else:
                agreed.append(entry)
        prefixes = [entry for entry in agreed if entry.action not in {Action.ABORT_UPLOAD, Action.EXPIRE_WAL}]
        for start in range(0, len(prefixes), BATCH):
            progress(Progress("removing", start, len(prefixes), unit="backups"))
            self._remove(prefixes[start : start + BATCH])
        for entry in agreed:
            if entry.upload is not None:
                self._abort(entry, entry.upload)
        self._remove_wal([entry for entry in agreed if entry.action is Action.EXPIRE_WAL], progress)

    def _remove_wal(self, entries: Sequence[PlanEntry], progress: ReportProgress) -> None:
        """Remove groups of segments, each listed once more; none while a base backup that was to go may still be there.

        What stays could need it: a restore may have begun to read that base backup a moment ago.
        """
        stayed = [row for row in self.skipped if row.entry.place.kind == KIND_BASE and row.reason != _GONE]
        if self.wal is None or stayed or self.failed:
            self.skipped += [Skipped(entry, "a base backup stays that may need it") for entry in entries]
            return
        read = self.wal(self.repository)
        for done, entry in enumerate(entries):
            progress(Progress("removing WAL", done, len(entries), unit="groups"))
            digest, steps = read.list_again(entry)
            if digest != entry.listing_digest:
                self.skipped.append(Skipped(entry, "its objects changed since the plan was made"))
                continue
            self.begun = [entry]
            for keys in steps:
                if not any(key in self.failed for key in chain.from_iterable(steps)):
                    self._delete(keys)
            if not any(key in self.failed for key in chain.from_iterable(steps)):
                self.removed.append(entry)
        self.begun = []

    def _remove(self, batch: Sequence[PlanEntry]) -> None:
        """List each prefix once more, then delete in three steps; what could not be deleted stops its later steps."""
        chosen: list[tuple[PlanEntry, list[str]]] = []
        for entry in batch:
            rows = list(list_own_objects(self.repository.store, entry.place))
            reason = self._late_objection(entry, rows)
            if reason:
                self.skipped.append(Skipped(entry, reason))
            else:
                chosen.append((entry, [row.name for row in rows]))
        self.begun = [entry for entry, _ in chosen]
        for step in (_is_backup, is_data, _is_marker):
            self._delete([entry.place.key(name) for entry, names in chosen for name in names if step(name)])
            chosen = [row for row in chosen if not any(row[0].place.key(name) in self.failed for name in row[1])]
        self.removed += [entry for entry, _ in chosen]
        self.begun = []

    def removal_lines(self) -> Iterator[str]:
        """Yield what is gone and what may be, for people; nothing when nothing was deleted."""
        if self.removed:
            yield f"removed before that: {len(self.removed)} entries, {sum(e.size_bytes for e in self.removed)} bytes"
        yield from (f"removed: {entry.place.prefix}" for entry in self.removed)
        yield from (f"removal begun, not finished: {entry.place.prefix}" for entry in self.begun)

    def _late_objection(self, entry: PlanEntry, rows: Sequence[ListedObject]) -> str:
        if not rows:
            return _GONE
        listed = gather(entry.place, rows)
        if listed.listing_digest != entry.listing_digest:
            return "its objects changed since the plan was made"
        clocks = Clocks(self.fresh.made_at, self.fresh.store_time)
        if is_held(listed.held_at, clocks):
            return "a restore or proof began to read it"
        if entry.action is Action.REMOVE_LEFT_OVER and not is_past_grace(listed.touched_at, self.fresh.policy, clocks):
            return "a run has started there again"
        return ""

    def _delete(self, keys: Sequence[str]) -> None:
        if keys:
            self.lease.check()
            self.failed.update(self.repository.store.delete(keys))

    def _abort(self, entry: PlanEntry, upload: tuple[str, str]) -> None:
        self.lease.check()
        name, upload_id = upload
        self.repository.store.abort_upload(UploadInfo(entry.place.key(name), upload_id, self.fresh.store_time))
        self.removed.append(entry)


def _is_backup(name: str) -> bool:
    return name == BACKUP


def _is_marker(name: str) -> bool:
    return not is_data(name) and name != BACKUP


def _name(entry: PlanEntry) -> tuple[BackupPlace, tuple[str, str] | None]:
    return entry.place, entry.upload


def _objection(entry: PlanEntry, decided: PlanEntry | None) -> str:
    """Return why an entry of the plan must not be removed by what is decided now, or an empty string."""
    if decided is None:
        return _GONE
    if decided.listing_digest != entry.listing_digest:
        return f"its objects changed since the plan was made; now: {decided.reason}"
    if not decided.removes:
        return decided.reason
    if decided.action is not entry.action:
        return f"it has changed since the plan; now: {decided.reason}"
    return ""
