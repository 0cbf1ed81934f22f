"""Proves a backup: restores it into a throwaway server, compares it exactly, and writes down what came of it.

Only a restore that was carried out and compared counts. Any doubt is written as UNPROVEN with its reason: a damaged or
missing object, an error or warning of pg_restore, a time-out, a fault of our own. A restored copy that is not equal is
DIFFERS. What this host lacks (the key, programs of the backup's major version, room) and an interruption say nothing of
the backup: NOT_ATTEMPTED, written as `attempt-<time>.json`, which proves nothing and undoes no earlier proof.
One of the two is written whatever happens, as long as the backup's own `backup.json` could be read as bytes: a backup
whose proof crashed is not a backup that nobody has looked at.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from synapse_ops.domain import fingerprint as fingerprints
from synapse_ops.domain import structure as structures
from synapse_ops.domain.backup_record import BackupRecord, ProofRecord, Verdict
from synapse_ops.domain.catalog import CatalogEntry
from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.domain.recovery import predict_restore_s
from synapse_ops.domain.repository_layout import BACKUP, BackupPlace, attempt_name, proof_name
from synapse_ops.errors import IntegrityError, KeyMissing, ObjectMissing, SynapseOpsError, Unproven
from synapse_ops.operations.backup_catalog import read_catalog
from synapse_ops.operations.deadline import Deadline
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.restore_into_throwaway import restore_into_throwaway
from synapse_ops.operations.staged_backup import (
    ReadLog,
    StagedBackup,
    hold_for_reading,
    read_backup_document,
    stage_backup,
)
from synapse_ops.operations.throwaway_directory import sweep_throwaways, throwaway_directory
from synapse_ops.operations.throwaway_server import Throwaway, throwaway_server
from synapse_ops.systems.amcheck import check_relations
from synapse_ops.systems.log_output import current_correlation_id
from synapse_ops.systems.pg_tools import find_pg_tools
from synapse_ops.systems.postgres import connect, postgres_errors
from synapse_ops.systems.postgres_fingerprint import read_fingerprint
from synapse_ops.systems.postgres_structure import read_structure

DEFAULT_TIMEOUT_S = 3600.0
DIFFERENCES_LIMIT = 50  # of a proof; a wholly different database has as many as it has objects
FINGERPRINT_WORKERS = 2


@dataclass(frozen=True)
class ProofReport:
    """What a proof found. error: why it is unproven, None otherwise. url: of the proof's own object."""

    record: ProofRecord
    place: BackupPlace
    url: str
    error: SynapseOpsError | None = None

    @property
    def is_proven(self) -> bool:
        return self.record.verdict is Verdict.PROVEN

    @property
    def exit_code(self) -> int:
        """0 when proven; 13 when the stored bytes or the restored copy are not what they claim; 14 otherwise."""
        if self.is_proven:
            return 0
        if self.record.verdict is Verdict.DIFFERS or isinstance(self.error, IntegrityError):
            return IntegrityError.exit_code
        return Unproven.exit_code


@dataclass
class _Outcome:
    """What is known so far; unproven until the last step says otherwise. has_begun: this host had all it takes."""

    has_begun: bool = False
    verdict: Verdict = Verdict.UNPROVEN
    reason: str = "not finished"
    error: SynapseOpsError | None = None
    differences: tuple[str, ...] = ()
    restore_s: float | None = None
    server_version: str | None = None
    amcheck_relations: int = 0
    phase_s: dict[str, float] = field(default_factory=dict)
    log: ReadLog = field(default_factory=ReadLog)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.phase_s[name] = round(time.monotonic() - begun, 3)

    def fail(self, error: SynapseOpsError) -> None:
        self.error = error
        # every byte of an object is compared before its key is missed, so a missing key hides no damage
        if isinstance(error, KeyMissing) or not (self.has_begun or isinstance(error, IntegrityError)):
            self.verdict = Verdict.NOT_ATTEMPTED
        self.reason = "; ".join([f"{error.code}: {error.message}", *error.detail.splitlines()[:3]])

    def conclude(self, differences: Sequence[str]) -> None:
        self.reason = f"{len(differences)} differences" if differences else ""
        self.differences = tuple(differences[:DIFFERENCES_LIMIT])
        self.verdict = Verdict.DIFFERS if differences else Verdict.PROVEN


def prove_backup(
    repository: Repository,
    *,
    place: BackupPlace | None = None,
    database: str | None = None,
    identities: tuple[str, ...] = (),
    work_dir: Path,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    progress: ReportProgress = ignore_progress,
) -> ProofReport | None:
    """Prove one backup and return what was written; None when `place` is None and every backup is proven.

    place: None chooses the newest backup that no proof has judged yet, else the newest that is not proven, of
    `database` or of any. identities: age secret keys. work_dir: where throwaway servers live; left-overs of killed ones
    are swept first. timeout_s: bounds everything but writing the proof.
    Raises ObjectMissing when there is no such backup, and what the store raises when the proof cannot be written.
    """
    deadline = Deadline(timeout_s, "proof of restore")
    sweep_throwaways(work_dir)
    entries = read_catalog(repository, subject=place.subject if place else database).backups
    place = place or newest_unproven(entries)
    if place is None:
        return None
    if repository.store.head(place.key(BACKUP)) is None:
        raise ObjectMissing(f"there is no backup under {repository.store.full_url(place.prefix)}")
    started_at = datetime.now(UTC)
    outcome = _Outcome()
    predicted_s = _predict(entries, place)
    try:
        _prove(repository, place, identities, work_dir, deadline, progress, outcome)
    except SynapseOpsError as error:
        outcome.fail(deadline.exceeded() if deadline.has_passed() else error)
    except OSError as error:
        outcome.fail(Unproven("could not restore on this host", detail=str(error)))
    except BaseException as fault:
        outcome.reason = f"the proof ended by {type(fault).__name__}"
        if not isinstance(fault, Exception):  # Ctrl-C, or a run that was terminated: as little a verdict as kill -9
            outcome.verdict = Verdict.NOT_ATTEMPTED
        _write(repository, place, outcome, started_at, predicted_s)
        raise
    return _write(repository, place, outcome, started_at, predicted_s)


