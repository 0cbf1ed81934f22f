"""What a recovery drill does: it goes the way of a recovery as far as that leads without touching what runs.

PostgreSQL is restored to the latest moment, made a server of its own, looked at, and written to. Collections are not
restored again: their proofs do just that, with each backup.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from synapse_ops.domain.database.recovery_target import RecoveryTarget
from synapse_ops.domain.progress import Progress, ReportProgress
from synapse_ops.operations.backup.restoring import RestoreRequest
from synapse_ops.operations.backup_kinds import BASES
from synapse_ops.operations.recovery.choice import choose_base
from synapse_ops.operations.recovery.integrity import look_at
from synapse_ops.operations.recovery.named_servers import NamedServers
from synapse_ops.operations.recovery.recoverability import read_recoverability
from synapse_ops.operations.stack import Stack
from synapse_ops.systems.postgres.connection import connect
from synapse_ops.systems.postgres.identity import commit_nothing, list_databases


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
    now, repository = datetime.now(UTC), stack.database_repository()
    [row] = read_recoverability(stack, now, kinds=(BASES,)).rows[:1] or [None]
    lost = row.lost_now if row is not None else None
    base = choose_base(stack, RecoveryTarget("latest")).entry
    request = RestoreRequest(
        repository=repository,
        place=base.place,
        target=str(folder / "cluster"),
        open_stack=None,
        work_dir=folder,
        until="latest",
        goes_live=True,
        identities=stack.age_identities(),
        progress=progress,
    )
    report = BASES.apply_restore(request, BASES.plan_restore(request))
    phases, faults, began_s = dict(report.phase_s), list[str](), time.monotonic()
    with NamedServers(stack).cluster(folder / "cluster") as conninfo:
        phases["start"] = round(time.monotonic() - began_s, 3)
        began_s = time.monotonic()
        with connect(conninfo("template1")) as connection:
            names = list_databases(connection)
        for number, name in enumerate(names):
            progress(Progress(f"checking {name}", number, len(names), "databases"))
            look_at(conninfo(name), name, faults)
        phases["check"] = round(time.monotonic() - began_s, 3)
        began_s = time.monotonic()
        with connect(conninfo("template1")) as connection:
            commit_nothing(connection)
        phases["first_write"] = round(time.monotonic() - began_s, 3)
    return Rehearsal(phases, lost.total_seconds() if lost is not None else None, tuple(faults), report.plan.size_bytes)
