"""What a recovery drill does: restore the newest base backup and its WAL to the latest moment, into a new folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from synapse_ops.domain.progress import ReportProgress
from synapse_ops.operations.backup.restoring import RestoreRequest
from synapse_ops.operations.database.restore_cluster import (
    apply_cluster_restore,
    newest_place,
    plan_cluster_restore,
)
from synapse_ops.operations.stack import Stack


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What was measured. phase_s: in order. lost_s: how much work was lost, in time; None: not known.

    faults: why it is no pass; empty: it is one. size_bytes: of what was restored.
    """

    phase_s: dict[str, float]
    lost_s: float | None
    faults: tuple[str, ...]
    size_bytes: int


def rehearse(stack: Stack, folder: Path, progress: ReportProgress) -> Rehearsal:
    """Restore into a folder of the caller, who removes it. Raises what a restore raises."""
    repository, identities = stack.database_repository(), stack.age_identities()
    request = RestoreRequest(
        repository=repository,
        place=newest_place(repository, "latest", None, identities),
        target=str(folder / "cluster"),
        open_stack=None,
        work_dir=folder,
        until="latest",
        identities=identities,
        progress=progress,
    )
    report = apply_cluster_restore(request, plan_cluster_restore(request))
    return Rehearsal(report.phase_s, None, (), report.plan.size_bytes)
