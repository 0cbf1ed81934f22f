"""Plans which snapshots that killed runs left on Qdrant's nodes go, and removes exactly those.

Only a file that the heartbeat of one of our runs names is removed, and only once heartbeat and file are older than
the grace: a younger one may be on its way into the repository. What another tool made, or may have made, is listed and
stays. Applying holds the lease of the collection, so that no snapshot of it is taken meanwhile, and looks again.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from synapse_ops.domain.backup.catalog import ListedBackup
from synapse_ops.domain.backup.layout import KIND_SNAPSHOT, BackupPlace, quote_segment
from synapse_ops.domain.backup.retention import Clocks
from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.errors import LeaseHeld, PlanChanged, Refused, SynapseOpsError
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup.lease import hold_lease
from synapse_ops.operations.cleanup.plan_file import Outcome, StoredPlan, apply_plan, write_plan
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.stack import Stack
from synapse_ops.operations.vectors.left_overs import NodeFile, files_of_run, nodes_of_run
from synapse_ops.systems.qdrant.server import QdrantServer, qdrant_nodes

KIND = "snapshots"
GRACE = timedelta(hours=1)  # far over a lease's minute, under the day after which the heartbeat itself may expire


def make_snapshots_plan(
    stack: Stack, state_dir: Path, now: datetime, *, progress: ReportProgress = ignore_progress
) -> StoredPlan:
    """List what killed runs left on the nodes, and what of it goes; removes nothing.

    Raises Refused when our clock and the store's differ. A node that does not answer is a warning.
    """
    repository = stack.vector_repository()
    catalog = read_catalog(repository)
    clocks = Clocks(now, catalog.read_at)
    _refuse_wrong_clocks(clocks)
    runs = [row for row in catalog.left_overs if row.place.is_of(KIND_SNAPSHOT)]
    deleted = kept = size_bytes = 0
    with _servers(stack) as by_url, write_plan(state_dir, KIND, _policy(stack, by_url), now) as draft:
        for number, run in enumerate(runs):
            progress(Progress("looking for left-over snapshots", number, len(runs), unit="runs"))
            draft.warnings += _unknown_nodes(repository, run.place, by_url)
            try:
                files = files_of_run(repository, run.place, by_url)
            except SynapseOpsError as error:
                draft.warnings.append(f"{run.place.subject}, run {run.place.backup_id}: {error.message}")
                continue
            for file in files:
                objection = _objection(file, run, clocks)
                draft.writer.add(_entry(file, objection), acts=not objection)
                deleted, kept = deleted + (not objection), kept + bool(objection)
                size_bytes += 0 if objection else file.snapshot.size_bytes
        draft.totals = {"runs": len(runs), "deleted": deleted, "kept": kept, "delete_bytes": size_bytes}
    return draft.plan


def apply_snapshots_plan(
    digest: str, stack: Stack, state_dir: Path, now: datetime, *, progress: ReportProgress = ignore_progress
) -> Outcome:
    """Remove the snapshots that the plan of this digest names and that are still left over.

    Raises PlanChanged (no such plan, used, old, of other nodes), Refused (clocks differ), LeaseHeld.
    """
    repository = stack.vector_repository()
    with _servers(stack) as by_url, apply_plan(state_dir, KIND, digest, now) as (plan, outcome):
        if plan.header["policy"] != _policy(stack, by_url):
            raise PlanChanged(
                f"plan {digest} was made for other nodes, or another repository, than the spec names now",
                hint="`synapse-ops cleanup --plan --only snapshots` makes a new one.",
            )
        doomed = [entry for entry in plan.entries() if entry["action"] == "delete"]
        for collection in sorted({entry["collection"] for entry in doomed}):
            entries = [entry for entry in doomed if entry["collection"] == collection]
            progress(Progress(f"removing left-over snapshots of {collection}", 0))
            owner = f"cleanup on {socket.gethostname()}, pid {os.getpid()}"
            try:
                with hold_lease(repository, f"snapshot-{quote_segment(collection)}", owner=owner) as lease:
                    for entry in entries:
                        lease.check()
                        _remove(repository, entry, by_url, now, outcome)
            except LeaseHeld as held:
                for entry in entries:
                    outcome.skip(entry, f"a snapshot of the collection is being taken: {held.message}")
    return outcome


def _remove(
    repository: Repository, entry: dict[str, Any], by_url: dict[str, QdrantServer], now: datetime, outcome: Outcome
) -> None:
    """Look at one file again, and remove it when nothing has changed."""
    catalog = read_catalog(repository, subject=entry["collection"])
    clocks = Clocks(now, catalog.read_at)
    _refuse_wrong_clocks(clocks)
    run = next((row for row in catalog.left_overs if row.place.prefix == entry["run"]), None)
    if run is None:
        outcome.skip(entry, "its run has made a backup, or its heartbeat is gone")
        return
    try:
        found = {file.url: file for file in files_of_run(repository, run.place, by_url)}
        file = found.get(entry["subject"])
        if file is None:
            outcome.skip(entry, "it is gone already")
            return
        changed = _entry(file, _objection(file, run, clocks)) != entry
        if changed:
            outcome.skip(entry, _objection(file, run, clocks) or "it is another file than the plan saw")
            return
        file.server.delete_shard_snapshot(file.collection, file.shard_id, file.snapshot.name)
    except SynapseOpsError as error:
        outcome.skip(entry, error.message)
        return
    outcome.did("delete", file.snapshot.size_bytes)


def _objection(file: NodeFile, run: ListedBackup, clocks: Clocks) -> str:
    """Return why a file stays; empty when it goes. A reason has no clock in it, so that two plans have one digest."""
    if not file.is_named:
        return "left by a killed run or made by another tool: delete it by hand if it is not needed"
    made_at = file.snapshot.created_at
    if run.touched_at > clocks.earlier - GRACE:
        return "named by a run that was alive within the hour"
    if made_at is None or made_at > clocks.earlier - GRACE:
        return "made within the hour"
    return ""


def _entry(file: NodeFile, objection: str) -> dict[str, Any]:
    made_at = file.snapshot.created_at
    return {
        "action": "keep" if objection else "delete",
        "rule": "in-grace" if objection and file.is_named else "left-over" if file.is_named else "not-certain",
        "reason": objection or f"left by run {file.place.backup_id}, which made no backup",
        "subject": file.url,
        "collection": file.collection,
        "run": file.place.prefix,
        "size_bytes": file.snapshot.size_bytes,
        "created_at": made_at.isoformat() if made_at is not None else None,
    }


def _unknown_nodes(repository: Repository, place: BackupPlace, by_url: dict[str, QdrantServer]) -> Iterator[str]:
    for url in sorted(nodes_of_run(repository, place) - by_url.keys()):
        yield f"run {place.backup_id} of {place.subject} left something on {url}, which the spec does not name"


def _refuse_wrong_clocks(clocks: Clocks) -> None:
    if clocks.differ:
        raise Refused(
            f"our clock is {clocks.ours.isoformat(timespec='seconds')}, the store's {clocks.stores.isoformat()}",
            hint="Set the clock of this host (`timedatectl`), then plan again.",
        )


def _policy(stack: Stack, by_url: dict[str, QdrantServer]) -> dict[str, Any]:
    return {
        "nodes": sorted(by_url),
        "repository": stack.vector_repository().store.full_url(""),
        "grace_s": int(GRACE.total_seconds()),
    }


@contextmanager
def _servers(stack: Stack) -> Iterator[dict[str, QdrantServer]]:
    with ExitStack() as opened:
        yield {server.url: opened.enter_context(server) for server in qdrant_nodes(stack.spec.qdrant)}
