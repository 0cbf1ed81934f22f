"""Plans what of Dagster's own history goes, and removes exactly that: runs, output, ticks, events outside of runs.

Whatever its age, this stays: a run in progress; the newest event of each asset, partition and check, and the run that
holds it; every record of a failover; the records of a backup that is still in the repository, because the sensor
that reads the repository would report it anew, as if it had just been made.
The instance is given, so that this runs in a run of Dagster and from the CLI alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.backup.kinds import KINDS
from synapse_ops.domain.durations import format_days
from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.cleanup.plan_file import Draft, Outcome, StoredPlan, apply_plan, write_plan
from synapse_ops.systems import dagster_storage as storage

if TYPE_CHECKING:
    from synapse_ops.operations.stack import Stack

KIND = "history"
FAILOVER_KEYS = ("failover_record", "rejoined_standby")
BACKUP_KEYS = tuple(key for kind in KINDS.values() for key in (kind.backup_asset, kind.proof_asset))
KEPT_KEYS = (*FAILOVER_KEYS, *BACKUP_KEYS)  # of events outside of runs; of runs, those of backups are looked at singly
BACKUP_ID = "backup_id"  # in the metadata of their events
_EVENT_BATCH = 500


@dataclass(frozen=True, slots=True)
class HistoryAges:
    """The spec's `cleanup.run_history`."""

    runs: timedelta
    ticks: timedelta
    events: timedelta
    compute_logs: timedelta

    def as_json(self) -> dict[str, float]:
        return {f"{name}_s": getattr(self, name).total_seconds() for name in self.__slots__}


@dataclass
class _Backups:
    """The ids of the backups of every kind, read when first asked for; None when a repository cannot be read."""

    stack: Stack
    is_read: bool = False
    ids: frozenset[str] | None = None

    def read(self) -> frozenset[str] | None:
        if not self.is_read:
            from synapse_ops.operations.backup.catalog import read_catalog
            from synapse_ops.operations.backup_kinds import kinds_of

            self.is_read = True
            try:
                self.ids = frozenset(
                    entry.place.backup_id
                    for kind in kinds_of(self.stack.spec)
                    for entry in read_catalog(kind.repository(self.stack)).backups
                )
            except SynapseOpsError:
                self.ids = None  # unknown: every run that made a backup stays
        return self.ids


def make_history_plan(
    stack: Stack, instance: storage.Instance, now: datetime, *, progress: ReportProgress = ignore_progress
) -> StoredPlan:
    """List what is past its age and may go; removes nothing."""
    rules = stack.spec.cleanup.run_history
    ages = HistoryAges(rules.runs, rules.ticks, rules.events, rules.compute_logs)
    with write_plan(stack.state_dir, KIND, ages.as_json(), now) as draft:
        scan = _Scan(instance, draft, _Backups(stack), progress)
        scan.runs(ages, now)
        scan.ticks(ages, now)
        scan.events(ages, now)
        draft.totals = scan.totals
    return draft.plan


def apply_history_plan(
    digest: str,
    stack: Stack,
    instance: storage.Instance,
    now: datetime,
    *,
    progress: ReportProgress = ignore_progress,
) -> Outcome:
    """Remove what the plan of this digest names and what may still go.

    Raises PlanChanged (no such plan, used, older than 24 h), LeaseHeld, Unreachable (Dagster's storage).
    """
    with apply_plan(stack.state_dir, KIND, digest, now) as (plan, outcome):
        policy = plan.header["policy"]
        run = _Run(instance, outcome, storage.runs_with_newest_events(instance, FAILOVER_KEYS))
        entries = (body for body in plan.entries() if body["action"] != "keep")
        before = plan.made_at - timedelta(seconds=policy["events_s"])
        done = 0
        while batch := list(islice(entries, _EVENT_BATCH)):
            run.events([body for body in batch if body["rule"] == "old-event"], before)
            for body in batch:
                run.one(body)
            done += len(batch)
            progress(Progress("removing history", done, unit="entries"))
    return outcome


