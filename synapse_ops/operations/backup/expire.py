"""Makes an expiry plan, stores it under its digest (operations/backup/expiry_plans.py), and does exactly that plan.

Applying decides again, from a fresh listing and with the plan's own policy, and removes only what both decisions name
(operations/backup/expiry_run.py). So a pin, a hold, a void proof or a moved clock that came after the plan keeps a
backup, and nothing that the plan does not name is ever removed. Per batch of backups the order is `backup.json`, then
data, then documents and markers: a cut at any step leaves whole backups, and left-overs that the next plan names.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from synapse_ops.domain.backup.expiry_plan import MAX_AGE, ExpiryPlan, PlanEntry, entries_of, excesses_of
from synapse_ops.domain.backup.layout import KIND_BASE, parse_key
from synapse_ops.domain.backup.left_overs import DanglingUpload, plan_left_overs
from synapse_ops.domain.backup.retention import (
    CLOCK_TOLERANCE,
    Clocks,
    RetentionPolicy,
    is_whole,
    plan_retention,
)
from synapse_ops.domain.progress import ReportProgress, ignore_progress
from synapse_ops.errors import PlanChanged, Refused, SynapseOpsError, Unreachable, counted
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup.expiry_plans import (
    mark_applied,
    read_applied_at,
    read_plan,
    remove_old_plans,
    store_plan,
)
from synapse_ops.operations.backup.expiry_run import ExpiryRun, ReadWal, Skipped
from synapse_ops.operations.backup.lease import hold_lease
from synapse_ops.operations.repository import Repository

__all__ = ["ExpiryPlan", "ExpiryReport", "RetentionPolicy", "Skipped", "apply_expiry", "make_expiry_plan", "read_plan"]

LEASE = "expiry"


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
        run = ExpiryRun(repository, lease, fresh, read_wal)
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


def _refuse_failed(run: ExpiryRun, repository: Repository) -> None:
    if run.failed:
        raise Unreachable(
            f"could not delete {counted(len(run.failed), 'object')} of {repository.url}",
            detail="\n".join(f"{key}: {reason}" for key, reason in sorted(run.failed.items())[:10]),
            hint="Apply the same plan again: it skips what is gone and retries the rest.",
        )


@contextmanager
def _removed_named(run: ExpiryRun) -> Iterator[None]:
    """Add to an error what the run removed before: no report and no marker will say so."""
    try:
        yield
    except SynapseOpsError as error:
        error.detail = "\n".join(filter(None, [error.detail, *run.removal_lines()]))
        raise
