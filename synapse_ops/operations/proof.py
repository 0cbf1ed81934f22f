"""What every proof has in common: which backup is next, what came of it, and that it is written down whatever happens.

Only a restore that was carried out and compared counts. Any doubt is UNPROVEN with its reason; a copy that is not equal
is DIFFERS; what this host lacks, and an interruption, say nothing of the backup: NOT_ATTEMPTED.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from synapse_ops.domain.backup_record import ProofRecord, RdbFindings, SnapshotFindings, Verdict
from synapse_ops.domain.catalog import CatalogEntry
from synapse_ops.domain.recovery import predict_restore_s
from synapse_ops.domain.repository_layout import BACKUP, BackupPlace, attempt_name, proof_name
from synapse_ops.errors import IntegrityError, KeyMissing, ObjectMissing, SynapseOpsError, Unproven
from synapse_ops.operations.backup_catalog import read_catalog
from synapse_ops.operations.deadline import Deadline
from synapse_ops.operations.measured import Measured
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.staged_backup import ReadLog
from synapse_ops.systems.log_output import current_correlation_id

DEFAULT_TIMEOUT_S = 3600.0
DIFFERENCES_LIMIT = 50  # of a proof; a wholly different database has as many as it has objects


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
class Outcome(Measured):
    """What is known so far; unproven until the last step says otherwise. has_begun: this host had all it takes."""

    has_begun: bool = False
    verdict: Verdict = Verdict.UNPROVEN
    reason: str = "not finished"
    error: SynapseOpsError | None = None
    differences: tuple[str, ...] = ()
    restore_s: float | None = None
    server_version: str | None = None
    amcheck_relations: int = 0
    snapshot: SnapshotFindings | None = None
    rdb: RdbFindings | None = None
    log: ReadLog = field(default_factory=ReadLog)

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


def carry_out_proof(
    repository: Repository,
    *,
    kind: str,
    place: BackupPlace | None,
    subject: str | None,
    deadline: Deadline,
    prove: Callable[[BackupPlace, Outcome], None],
) -> ProofReport | None:
    """Choose a backup, have it proven and write what came of it; None when `place` is None and all are proven.

    place: None chooses the newest backup of `kind` that no proof has judged yet, else the newest that is not proven, of
    `subject` or of any. prove: fills in the outcome; what it raises is why the backup is unproven.
    Raises ObjectMissing when there is no such backup, and what the store raises when the proof cannot be written.
    """
    found = read_catalog(repository, subject=place.subject if place else subject).backups
    entries = tuple(entry for entry in found if entry.place.kind == kind)
    place = place or newest_unproven(entries)
    if place is None:
        return None
    if repository.store.head(place.key(BACKUP)) is None:
        raise ObjectMissing(f"there is no backup under {repository.store.full_url(place.prefix)}")
    started_at = datetime.now(UTC)
    outcome = Outcome()
    predicted_s = _predict(entries, place)
    try:
        prove(place, outcome)
    except SynapseOpsError as error:
        outcome.has_begun |= deadline.has_passed()  # a time-out is a doubt, wherever the time went
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


def _write(
    repository: Repository, place: BackupPlace, outcome: Outcome, started_at: datetime, predicted_s: float | None
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
        snapshot=outcome.snapshot,
        rdb=outcome.rdb,
        reason=outcome.reason,
        differences=outcome.differences,
        correlation_id=current_correlation_id(),
    )
    written = store.put_bytes(place.key(name_of(finished_at)), record.to_json())
    return ProofReport(record, place, store.full_url(written.key), outcome.error)
