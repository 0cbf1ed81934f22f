"""The repository is the truth: what is in it and not in Dagster's history is reported, and gets its proof.

Each tick compares one listing with the events. A backup or proof of the CLI or of another host becomes an event without
a run; the newest backup without any proof gets a run of its proof asset; the checks `restore_proven` and
`newest_proof_passed` are reported again when their verdict changed. The cursor only says what was seen last of each
subject, so that a tick reads the history of those alone that changed: it can be thrown away, because a backup is known
by its id in the metadata of an event.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg

from synapse_ops.defs.backup.kinds import AssetKind
from synapse_ops.defs.backup.restore_check import CHECK_NAME, PROOF_CHECK_NAME, evaluation_of, judge_now, judge_proofs
from synapse_ops.defs.event_metadata import BACKUP_ID, PROOF_ID, backup_metadata, proof_id, proof_metadata
from synapse_ops.defs.in_run import may_be_asked_again, newest_run
from synapse_ops.defs.policies import TAG_BACKUP_ID, TAG_TRIGGER
from synapse_ops.defs.resources import StackResource
from synapse_ops.errors import SynapseOpsError

if TYPE_CHECKING:
    from synapse_ops.domain.backup.catalog import CatalogEntry
    from synapse_ops.operations.backup.catalog import Catalog
    from synapse_ops.operations.repository import Repository
    from synapse_ops.operations.stack import Stack

EVENTS_PER_TICK = 100  # a first tick over a large repository must end within Dagster's 60 s; the next one goes on
INTERVAL_S = 60
PROOF_RETRY_S = 3600.0
_PAGE = 1000
_SHORT = 8  # digits of a digest in the cursor, which is stored with each tick
FAULT = "fault"  # in the metadata of an observation: why a document could not be read
_UNFINISHED = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
)


@dataclass
class _Findings:
    """What one tick reports. is_complete: nothing was put off to the next tick."""

    events: list[dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation] = field(default_factory=list)
    is_complete: bool = True

    @property
    def is_full(self) -> bool:
        return len(self.events) >= EVENTS_PER_TICK


def repository_sensor(kind: AssetKind, job: Any) -> dg.SensorDefinition:
    """Return the sensor of one kind. job: the asset job of its proofs, which it starts."""

    @dg.sensor(
        name=f"{kind.prefix}_repository_sensor",
        job=job,
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Reports every backup and proof of a {kind.noun} that Dagster does not know, and proves new ones.",
    )
    def look(context: dg.SensorEvaluationContext, stack: StackResource) -> dg.SensorResult:
        return look_at_repository(context, stack.open(), kind)

    return look


def look_at_repository(context: dg.SensorEvaluationContext, stack: "Stack", kind: AssetKind) -> dg.SensorResult:
    """Return one tick's events, runs and cursor. Safe to repeat: what is known is not reported again."""
    repository = kind.kind.repository(stack)
    catalog = kind.catalog(stack)
    wanted = kind.expected(stack, context.instance)
    subjects = [name for name in catalog.subjects() if name in wanted]
    cursor = json.loads(context.cursor or "{}")
    findings, known = _Findings(), cursor.get("subjects", {})
    seen = {subject: known.get(subject, "") for subject in subjects}
    for subject in subjects:
        entries = catalog.of_subject(subject)
        lies_there = _digest(f"{entry.place.prefix} {entry.listing_digest.hex()}" for entry in entries)[:_SHORT]
        if lies_there != seen[subject] and _report_unknown(context.instance, kind, repository, entries, findings):
            seen[subject] = lies_there
    for judge in (judge_now, judge_proofs):
        judgement = judge(kind, stack, context.instance, catalog)
        name, proven = judgement.check.name, judgement.proven
        faults = map(str, (*judgement.failing, *judgement.warned))
        verdict = _digest([*faults, *(f"{backup_id} {at.isoformat()}" for _, backup_id, at, _ in proven)])
        if findings.is_complete and judgement.is_due and cursor.get(name) != verdict:
            evaluation = evaluation_of(judgement, kind=kind, instance=context.instance)
            if _says_otherwise(context.instance, evaluation, f"{kind.noun}s"):
                findings.events.append(evaluation)
            cursor[name] = verdict
    cursor = {"subjects": seen, **{name: cursor[name] for name in (CHECK_NAME, PROOF_CHECK_NAME) if name in cursor}}
    requests = _proof_requests(context.instance, kind, catalog, subjects) if findings.is_complete else []
    return dg.SensorResult(
        asset_events=findings.events, run_requests=requests, cursor=json.dumps(cursor, sort_keys=True)
    )


def _report_unknown(
    instance: dg.DagsterInstance,
    kind: AssetKind,
    repository: "Repository",
    entries: Sequence["CatalogEntry"],
    findings: _Findings,
) -> bool:
    """Add events for the backups and proofs of one subject without an event, the oldest first.

    Returns whether nothing of it was put off: by a full tick, a run in progress, or a fault that may pass by itself.
    """
    from synapse_ops.operations.backup.catalog import read_proofs, read_record

    if findings.is_full:
        findings.is_complete = False
        return False
    subject, is_done = entries[0].place.subject, True
    known_backups = _known(instance, kind.backup_key, subject, BACKUP_ID)
    known_proofs = _known(instance, kind.proof_key, subject, PROOF_ID)
    for entry in reversed(entries):
        if findings.is_full:
            findings.is_complete = False
            return False
        try:
            if entry.place.backup_id not in known_backups.names and not entry.unreadable_reason:
                record = read_record(repository, entry.place)
                if _is_in_progress(instance, record.correlation_id):
                    findings.is_complete = is_done = False  # its own run is about to report it
                    continue
                findings.events.append(
                    _backup_event(kind, record, repository.store.full_url(entry.place.prefix), subject)
                )
            if entry.was_tried:
                is_done &= _report_proofs(instance, kind, repository, entry, known_proofs.names, read_proofs, findings)
        except SynapseOpsError as error:
            # one backup that cannot be read must not hide the others, nor be reported at every tick
            is_done &= not error.retryable
            fault = error.render()
            if (entry.place.backup_id, fault) not in known_backups.faults:
                metadata = {BACKUP_ID: entry.place.backup_id, FAULT: fault}
                findings.events.append(dg.AssetObservation(kind.backup_key, partition=subject, metadata=metadata))
    return is_done


