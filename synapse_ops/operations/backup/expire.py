"""Makes an expiry plan, stores it under its digest (operations/backup/expiry_plans.py), and does exactly that plan.

Applying decides again, from a fresh listing and with the plan's own policy, and removes only what both decisions name
and what still has the listing that the plan saw. So a pin, a hold, a void proof or a moved clock that came after the
plan keeps a backup, and nothing that the plan does not name is ever removed. Per batch of backups the order is
`backup.json`, then data, then documents and markers: a cut at any step leaves whole backups, and left-overs that the
next plan names. Only keys that were listed a moment before are deleted. WAL goes last, and only when every base backup
that was to go went.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain
from typing import Protocol

from synapse_ops.domain.backup.catalog import CatalogEntry, ListedObject, gather, is_data
from synapse_ops.domain.backup.expiry_plan import MAX_AGE, Action, ExpiryPlan, PlanEntry, entries_of, excesses_of
from synapse_ops.domain.backup.layout import BACKUP, KIND_BASE, BackupPlace, parse_key
from synapse_ops.domain.backup.left_overs import DanglingUpload, is_past_grace, plan_left_overs
from synapse_ops.domain.backup.retention import (
    CLOCK_TOLERANCE,
    Clocks,
    Decision,
    RetentionPolicy,
    is_held,
    is_whole,
    plan_retention,
)
from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.errors import PlanChanged, Refused, SynapseOpsError, Unreachable, counted
from synapse_ops.operations.backup.catalog import list_own_objects, read_catalog
from synapse_ops.operations.backup.expiry_plans import (
    mark_applied,
    read_applied_at,
    read_plan,
    remove_old_plans,
    store_plan,
)
from synapse_ops.operations.backup.lease import Lease, hold_lease
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.store import UploadInfo

__all__ = ["ExpiryPlan", "ExpiryReport", "RetentionPolicy", "Skipped", "apply_expiry", "make_expiry_plan", "read_plan"]

LEASE = "expiry"
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


@dataclass(frozen=True, slots=True)
class ExpiryReport:
    """What one apply did. applied_at: when this digest had been applied before; then nothing was done now.

    old_plans_removed: keys of plans that can no longer be applied (operations/backup/expiry_plans.py).
    """

    digest: str
    removed: tuple[PlanEntry, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    applied_at: datetime | None = None
    warnings: tuple[str, ...] = ()
    old_plans_removed: tuple[str, ...] = ()

    @property
    def freed_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.removed)

    def __str__(self) -> str:
        if self.applied_at is not None:
            return f"plan {self.digest} was applied at {self.applied_at.isoformat(timespec='seconds')}; nothing to do"
        return (
            f"plan {self.digest}: removed {len(self.removed)} of its entries, {self.freed_bytes} bytes; "
            f"kept {len(self.skipped)} that changed since; removed {len(self.old_plans_removed)} old plans"
        )

    def as_json(self) -> dict[str, object]:
        """Return the report's fields; stable names."""
        return {
            "digest": self.digest,
            "applied_before": self.applied_at.isoformat() if self.applied_at else None,
            "removed": [entry.as_json() for entry in self.removed],
            "skipped": [{**row.entry.as_json(), "skipped_because": row.reason} for row in self.skipped],
            "freed_bytes": self.freed_bytes,
            "old_plans_removed": list(self.old_plans_removed),
            "warnings": list(self.warnings),
        }

    def counts(self) -> dict[str, int]:
        """Return what the marker of an applied plan keeps."""
        return {"removed": len(self.removed), "skipped": len(self.skipped), "freed_bytes": self.freed_bytes}


def make_expiry_plan(
    repository: Repository,
    policy: RetentionPolicy,
    now: datetime,
    *,
    kind: str | None = None,
    subject: str | None = None,
    wal: ReadWal | None = None,
) -> ExpiryPlan:
    """Decide about what lies in the repository, store the plan under its digest and return it. Removes nothing.

    now: our clock (aware UTC). kind, subject: only these are in the plan, None for all. Two kinds may share a
    repository, and each is judged by its own policy: a plan by the policy of one kind must name that kind.
    wal: reads the WAL behind base backups; without it none of them expires.
    Safe to repeat: an unchanged repository gives the same digest and a younger plan.
    """
    plan = _decide(repository, policy, now, kind=kind, subject=subject, wal=wal)
    store_plan(repository, plan)
    return plan


def apply_expiry(
    repository: Repository,
    digest: str,
    now: datetime,
    *,
    accept_ratio: float | None = None,
    wal: ReadWal | None = None,
    progress: ReportProgress = ignore_progress,
) -> ExpiryReport:
    """Remove what the plan of this digest names and what may still go; a digest that was applied does nothing.

    accept_ratio: 0 to 1, what a person accepts instead of the plan's `max_expiry_ratio`.
    Raises PlanChanged (no such plan, or older than 24 h), Refused (too large a part, clocks differ), LeaseHeld,
    LeaseLost, Unreachable (some deletes did not succeed; applying again goes on). The detail of an error names what was
    removed before it.
    """
    began = time.monotonic()
    used_at = read_applied_at(repository, digest)
    if used_at is not None:
        return ExpiryReport(digest, applied_at=used_at)
    plan = read_plan(repository, digest)
    clocks = Clocks(now, repository.store.server_time())
    _refuse_wrong_clocks(clocks)
    _refuse_old_plan(plan, clocks)
    _refuse_ratio(plan, accept_ratio)
    owner = f"expire of {socket.gethostname()}, pid {os.getpid()}"
    with hold_lease(repository, LEASE, owner=owner) as lease:
        used_at = read_applied_at(repository, digest)  # by the one for whom we may have waited
        if used_at is not None:
            return ExpiryReport(digest, applied_at=used_at)
        is_physical = any(entry.place.kind == KIND_BASE for entry in plan.entries)
        read_wal = wal if is_physical else None
        fresh = _decide(repository, plan.policy, now + timedelta(seconds=time.monotonic() - began), wal=read_wal)
        _refuse_wrong_clocks(Clocks(fresh.made_at, fresh.store_time))
        run = _Run(repository, lease, fresh, read_wal)
        with _removed_named(run):
            run.apply([entry for entry in plan.entries if entry.removes], progress)
            _refuse_failed(run, repository)
            lease.check()
        old_plans = remove_old_plans(repository, fresh.store_time, keep=digest)
        report = ExpiryReport(
            digest, tuple(run.removed), tuple(run.skipped), warnings=lease.warnings, old_plans_removed=old_plans
        )
        mark_applied(repository, digest, report.counts(), now)
    return report


