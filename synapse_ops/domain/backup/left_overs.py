"""What an interrupted dump or a cut deletion left behind, and when it may go. Pure: clocks are arguments.

A prefix without `backup.json` is not a backup. A process that works in it renews an object there (`heartbeat.json`,
`reading-*.json`), so its age is that of its newest object, by the store's own clock on both sides: the host that wrote
it may be wrong by a day. A multipart upload is invisible in a listing and still paid for; it goes by the same rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from synapse_ops.domain.backup.catalog import ListedBackup
from synapse_ops.domain.backup.layout import BackupPlace
from synapse_ops.domain.backup.retention import LEAST_LEFT_OVER_GRACE, Clocks, RetentionPolicy, Rule
from synapse_ops.domain.durations import format_days


@dataclass(frozen=True, slots=True)
class DanglingUpload:
    """A multipart upload below a backup's prefix that was begun and not completed."""

    place: BackupPlace
    name: str
    upload_id: str
    initiated_at: datetime


@dataclass(frozen=True, slots=True)
class LeftOver:
    """One prefix without a backup, or one upload; whether it goes, and the reason in one line without a clock."""

    place: BackupPlace
    listed: ListedBackup | None
    upload: DanglingUpload | None
    goes: bool
    rule: Rule
    reason: str


def plan_left_overs(
    prefixes: Iterable[ListedBackup], uploads: Iterable[DanglingUpload], policy: RetentionPolicy, clocks: Clocks
) -> tuple[LeftOver, ...]:
    """Return a decision for every prefix without `backup.json` and every dangling upload, in order of their place.

    prefixes, uploads: any order. An upload waits for its prefix too: under a fresh heartbeat it is work.
    """
    rows = sorted(prefixes, key=lambda row: row.place)
    touched = {row.place: row.touched_at for row in rows}
    found = [_judge_prefix(row, policy, clocks) for row in rows]
    begun = sorted(uploads, key=lambda row: (row.place, row.name, row.upload_id))
    found += [_judge_upload(upload, touched.get(upload.place), policy, clocks) for upload in begun]
    return tuple(found)


def _judge_prefix(row: ListedBackup, policy: RetentionPolicy, clocks: Clocks) -> LeftOver:
    def decide(goes: bool, rule: Rule, reason: str) -> LeftOver:
        return LeftOver(row.place, row, None, goes, rule, reason)

    grace = format_days(max(policy.left_over_grace, LEAST_LEFT_OVER_GRACE))
    if clocks.differ:
        return decide(False, Rule.CLOCKS_DIFFER, "our clock and the store's differ by more than 5 min")
    if not is_past_grace(row.touched_at, policy, clocks):
        return decide(False, Rule.IN_GRACE, f"no backup.json; touched within the grace of {grace}, so work may go on")
    if not row.has_data:
        return decide(True, Rule.ONLY_MARKERS, f"no backup.json and no data; nothing touched it for {grace}")
    if row.pins:
        pins = ", ".join(row.pins)
        return decide(False, Rule.PINNED, f"no backup.json, but pinned: {pins}; salvage the data, then unpin it")
    return decide(True, Rule.LEFT_OVER, f"no backup.json; nothing touched it for {grace}")


def _judge_upload(
    upload: DanglingUpload, prefix_touched_at: datetime | None, policy: RetentionPolicy, clocks: Clocks
) -> LeftOver:
    def decide(goes: bool, rule: Rule, reason: str) -> LeftOver:
        return LeftOver(upload.place, None, upload, goes, rule, reason)

    grace = format_days(max(policy.left_over_grace, LEAST_LEFT_OVER_GRACE))
    if clocks.differ:
        return decide(False, Rule.CLOCKS_DIFFER, "our clock and the store's differ by more than 5 min")
    newest = max(upload.initiated_at, prefix_touched_at or upload.initiated_at)
    if not is_past_grace(newest, policy, clocks):
        return decide(False, Rule.IN_GRACE, f"upload of {upload.name} begun or touched within the grace of {grace}")
    return decide(True, Rule.LEFT_OVER, f"upload of {upload.name} never completed; nothing touched it for {grace}")


def is_past_grace(touched_at: datetime, policy: RetentionPolicy, clocks: Clocks) -> bool:
    """Whether no process has worked there for the grace. touched_at: the store's clock, so judged by it."""
    return clocks.stores - touched_at >= max(policy.left_over_grace, LEAST_LEFT_OVER_GRACE)