@dataclass
class _Scan:
    """One look at the history."""

    instance: storage.Instance
    draft: Draft
    backups: _Backups
    progress: ReportProgress
    totals: dict[str, Any] = field(
        default_factory=lambda: {"runs": 0, "compute_logs": 0, "ticks_of": 0, "events": 0, "kept": 0}
    )

    def runs(self, ages: HistoryAges, now: datetime) -> None:
        newest = storage.runs_with_newest_events(self.instance, FAILOVER_KEYS)
        youngest = now - min(ages.runs, ages.compute_logs)
        for seen, run in enumerate(storage.finished_runs_before(self.instance, youngest)):
            if seen % 1000 == 0:
                self.progress(Progress("scanning runs", seen, unit="runs"))
            subject = f"run {run.run_id} of {run.job}"
            facts = {"run_id": run.run_id, "ended_at": run.ended_at.astimezone(UTC).isoformat(timespec="seconds")}
            stays = ""
            if run.ended_at < now - ages.runs:
                stays = self._why_a_run_stays(run.run_id, newest)
                if not stays:
                    reason = f"ended more than {format_days(ages.runs)} ago"
                    self._add("runs", "delete", "old-run", subject, reason, facts)
                    continue
                self._add("kept", "keep", "needed-run", subject, stays, facts)
            if run.ended_at < now - ages.compute_logs and storage.has_compute_logs(self.instance, run.run_id):
                reason = f"ended more than {format_days(ages.compute_logs)} ago"
                self._add("compute_logs", "delete", "old-output", f"output of {subject}", reason, facts)

    def _why_a_run_stays(self, run_id: str, newest: frozenset[str]) -> str:
        if run_id in newest:
            return "it holds the newest event of an asset, partition or check, or records a failover"
        told = storage.materialized_values(self.instance, run_id, BACKUP_ID)
        if not told:
            return ""
        known = self.backups.read()
        if known is None:
            return "it records a backup, and the repository could not be read"
        return "it records a backup that is still in the repository" if told & known else ""

    def ticks(self, ages: HistoryAges, now: datetime) -> None:
        for ticks in storage.ticks_before(self.instance, now - ages.ticks):
            facts = {"origin_id": ticks.origin_id, "selector_id": ticks.selector_id, "before_s": ticks.before_s}
            reason = f"older than {format_days(ages.ticks)}; its newest tick stays"
            self._add("ticks_of", "delete", "old-ticks", f"ticks of {ticks.name}", reason, facts)

    def events(self, ages: HistoryAges, now: datetime) -> None:
        reason = f"older than {format_days(ages.events)}, and a newer one of its kind stands"
        for event in storage.superseded_events(self.instance, now - ages.events, KEPT_KEYS):
            subject = f"{event.kind} of {event.about}"
            self._add("events", "delete", "old-event", subject, reason, {"event_id": event.event_id})

    def _add(self, total: str, action: str, rule: str, subject: str, reason: str, facts: Mapping[str, Any]) -> None:
        self.totals[total] += 1
        body = {"action": action, "rule": rule, "reason": reason, "subject": subject, **facts}
        self.draft.writer.add(body, acts=action != "keep")


@dataclass
class _Run:
    """One application of a plan's entries. newest: runs that hold a newest event now."""

    instance: storage.Instance
    outcome: Outcome
    newest: frozenset[str]

    def one(self, body: Mapping[str, Any]) -> None:
        rule = body["rule"]
        if rule in ("old-run", "old-output"):
            self._of_run(body, rule)
        elif rule == "old-ticks":
            ticks = storage.OldTicks("", body["origin_id"], body["selector_id"], body["before_s"])
            storage.purge_ticks(self.instance, ticks)
            self.outcome.did("delete")

    def _of_run(self, body: Mapping[str, Any], rule: str) -> None:
        run_id = body["run_id"]
        finished = storage.is_finished(self.instance, run_id)
        if finished is None:
            self.outcome.skip(body, "it is gone already")
        elif not finished:
            self.outcome.skip(body, "it is in progress again")
        elif rule == "old-run" and run_id in self.newest:
            self.outcome.skip(body, "it holds the newest event of an asset, partition or check now")
        else:
            (storage.delete_run if rule == "old-run" else storage.delete_compute_logs)(self.instance, run_id)
            self.outcome.did("delete")

    def events(self, bodies: list[dict[str, Any]], before: datetime) -> None:
        if not bodies:
            return
        ids = [body["event_id"] for body in bodies]
        left = storage.delete_superseded_events(self.instance, ids, before, KEPT_KEYS)
        for body in bodies:
            if body["event_id"] in left:
                self.outcome.skip(body, "it is the newest of its kind now")
            else:
                self.outcome.did("delete")
