"""What every proof has in common: which backup is next, what came of it, and that it is written down whatever happens.

Only a restore that was carried out and compared counts. Any doubt is UNPROVEN with its reason; a copy that is not equal
is DIFFERS. What this host lacks (the key, programs of the backup's version, space), and an interruption, do not concern
the backup: NOT_ATTEMPTED, written as `attempt-<time>.json`, which proves nothing and undoes no earlier proof.
One of the two is written whatever happens, as long as `backup.json` could be read as bytes: a backup whose proof
crashed is not a backup without a proof.
The prover of a kind is a function that fills in a `Proof`. The verdict is given after it has returned, its throwaway
is removed and its hold lifted, so that nothing that fails later contradicts a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from synapse_ops.domain.backup.catalog import CatalogEntry
from synapse_ops.domain.backup.document import Part
from synapse_ops.domain.backup.layout import BACKUP, BackupPlace, attempt_name, proof_name
from synapse_ops.domain.backup.proof_record import ProofRecord, Verdict
from synapse_ops.domain.backup.record import BackupRecord
from synapse_ops.domain.backup.restore_estimate import predict_from
from synapse_ops.domain.progress import ReportProgress, ignore_progress
from synapse_ops.errors import (
    IntegrityError,
    KeyMissing,
    ObjectMissing,
    ProgramMissing,
    SynapseOpsError,
    Unproven,
    counted,
)
from synapse_ops.operations.backup.catalog import only_one, read_catalog
from synapse_ops.operations.backup.deadline import Deadline
from synapse_ops.operations.backup.measured import Measured
from synapse_ops.operations.backup.reading import ReadLog, hold_for_reading, read_backup_document
from synapse_ops.operations.backup.throwaway_directory import ThrowawayDir, sweep_throwaways, throwaway_directory
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.log_output import current_correlation_id
from synapse_ops.systems.s3.errors import AccessRefused

DEFAULT_TIMEOUT_S = 3600.0
DIFFERENCES_LIMIT = 50  # of a proof; a wholly different database has as many as it has objects

Record = TypeVar("Record", bound=BackupRecord)


@dataclass(frozen=True)
class ProofReport:
    """What a proof found. error: why it is unproven, None otherwise. url: of the proof's own object.

    not_recorded: why that object could not be written: with keys that may only read, nobody else learns the verdict.
    """

    record: ProofRecord
    place: BackupPlace
    url: str
    error: SynapseOpsError | None = None
    not_recorded: SynapseOpsError | None = None

    @property
    def is_proven(self) -> bool:
        return self.record.verdict is Verdict.PROVEN

    @property
    def exit_code(self) -> int:
        """0 when proven; 13 when the stored bytes or the restored copy are not what they claim; 14 otherwise.

        Proven, and not recorded for another reason than keys that may only read: the code of that reason.
        """
        if self.is_proven:
            failed = self.not_recorded
            return 0 if failed is None or isinstance(failed, AccessRefused) else failed.exit_code
        if self.record.verdict is Verdict.DIFFERS or isinstance(self.error, IntegrityError):
            return IntegrityError.exit_code
        return Unproven.exit_code


@dataclass
class Proof(Measured):
    """One proof being carried out: what the prover is given, and what it has found so far.

    identities: age secret keys. work_dir: where the copy lies for a while.
    entries: the backups of its kind and subject, newest first.
    has_begun: this host had all that a restore takes; until then a failure does not concern the backup.
    differences: of the copy, as far as it was compared. restore_s: until the copy could be used.
    findings: what only one kind has, by its field of `ProofRecord`.
    """

    repository: Repository
    place: BackupPlace
    identities: tuple[str, ...]
    work_dir: Path
    deadline: Deadline
    progress: ReportProgress
    entries: Sequence[CatalogEntry] = ()
    has_begun: bool = False
    differences: list[str] = field(default_factory=list)
    restore_s: float | None = None
    server_version: str | None = None
    amcheck_relations: int = 0
    findings: dict[str, Part] = field(default_factory=dict)
    not_in_backup: tuple[str, ...] = ()
    log: ReadLog = field(default_factory=ReadLog)

    def read_record(self, model: type[Record]) -> Record:
        """Return `backup.json`; raises what `read_backup_document` raises."""
        return read_backup_document(self.repository, self.place, self.log, model)

    @contextmanager
    def throwaway(self, *, database_size_bytes: int, scratch_bytes: int) -> Iterator[ThrowawayDir]:
        """Hold the backup, and a directory for its copy, while the block lasts; sizes as in `throwaway_directory`.

        The proof has begun inside the block: a failure there counts against the backup.
        """
        with (
            hold_for_reading(self.repository, self.place, "proof"),
            throwaway_directory(
                self.work_dir, database_size_bytes=database_size_bytes, scratch_bytes=scratch_bytes
            ) as directory,
        ):
            self.has_begun = True
            yield directory

    def limits(self) -> dict[str, Any]:
        """Return what a `BackupReader` is given: keys, deadline, the log of what was read, and progress."""
        return {
            "identities": self.identities,
            "deadline": self.deadline,
            "log": self.log,
            "progress": self.progress,
        }


@dataclass(frozen=True)
class _Conclusion:
    verdict: Verdict
    reason: str = ""
    error: SynapseOpsError | None = None


def carry_out_proof(
    repository: Repository,
    kind: str,
    prover: Callable[[Proof], None],
    *,
    place: BackupPlace | None = None,
    backup_id: str | None = None,
    subject: str | None = None,
    only_untried: bool = False,
    identities: tuple[str, ...] = (),
    work_dir: Path,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    progress: ReportProgress = ignore_progress,
) -> ProofReport | None:
    """Prove one backup and return what was written; None when there is nothing to prove.

    place, backup_id: the backup; without either the newest of `kind` that no proof has judged yet, else the newest that
    is not proven, of `subject` or of any. only_untried: a backup that was tried counts as nothing to prove.
    work_dir: left-overs of killed proofs are removed from it first. timeout_s: bounds everything but writing the proof.
    Raises ConfigError or ObjectMissing when there is no such backup. A proof that cannot be written is in the report.
    Lists the repository once.
    """
    deadline = Deadline(timeout_s, "proof of restore")
    sweep_throwaways(work_dir)
    entries = read_catalog(repository, subject=place.subject if place else subject).only(kind).backups
    if backup_id is not None:
        place = _named(entries, backup_id, repository)
    place = place or newest_unproven(entries)
    if place is None or (only_untried and any(entry.place == place and entry.was_tried for entry in entries)):
        return None
    if repository.store.head(place.key(BACKUP)) is None:
        raise ObjectMissing(f"there is no backup under {repository.store.full_url(place.prefix)}: it has no {BACKUP}")
    proof = Proof(repository, place, identities, work_dir, deadline, progress, entries)
    started_at, predicted_s = datetime.now(UTC), _predict(entries, place)
    try:
        prover(proof)
        deadline.remaining_s()  # a comparison that ended too late is a time-out
        conclusion = _conclude(proof)
    except SynapseOpsError as error:
        proof.has_begun |= deadline.has_passed()  # a time-out is a doubt, wherever the time went
        conclusion = _fail(proof, deadline.exceeded() if deadline.has_passed() else error)
    except OSError as error:
        conclusion = _fail(proof, Unproven("could not restore on this host", detail=str(error)))
    except BaseException as fault:
        is_interrupted = not isinstance(fault, Exception)  # Ctrl-C, a terminated run: as little a verdict as kill -9
        verdict = Verdict.NOT_ATTEMPTED if is_interrupted else Verdict.UNPROVEN
        conclusion = _Conclusion(verdict, f"the proof was interrupted by {type(fault).__name__}")
        _write(proof, conclusion, started_at, predicted_s)
        raise
    return _write(proof, conclusion, started_at, predicted_s)


def _named(entries: Sequence[CatalogEntry], backup_id: str, repository: Repository) -> BackupPlace:
    found = [entry.place for entry in entries if entry.place.backup_id == backup_id]
    return only_one(found, backup_id, [entry.place.backup_id for entry in entries], repository)


def newest_unproven(entries: Sequence[CatalogEntry]) -> BackupPlace | None:
    """Return the newest backup that no proof has tried, else the newest not proven. entries: newest first."""
    unproven = [entry for entry in entries if entry.proven_at is None]
    never_tried = [entry for entry in unproven if not entry.was_tried]
    return next((entry.place for entry in never_tried or unproven), None)


def _predict(entries: Sequence[CatalogEntry], place: BackupPlace) -> float | None:
    size_bytes = next((entry.source_size_bytes for entry in entries if entry.place == place), 0)
    predicted = predict_from(entries, size_bytes)
    return round(predicted, 3) if predicted is not None else None


def _conclude(proof: Proof) -> _Conclusion:
    if proof.differences:
        return _Conclusion(Verdict.DIFFERS, f"{counted(len(proof.differences), 'difference')}")
    return _Conclusion(Verdict.PROVEN)


def _fail(proof: Proof, error: SynapseOpsError) -> _Conclusion:
    reason = "; ".join([f"{error.code}: {error.message}", *error.detail.splitlines()[:3]])
    if proof.differences:  # found before the failure, and true whatever failed afterwards
        return _Conclusion(Verdict.DIFFERS, f"{counted(len(proof.differences), 'difference')}; then {reason}", error)
    # every byte of an object is compared before its key is missed, so a missing key hides no damage
    if isinstance(error, KeyMissing | ProgramMissing) or not (proof.has_begun or isinstance(error, IntegrityError)):
        return _Conclusion(Verdict.NOT_ATTEMPTED, reason, error)
    return _Conclusion(Verdict.UNPROVEN, reason, error)


def _write(proof: Proof, conclusion: _Conclusion, started_at: datetime, predicted_s: float | None) -> ProofReport:
    """Write the proof under a name that no other proof has; a proof is never overwritten."""
    store, place = proof.repository.store, proof.place
    if store.head(place.key(BACKUP)) is None:
        raise ObjectMissing(f"backup {place.backup_id} was removed while it was being proven")
    finished_at = datetime.now(UTC)
    name_of = attempt_name if conclusion.verdict is Verdict.NOT_ATTEMPTED else proof_name
    while store.head(place.key(name_of(finished_at))) is not None:
        finished_at += timedelta(seconds=1)
    record = ProofRecord(
        backup_id=place.backup_id,
        verdict=conclusion.verdict,
        backup_sha256=proof.log.backup_sha256,
        objects=tuple(sorted(proof.log.objects, key=lambda item: item.name)),
        started_at=started_at,
        finished_at=finished_at,
        restore_s=proof.restore_s,
        predicted_restore_s=predicted_s,
        phase_s=proof.phase_s,
        server_version=proof.server_version,
        amcheck_relations=proof.amcheck_relations,
        **proof.findings,  # type: ignore[arg-type]  # pydantic checks them
        reason=conclusion.reason,
        differences=tuple(proof.differences[:DIFFERENCES_LIMIT]),
        not_in_backup=proof.not_in_backup,
        correlation_id=current_correlation_id(),
    )
    key, not_recorded = place.key(name_of(finished_at)), None
    try:
        store.put_bytes(key, record.to_json())
    except SynapseOpsError as error:
        not_recorded = error
    return ProofReport(record, place, store.full_url(key), conclusion.error, not_recorded)
