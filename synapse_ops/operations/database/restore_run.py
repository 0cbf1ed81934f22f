"""What restoring to either kind of target shares: staging the backup, comparing the copy, and how long each took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synapse_ops.domain.progress import ReportProgress
from synapse_ops.operations.backup.deadline import Deadline
from synapse_ops.operations.backup.measured import Measured
from synapse_ops.operations.backup.reading import BackupReader
from synapse_ops.operations.backup.restoring import RestoreReport
from synapse_ops.operations.database.restore_target import DumpRestorePlan, analyze, compare_restored
from synapse_ops.operations.database.staged_dump import StagedBackup, objects_of, stage_backup
from synapse_ops.operations.repository import Repository


@dataclass
class RestoreRun(Measured):
    """One restore under way. restore_s: from its begin until the copy could be used; 0 until then."""

    repository: Repository
    plan: DumpRestorePlan
    identities: tuple[str, ...]
    deadline: Deadline
    progress: ReportProgress
    restore_s: float = 0.0
    notes: tuple[str, ...] = ()
    _begun: float = field(default_factory=time.monotonic)

    def stage(self, scratch_dir: Path) -> StagedBackup:
        """Bring the backup into scratch space, every byte verified, within the deadline."""
        plan = self.plan
        reader = BackupReader(
            self.repository,
            plan.place,
            plan.record,
            objects_of(plan.record),
            identities=self.identities,
            deadline=self.deadline,
            progress=self.progress,
        )
        staged = self.deadline.run(lambda: stage_backup(reader, plan.place, plan.record, scratch_dir))
        self.phase_s["read"] = self._elapsed_s()
        return staged

    def compare(
        self,
        staged: StagedBackup,
        conninfo: str,
        *,
        without_kinds: Sequence[str] = (),
        without_tablespaces: bool = False,
    ) -> None:
        """Compare the copy, which can be used from now on, and analyse it; raises IntegrityError for a difference."""
        self.restore_s = self._elapsed_s()
        self.phase_s["restore"] = round(self.restore_s - self.phase_s["read"], 3)
        with self.phase("compare"):
            self.notes = compare_restored(
                staged, conninfo, without_kinds=without_kinds, without_tablespaces=without_tablespaces
            )
            analyze(conninfo)

    def report(self, plan: DumpRestorePlan) -> RestoreReport:
        """Return what came of it. plan: as it was carried out, which may have been made anew meanwhile."""
        return RestoreReport(plan, self.restore_s, self.phase_s, plan.record.row_count, (*plan.notes, *self.notes))

    def _elapsed_s(self) -> float:
        return round(time.monotonic() - self._begun, 3)
