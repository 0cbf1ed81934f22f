"""What all drills share: one at a time and never beside a backup, what a killed one left, the score that stays."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from synapse_ops import __version__
from synapse_ops.domain.progress import ReportProgress, ignore_progress
from synapse_ops.domain.recovery.drill_score import DrillScore, Of, Scenario, predict_next
from synapse_ops.domain.recovery.incident_score import incident_key, score_of_incident
from synapse_ops.errors import Refused, SynapseOpsError
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup.throwaway_directory import sweep_throwaways, throwaway_base
from synapse_ops.operations.failover.ledger import Ledger
from synapse_ops.operations.recovery.recovery_drill import rehearse
from synapse_ops.operations.recovery.scores import read_scores, write_score
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.stack import Stack
from synapse_ops.systems.host.file_lock import held_lock
from synapse_ops.systems.host.processes import server_identity
from synapse_ops.systems.s3.store import ConditionFailed

FOLDER = "drills"
FRESH = timedelta(minutes=2)  # a backup that is being taken renews its heartbeat every 20 s


@contextmanager
def only_drill(state_dir: Path, name: str) -> Iterator[None]:
    """Hold the lock of the one drill of this name on this host; the kernel lets it go, however we end. Or Refused."""
    folder = state_dir / FOLDER
    taken = Refused(f"another {name} drill runs in {folder}", hint="Wait until it has ended.")
    with held_lock(folder / f"{name}.lock", taken):
        yield


def refuse_beside_backup(repository: Repository) -> None:
    """Raise Refused while a backup is being taken: a drill would slow it down, and it the drill's numbers."""
    catalog = read_catalog(repository)
    at_work = [row for row in catalog.left_overs if catalog.read_at - row.touched_at < FRESH]
    if at_work:
        place = at_work[0].place
        raise Refused(
            f"a backup is being taken: {place.kind} {place.subject}, {place.backup_id}",
            hint="Start the drill when it has ended; `synapse-ops backup list` shows it.",
        )


def keep_score(repository: Repository, score: DrillScore, key: str = "") -> tuple[DrillScore, str]:
    """Store a score with what former runs predicted for it; return it and its address. key: empty: a new one."""
    former = read_scores(repository).scores
    kept = replace(score, predicted=predict_next(former, score.scenario, score.of, score.size_bytes))
    return kept, repository.store.full_url(write_score(repository, kept, key))


def keep_incidents(repository: Repository, state_dir: Path, stored: Collection[str], now: datetime) -> int:
    """Store a score of each incident of this system that has ended, and return how many. Safe to repeat.

    stored: the keys of scores that are there.
    """
    ledger, kept = Ledger.of(state_dir), 0
    for incident in ledger.incidents():
        key = incident_key(incident)
        if key in stored:
            continue
        score = score_of_incident(incident, ledger.rejoin(incident.id), now, __version__)
        if score is not None:
            with suppress(ConditionFailed):  # another one was faster
                keep_score(repository, score, key)
                kept += 1
    return kept


def failed_score(scenario: Scenario, began_at: datetime, reason: str) -> DrillScore:
    """Return the score of a drill that came to no measurement."""
    return DrillScore(scenario, Of.COPY, began_at, reason[:1000], (), None, None, None, None, 0, __version__)


def drill_recovery(stack: Stack, progress: ReportProgress = ignore_progress) -> DrillScore:
    """Rehearse a recovery in a folder that is thrown away, and return the score; it is not stored.

    What went wrong is a failed score. Raises Refused where another recovery drill runs.
    """
    began_at, began_s = datetime.now(UTC), time.monotonic()
    with only_drill(stack.state_dir, "recovery"):
        folder = throwaway_base(stack.state_dir / FOLDER, server_identity()) / "recovery"
        if folder.is_dir():  # what a killed drill left
            sweep_throwaways(folder)
            shutil.rmtree(folder)
        try:
            folder.mkdir(mode=0o755)
            found = rehearse(stack, folder, progress)
        except SynapseOpsError as error:
            return failed_score(Scenario.RECOVERY_DRILL, began_at, error.message)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return DrillScore(
        scenario=Scenario.RECOVERY_DRILL,
        of=Of.COPY,
        at=began_at,
        reason="; ".join(found.faults)[:1000],
        phases=tuple(found.phase_s.items()),
        predicted=None,
        lost_writes=None,
        rto_s=round(time.monotonic() - began_s, 3),
        rpo_s=found.lost_s,
        size_bytes=found.size_bytes,
        code_version=__version__,
    )
