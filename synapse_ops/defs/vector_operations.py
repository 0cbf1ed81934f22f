"""One call per verb on collections: what an asset, a launchpad job and a sensor share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from synapse_ops.defs.event_metadata import BACKUP_ID, Metadata, snapshot_metadata, table
from synapse_ops.defs.in_run import operation_of, progress_into, tag_run
from synapse_ops.defs.policies import TAG_BACKUP_ID, TAG_SET_ID
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.subject_kind import COLLECTIONS, COLLECTIONS_PARTITION

PRESENT_CHECK = "collections_present"


def snapshot(context: Any, stack: StackResource, collection: str, *, set_id: str | None = None) -> tuple[str, Metadata]:
    """Snapshot one collection; return the backup's id and what the asset page shows of it."""
    with operation_of(context.run.run_id, context.instance):
        from synapse_ops.operations.vector_snapshot import snapshot_collection

        set_id = set_id or context.run.tags.get(TAG_SET_ID)
        report = snapshot_collection(stack.open(), collection, set_id=set_id, progress=progress_into(context.log))
    tag_run(context.instance, context.run.run_id, {TAG_BACKUP_ID: report.record.backup_id})
    for warning in report.warnings:
        context.log.warning(warning)
    metadata = snapshot_metadata(report.record, report.url)
    if report.warnings:
        metadata["warnings"] = dg.MetadataValue.md("\n".join(f"- {line}" for line in report.warnings))
    return report.record.backup_id, metadata


def restore_snapshot(context: Any, stack: StackResource, *, backup_id: str, target: str) -> tuple[str, Metadata]:
    """Restore a backup into a collection that does not exist yet; return the backup's own collection and figures."""
    with operation_of(context.run.run_id, context.instance):
        from synapse_ops.operations.backup_catalog import find_backup
        from synapse_ops.operations.vector_restore import apply_vector_restore
        from synapse_ops.operations.vector_restore_plan import plan_vector_restore
        from synapse_ops.systems.qdrant import qdrant_nodes

        opened = stack.open()
        repository, servers = opened.vector_repository(), qdrant_nodes(opened.spec.qdrant)
        plan = plan_vector_restore(repository, find_backup(repository, backup_id), servers, target)
        report = apply_vector_restore(
            repository,
            plan,
            servers,
            identities=opened.age_identities(),
            work_dir=opened.state_dir / "proof",
            progress=progress_into(context.log),
        )
    tag_run(context.instance, context.run.run_id, {TAG_BACKUP_ID: backup_id})
    return plan.place.subject, {
        BACKUP_ID: backup_id,
        "restored_to": f"{plan.server_url}/collections/{target}",
        "restore_s": report.restore_s,
        "points": max(report.counts.values(), default=0),
        "compared_points": report.compared_points,
        **{f"{name}_phase_s": value for name, value in report.phase_s.items()},
        "notes": dg.MetadataValue.md("\n".join(f"- {note}" for note in report.notes)),
    }


@dataclass(frozen=True)
class Discovery:
    """present: collections on the server now. known: those discovered so far, and not forgotten."""

    present: tuple[str, ...]
    known: tuple[str, ...]

    @property
    def new(self) -> tuple[str, ...]:
        return tuple(name for name in self.present if name not in self.known)

    @property
    def vanished(self) -> tuple[str, ...]:
        return tuple(name for name in self.known if name not in self.present)

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        if self.vanished:
            return "not on the server any more: " + ", ".join(self.vanished)
        return f"all {len(self.present)} collections are there: {', '.join(self.present)}"


def discover(stack: StackResource, instance: dg.DagsterInstance) -> Discovery:
    """Ask the server for its collections. Raises Unreachable when it does not answer."""
    from synapse_ops.systems.qdrant import qdrant_nodes

    servers = qdrant_nodes(stack.open().spec.qdrant)
    known = tuple(sorted(instance.get_dynamic_partitions(COLLECTIONS_PARTITION)))
    with servers[0] as server:
        return Discovery(server.collections(), known)


def presence_of(discovery: Discovery, known: Sequence[str] | None = None) -> dg.AssetCheckEvaluation:
    """Return whether every known collection is there, as an event of `vector_snapshot`."""
    names = known or sorted({*discovery.known, *discovery.present})
    rows = [{"collection": name, "is_there": name in discovery.present} for name in names]
    return dg.AssetCheckEvaluation(
        asset_key=COLLECTIONS.backup_key,
        check_name=PRESENT_CHECK,
        passed=not discovery.vanished,
        description=discovery.sentence,
        metadata={
            "vanished_collections": len(discovery.vanished),
            "collections": table(rows, {"collection": "string", "is_there": "bool"}),
        },
    )