def _backup_event(kind: AssetKind, record: Any, url: str, subject: str) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        kind.backup_key,
        partition=subject,
        description="found in the repository",
        metadata=backup_metadata(record, url),
        tags={"dagster/data_version": record.backup_id},
    )


def _report_proofs(
    instance: dg.DagsterInstance,
    kind: AssetKind,
    repository: "Repository",
    entry: "CatalogEntry",
    known: set[str],
    read_proofs: Any,
    findings: _Findings,
) -> bool:
    """Add an event for each proof of a backup without one: a failed one is an observation.

    Returns whether none was left to a run in progress.
    """
    is_done = True
    if entry.proven_at is not None and entry.not_attempted_at is None:
        at = f"{entry.place.backup_id}@{entry.proven_at.isoformat(timespec='seconds')}"
        if at in known:
            return True
    for record in read_proofs(repository, entry.place):
        if proof_id(record) in known:
            continue
        if _is_in_progress(instance, record.correlation_id):
            findings.is_complete = is_done = False
            continue
        event = dg.AssetMaterialization if str(record.verdict) == "proven" else dg.AssetObservation
        url = repository.store.full_url(entry.place.prefix)
        findings.events.append(
            event(
                kind.proof_key,
                partition=entry.place.subject,
                description="found in the repository",
                metadata=proof_metadata(record, url),
            )
        )
    return is_done


@dataclass(frozen=True)
class _Known:
    """What the events of one partition report. names: ids. faults: (id, fault) of what could not be read."""

    names: set[str]
    faults: set[tuple[str, str]]


def _known(instance: dg.DagsterInstance, key: dg.AssetKey, subject: str, name: str) -> _Known:
    """Return the ids in the events of one partition, failed proofs (observations) included."""
    wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[subject])
    known = _Known(set(), set())
    for fetch in (instance.fetch_materializations, instance.fetch_observations):
        cursor, more = None, True
        while more:
            page = fetch(wanted, limit=_PAGE, cursor=cursor)
            cursor, more = page.cursor, page.has_more
            for record in page.records:
                event = record.asset_materialization or record.asset_observation
                metadata = event.metadata if event is not None else {}
                if name not in metadata:
                    continue
                found = str(metadata[name].value)
                if FAULT in metadata:
                    known.faults.add((found, str(metadata[FAULT].value)))
                else:
                    known.names.add(found)
    return known


def _is_in_progress(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Return whether the run that wrote a document is still running here. A CLI's correlation id is not a run id."""
    run = instance.get_run_by_id(run_id) if run_id else None
    return run is not None and not run.is_finished


def _says_otherwise(instance: dg.DagsterInstance, evaluation: dg.AssetCheckEvaluation, table: str) -> bool:
    """Say whether the check's last evaluation differs, so that a restarted sensor does not repeat it.

    table: in the metadata, of the subjects; the sentence names only some of many.
    """
    from synapse_ops.systems.dagster_storage import last_evaluation

    last = last_evaluation(instance, evaluation.asset_key, evaluation.check_name)
    if last is None or (last.passed, last.description) != (evaluation.passed, evaluation.description):
        return True
    return _rows(last, table) != _rows(evaluation, table)


def _rows(evaluation: dg.AssetCheckEvaluation, table: str) -> list[Any]:
    found = evaluation.metadata.get(table)
    return [dict(record.data) for record in found.records] if isinstance(found, dg.TableMetadataValue) else []


def _proof_requests(
    instance: dg.DagsterInstance, kind: AssetKind, catalog: "Catalog", subjects: Sequence[str]
) -> list[dg.RunRequest]:
    """Return one proof for the newest backup of each subject that no proof has judged, unless a proof is running.

    A run that ended without a proof is asked for again after an hour; a proof that failed is one, and stays.
    """
    job = kind.job("prove")
    running = instance.get_runs(filters=dg.RunsFilter(statuses=list(_UNFINISHED), job_name=job))
    if running:
        return []
    requests = []
    for subject in subjects:
        newest = catalog.of_subject(subject)[0]
        if not newest.was_tried and not newest.unreadable_reason:
            backup_id = newest.place.backup_id
            earlier = {TAG_BACKUP_ID: backup_id}
            if not may_be_asked_again(newest_run(instance, job, earlier), PROOF_RETRY_S):
                continue
            op = kind.proof_key.to_python_identifier()
            config = {"ops": {op: {"config": {"backup_id": backup_id, "only_untried": True}}}}
            tags = {TAG_TRIGGER: "sensor", **earlier}
            tries = instance.get_runs_count(dg.RunsFilter(job_name=job, tags=earlier))
            key = f"proof-{backup_id}-{tries + 1}"
            requests.append(dg.RunRequest(run_key=key, partition_key=subject, run_config=config, tags=tags))
    return requests


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]