def newest_unproven(entries: Sequence[CatalogEntry]) -> BackupPlace | None:
    """Return the newest backup that nobody tried to prove, else the newest not proven. entries: newest first."""
    unproven = [entry for entry in entries if entry.proven_at is None]
    never_tried = [entry for entry in unproven if not entry.was_tried]
    return next((entry.place for entry in never_tried or unproven), None)


def _predict(entries: Sequence[CatalogEntry], place: BackupPlace) -> float | None:
    history = [(entry.source_size_bytes, entry.restore_s) for entry in entries if entry.restore_s is not None]
    size_bytes = next((entry.source_size_bytes for entry in entries if entry.place == place), 0)
    predicted = predict_restore_s(history, size_bytes)
    return round(predicted, 3) if predicted is not None else None


def _prove(
    repository: Repository,
    place: BackupPlace,
    identities: tuple[str, ...],
    work_dir: Path,
    deadline: Deadline,
    progress: ReportProgress,
    outcome: _Outcome,
) -> None:
    begun = time.monotonic()
    record = read_backup_document(repository, place, outcome.log, BackupRecord)
    tools = find_pg_tools(record.source.server_version_num // 10000)
    size_bytes = record.source.database_size_bytes
    with (
        hold_for_reading(repository, place, "proof"),
        throwaway_directory(work_dir, database_size_bytes=size_bytes, scratch_bytes=record.stored_bytes) as directory,
    ):
        outcome.has_begun = True
        with outcome.phase("read"):
            staged = deadline.run(
                lambda: stage_backup(
                    repository,
                    place,
                    record,
                    identities=identities,
                    scratch_dir=directory.scratch_dir,
                    deadline=deadline,
                    log=outcome.log,
                    progress=progress,
                )
            )
        superuser = staged.globals_script.bootstrap_role
        with throwaway_server(
            directory, tools=tools, superuser=superuser, database_size_bytes=size_bytes, deadline=deadline
        ) as throwaway:
            with outcome.phase("restore"):
                restore_into_throwaway(
                    throwaway,
                    staged,
                    record,
                    scratch_dir=directory.scratch_dir,
                    deadline=deadline,
                    progress=progress,
                )
            outcome.restore_s = round(time.monotonic() - begun, 3)
            _judge(throwaway, staged, record, progress, outcome)
            deadline.remaining_s()


def _judge(
    throwaway: Throwaway, staged: StagedBackup, record: BackupRecord, progress: ReportProgress, outcome: _Outcome
) -> None:
    """Compare content and structure, then check every page and index; what differs is named."""
    name = record.source.database
    conninfo = throwaway.conninfo(name)
    with outcome.phase("compare"):
        actual = read_fingerprint(conninfo, workers=FINGERPRINT_WORKERS, progress=progress)
        differences = list(fingerprints.compare(staged.fingerprint, actual))
        differences += structures.compare(staged.structure, read_structure(conninfo))
    with outcome.phase("amcheck"):
        stage = f"checking pages and indexes of {name}"
        found = check_relations(
            conninfo, on_relation=lambda done, total: progress(Progress(stage, done, total, unit="relations"))
        )
        differences += [f"amcheck: {fault}" for fault in found.faults]
        differences += _server_faults(conninfo)
    outcome.server_version = throwaway.server.tools.version
    outcome.amcheck_relations = found.relations
    outcome.conclude(differences)


def _server_faults(conninfo: str) -> list[str]:
    """Return what the throwaway itself has to report: checksums off, or pages that failed theirs."""
    with connect(conninfo) as connection, postgres_errors("the throwaway's checksums"):
        row = connection.execute(
            "SELECT current_setting('data_checksums'), coalesce(sum(checksum_failures), 0) FROM pg_stat_database"
        ).fetchone()
    if row is None or row[0] != "on":
        return ["throwaway server: data checksums are off"]
    return [f"throwaway server: {row[1]} pages failed their checksum"] if row[1] else []


def _write(
    repository: Repository, place: BackupPlace, outcome: _Outcome, started_at: datetime, predicted_s: float | None
) -> ProofReport:
    """Write the proof under a name that no other proof has; a proof is never overwritten."""
    store = repository.store
    if store.head(place.key(BACKUP)) is None:
        raise ObjectMissing(f"backup {place.backup_id} was removed while it was being proven")
    finished_at = datetime.now(UTC)
    name_of = attempt_name if outcome.verdict is Verdict.NOT_ATTEMPTED else proof_name
    while store.head(place.key(name_of(finished_at))) is not None:
        finished_at += timedelta(seconds=1)
    record = ProofRecord(
        backup_id=place.backup_id,
        verdict=outcome.verdict,
        backup_sha256=outcome.log.backup_sha256,
        objects=tuple(sorted(outcome.log.objects, key=lambda item: item.name)),
        started_at=started_at,
        finished_at=finished_at,
        restore_s=outcome.restore_s,
        predicted_restore_s=predicted_s,
        phase_s=outcome.phase_s,
        server_version=outcome.server_version,
        amcheck_relations=outcome.amcheck_relations,
        reason=outcome.reason,
        differences=outcome.differences,
        correlation_id=current_correlation_id(),
    )
    written = store.put_bytes(place.key(name_of(finished_at)), record.to_json())
    return ProofReport(record, place, store.full_url(written.key), outcome.error)