def _decide(
    repository: Repository,
    policy: RetentionPolicy,
    now: datetime,
    *,
    kind: str | None = None,
    subject: str | None = None,
    wal: ReadWal | None = None,
) -> ExpiryPlan:
    catalog = read_catalog(repository).only(kind, subject)
    clocks = Clocks(now, catalog.read_at)
    read = wal(repository) if wal is not None and kind in {None, KIND_BASE} else None
    decisions = list(plan_retention(catalog.backups, policy, clocks, read.carries if read is not None else is_whole))
    uploads = [row for row in _dangling_uploads(repository) if row.place.is_of(kind, subject)]
    left_overs = plan_left_overs(catalog.left_overs, uploads, policy, clocks)
    unfinished = {row.place for row in left_overs if not row.goes}
    segments, notes = read.plan(decisions, unfinished, policy, clocks) if read is not None else ((), ())
    entries = entries_of(decisions, left_overs, segments)
    found = excesses_of(entries, policy.max_expiry_ratio)
    warnings = [
        f"would remove {row.expiring} of {row.total} backups of {row.place.subject}: more than "
        f"{policy.max_expiry_ratio:.0%} (retention.max_expiry_ratio), so applying needs confirmation"
        for row in found
    ]
    if clocks.differ:
        warnings.append(_clock_fault(clocks))
    return ExpiryPlan(policy, now, catalog.read_at, entries, found, tuple(warnings), catalog.foreign_count, notes)


def _dangling_uploads(repository: Repository) -> list[DanglingUpload]:
    """Return the uploads under our own keys; all others are foreign, as their objects are."""
    found = []
    for upload in repository.store.list_uploads():
        parsed = parse_key(upload.key)
        if parsed is not None:
            found.append(DanglingUpload(parsed.place, parsed.name, upload.upload_id, upload.initiated_at))
    return found


def _refuse_wrong_clocks(clocks: Clocks) -> None:
    if clocks.differ:
        raise Refused(_clock_fault(clocks), hint="Set the clock of this host (`timedatectl`), then plan again.")


def _clock_fault(clocks: Clocks) -> str:
    seconds = abs(clocks.ours - clocks.stores).total_seconds()
    limit_s = CLOCK_TOLERANCE.total_seconds()
    return f"our clock and the store's differ by {seconds:.0f} s, limit {limit_s:.0f} s: nothing expires"


def _refuse_old_plan(plan: ExpiryPlan, clocks: Clocks) -> None:
    age = clocks.stores - plan.store_time
    if age > MAX_AGE or age < -CLOCK_TOLERANCE:
        raise PlanChanged(
            f"plan {plan.digest} was made at {plan.store_time.isoformat(timespec='seconds')}, "
            f"{age.total_seconds() / 3600:.1f} h ago, limit {MAX_AGE.total_seconds() / 3600:.0f} h",
            hint="`synapse-ops expire --plan` makes a new one.",
        )


def _refuse_ratio(plan: ExpiryPlan, accept_ratio: float | None) -> None:
    limit = plan.policy.max_expiry_ratio if accept_ratio is None else accept_ratio
    found = excesses_of(plan.entries, limit)
    if not found:
        return
    worst = max(found, key=lambda row: row.ratio)
    setting = "retention.max_expiry_ratio" if accept_ratio is None else "--accept-ratio"
    raise Refused(
        f"plan {plan.digest} would remove {worst.expiring} of {worst.total} backups of {worst.place.subject} "
        f"({worst.ratio:.0%}), limit {limit:.0%} ({setting})",
        detail="\n".join(f"{row.place.subject}: {row.expiring} of {row.total}" for row in found),
        hint="If this is intended, accept it with "
        f"`synapse-ops expire --apply {plan.digest} --accept-ratio {_rounded_up(worst.ratio)}`.",
    )


def _rounded_up(ratio: float) -> float:
    return min(1.0, int(ratio * 100 + 1) / 100)


def _refuse_failed(run: _Run, repository: Repository) -> None:
    if run.failed:
        raise Unreachable(
            f"could not delete {counted(len(run.failed), 'object')} of {repository.url}",
            detail="\n".join(f"{key}: {reason}" for key, reason in sorted(run.failed.items())[:10]),
            hint="Apply the same plan again: it skips what is gone and retries the rest.",
        )


@contextmanager
def _removed_named(run: _Run) -> Iterator[None]:
    """Add to an error what the run removed before: no report and no marker will say so."""
    try:
        yield
    except SynapseOpsError as error:
        error.detail = "\n".join(filter(None, [error.detail, *run.removal_lines()]))
        raise


@dataclass
class _Run:
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
