"""Chooses what a recovery restores, from what the repositories hold. Reads only."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from synapse_ops.domain.backup.ages import SLACK, data_time
from synapse_ops.domain.backup.base_record import BaseRecord
from synapse_ops.domain.backup.catalog import CatalogEntry
from synapse_ops.domain.backup.restore_estimate import predict_from
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.recovery_plan import BaseCandidate, plan_recovery
from synapse_ops.domain.database.recovery_target import RecoveryTarget
from synapse_ops.domain.database.wal_chain import reach
from synapse_ops.domain.recovery.choice import choose_proven, still_backed_up, usable_bases
from synapse_ops.domain.recovery.recovery_record import Chosen
from synapse_ops.domain.recovery.restorable_spans import restorable_spans
from synapse_ops.errors import ConfigError, ObjectMissing, Refused, SynapseOpsError
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup.reading import ReadLog, read_backup_document
from synapse_ops.operations.backup_kinds import BASES, RDBS, SNAPSHOTS
from synapse_ops.operations.database.wal_archive import read_wal_archive
from synapse_ops.operations.stack import Stack

LATEST = "latest"


@dataclass(frozen=True)
class BaseChoice:
    """The base backup that leads to a moment. notes: about it and about those left out. entries: all usable ones.

    first_at, last_at: every moment between them can be restored, up to the last commit of its server that is stored.
    stored_up_to: the end of the WAL that is stored without a gap.
    """

    entry: CatalogEntry
    notes: tuple[str, ...]
    entries: tuple[CatalogEntry, ...]
    first_at: datetime
    last_at: datetime
    stored_up_to: Lsn


@dataclass(frozen=True)
class Choice:
    """What is restored. empty: stores that begin empty, and why. predicted_s: None: one was never measured."""

    base: BaseChoice
    identity: str
    chosen: tuple[Chosen, ...]
    empty: dict[str, str]
    predicted_s: float | None


def choose_backups(stack: Stack, until: str, now: datetime, *, avoid: Collection[str] = ()) -> Choice:
    """Return what brings the stack to a moment. until: `latest` or `time:...`. avoid: ids that could not be restored.

    Raises ConfigError for another form, Refused or ObjectMissing where PostgreSQL cannot be brought there.
    """
    target = parse_moment(until)
    base = choose_base(stack, target, avoid)
    cluster = Chosen("cluster", base.entry.place.backup_id, target.time, "; ".join(base.notes))
    chosen, empty = [cluster], dict[str, str]()
    predicted = [predict_from(base.entries, base.entry.source_size_bytes)]
    for what, of_subject in _others(stack, empty):
        entry = choose_proven(of_subject, target.time, now)
        if entry is None:
            before = f" from before {target.time.isoformat()}" if target.time is not None else ""
            empty[what] = f"no proven backup of it{before} is there"
            continue
        chosen.append(_chosen(stack, what, entry))
        predicted.append(predict_from(of_subject, entry.source_size_bytes))
    known = [one for one in predicted if one is not None]
    total = round(sum(known), 1) if len(known) == len(predicted) else None
    return Choice(base, str(base.entry.place.identity), tuple(chosen), empty, total)


def parse_moment(until: str) -> RecoveryTarget:
    """Return the moment to which all stores go. Raises ConfigError for one that only PostgreSQL knows."""
    target = RecoveryTarget.parse(until)
    if target.kind not in {LATEST, "time"}:
        raise ConfigError(
            f'a recovery of all stores goes to latest or to a time, and not to "{until}"',
            hint="`synapse-ops restore cluster --until ...` takes every form, for PostgreSQL alone.",
        )
    return target


def choose_base(stack: Stack, target: RecoveryTarget, avoid: Collection[str] = ()) -> BaseChoice:
    """Return the base backup of the newest server whose WAL leads to the target.

    A recovery gives the restored server a generation of its own: what lies before it was stored by the one before.
    """
    catalog = read_catalog(stack.database_repository()).only(BASES.name)
    entries, notes = usable_bases(catalog.backups, avoid)
    if not entries:
        raise Refused(
            "no base backup can be restored",
            detail="\n".join(notes) or "the repository holds none",
            hint="`synapse-ops backup list` shows the dumps; each restores one database.",
        )
    systems = sorted({one.place.identity.system_identifier for one in entries})
    if len(systems) > 1:
        raise Refused(
            f"the repository holds base backups of {len(systems)} servers: {', '.join(systems)}",
            hint="Restore one of them by the id of its base backup: `synapse-ops restore ID --to DIRECTORY`.",
        )
    repository, keys = stack.database_repository(), stack.age_identities()
    first: SynapseOpsError | None = None
    for identity in dict.fromkeys(one.place.identity for one in sorted(entries, key=data_time, reverse=True)):
        own = [one for one in entries if one.place.identity == identity]
        records = [read_backup_document(repository, one.place, ReadLog(), BaseRecord) for one in own]
        bases = [BaseCandidate(one.place, record) for one, record in zip(own, records, strict=True)]
        try:
            archive = read_wal_archive(repository, identity, age_identities=keys)
            plan = plan_recovery(bases, archive, target)
        except (Refused, ObjectMissing) as error:
            first = first or error
            continue
        entry = next(one for one in own if one.place == plan.base.place)
        if entry.proven_at is None:
            notes = (*notes, "it was not proven before: this restore is its first")
        stopped_at = plan.base.record.stopped_time
        last_commit_at = reach(archive, plan.history, plan.base.start).last_commit_at
        last_at = max(last_commit_at or stopped_at, stopped_at)
        spans = restorable_spans(records, archive, last_at)
        first_at = spans[-1][0] if spans else stopped_at
        return BaseChoice(entry, notes, entries, first_at, last_at, plan.end)
    raise first or Refused("no base backup can be restored")


def _others(stack: Stack, empty: dict[str, str]) -> list[tuple[str, tuple[CatalogEntry, ...]]]:
    """Return the other stores with their backups; what begins empty is put into `empty`."""
    found = []
    catalog = read_catalog(stack.vector_repository()).only(SNAPSHOTS.name)
    newest = {name: max(map(data_time, catalog.of_subject(name))) for name in catalog.subjects()}
    promised = SNAPSHOTS.schedule(stack.spec).longest_gap(stack.spec.time_zone) + SLACK
    for name, at in newest.items():
        if still_backed_up(tuple(newest.values()), at, promised):
            found.append((f"{SNAPSHOTS.word}/{name}", catalog.of_subject(name)))
    if RDBS.is_on(stack.spec):
        [address] = RDBS.subjects(stack)
        catalog = read_catalog(stack.redis_repository()).only(RDBS.name)
        found.append((f"{RDBS.word}/{address}", catalog.of_subject(address)))
    else:
        empty["redis"] = "it is a cache: backup.redis is null"
    return found


def _chosen(stack: Stack, what: str, entry: CatalogEntry) -> Chosen:
    note, window_s = "", 0.0
    if what.startswith(SNAPSHOTS.word):
        from synapse_ops.domain.backup.snapshot_record import SnapshotRecord

        record = read_backup_document(stack.vector_repository(), entry.place, ReadLog(), SnapshotRecord)
        window = record.window
        window_s = round((window.closed_at - window.opened_at).total_seconds(), 3)
        note = f"read from {window.opened_at:%H:%M:%S.%f} to {window.closed_at:%H:%M:%S.%f} UTC"
    return Chosen(what, entry.place.backup_id, data_time(entry), note, window_s)
