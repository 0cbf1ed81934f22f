"""What differs between databases and collections in Dagster: keys, words, and where their backups lie.

Everything else (proof, expiry, the check restore_proven, the repository sensor) is one code for both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

if TYPE_CHECKING:
    from synapse_ops.domain.catalog import CatalogEntry
    from synapse_ops.domain.retention import RetentionPolicy
    from synapse_ops.operations.backup_catalog import Catalog
    from synapse_ops.operations.repository import Repository
    from synapse_ops.operations.stack import Stack

COLLECTIONS_PARTITION = "collections"


@dataclass(frozen=True)
class SubjectKind:
    """One kind of subject. noun: for people and in names of metadata. kind: of `backup.json`.

    backup_key, proof_key, plan_key, retention_key: of its assets. subjects: names that must have backups.
    job_prefix: of the names of its expiry jobs. expiry_schedule: name of the schedule that deletes.
    proof_jobs: those that prove; the first is what the sensor starts. proof_op: the op of that job.
    read_record: `backup.json` of one place. metadata: what an asset page shows of such a record.
    """

    noun: str
    kind: str
    backup_key: dg.AssetKey
    proof_key: dg.AssetKey
    plan_key: dg.AssetKey
    retention_key: dg.AssetKey
    job_prefix: str
    expiry_schedule: str
    proof_jobs: tuple[str, ...]
    proof_op: str
    repository: Callable[["Stack"], "Repository"]
    subjects: Callable[["Stack", dg.DagsterInstance], Sequence[str]]
    read_record: Callable[["Repository", "CatalogEntry"], Any]
    metadata: Callable[[Any, str], dict[str, Any]]
    prove: Callable[..., Any]
    policy: Callable[["Stack"], "RetentionPolicy"]

    def expiry_job(self, step: str = "") -> str:
        """Return the name of the job that plans or applies an expiry; without a step, of the one that does both."""
        return self.job_prefix + "_".join(filter(None, ("expire", step)))

    @property
    def apply_job(self) -> str:
        return self.expiry_job("apply")

    def catalog(self, stack: "Stack") -> "Catalog":
        """Read the repository of this kind."""
        from synapse_ops.operations.backup_catalog import read_catalog

        return read_catalog(self.repository(stack))

    def proof_max_age(self, stack: "Stack") -> timedelta:
        return stack.spec.retention.proof_max_age


def _databases(stack: "Stack", instance: dg.DagsterInstance) -> Sequence[str]:
    del instance
    return stack.spec.database.databases


def _collections(stack: "Stack", instance: dg.DagsterInstance) -> Sequence[str]:
    """Return the collections that were ever discovered and not forgotten, those that vanished included."""
    del stack
    return sorted(instance.get_dynamic_partitions(COLLECTIONS_PARTITION))


def _read_dump(repository: "Repository", entry: "CatalogEntry") -> Any:
    from synapse_ops.operations.backup_catalog import read_backup

    return read_backup(repository, entry.place)


def _read_snapshot(repository: "Repository", entry: "CatalogEntry") -> Any:
    from synapse_ops.operations.backup_catalog import read_snapshot

    return read_snapshot(repository, entry.place)


def _dump_metadata(record: Any, url: str) -> dict[str, Any]:
    from synapse_ops.defs.event_metadata import backup_metadata

    return backup_metadata(record, url)


def _snapshot_metadata(record: Any, url: str) -> dict[str, Any]:
    from synapse_ops.defs.event_metadata import snapshot_metadata

    return snapshot_metadata(record, url)


def _prove_dump(repository: "Repository", *, subject: str | None, **more: Any) -> Any:
    from synapse_ops.operations.restore_proof import prove_backup

    return prove_backup(repository, database=subject, **more)


def _prove_snapshot(repository: "Repository", *, subject: str | None, **more: Any) -> Any:
    from synapse_ops.operations.vector_restore_proof import prove_snapshot

    return prove_snapshot(repository, collection=subject, **more)


def _database_policy(stack: "Stack") -> "RetentionPolicy":
    from synapse_ops.domain.retention import RetentionPolicy

    return RetentionPolicy.of_databases(stack.spec)


def _vector_policy(stack: "Stack") -> "RetentionPolicy":
    from synapse_ops.domain.retention import RetentionPolicy

    return RetentionPolicy.of_vectors(stack.spec)


DATABASES = SubjectKind(
    noun="database",
    kind="dump",
    backup_key=dg.AssetKey("database_dump"),
    proof_key=dg.AssetKey("database_restore_proof"),
    plan_key=dg.AssetKey("database_expiry_plan"),
    retention_key=dg.AssetKey("database_retention_set"),
    job_prefix="",
    expiry_schedule="database_expiry_schedule",
    proof_jobs=("prove_backup", "prove_databases"),
    proof_op="prove_chosen",
    repository=lambda stack: stack.database_repository(),
    subjects=_databases,
    read_record=_read_dump,
    metadata=_dump_metadata,
    prove=_prove_dump,
    policy=_database_policy,
)

COLLECTIONS = SubjectKind(
    noun="collection",
    kind="snapshot",
    backup_key=dg.AssetKey("vector_snapshot"),
    proof_key=dg.AssetKey("vector_restore_proof"),
    plan_key=dg.AssetKey("vector_expiry_plan"),
    retention_key=dg.AssetKey("vector_retention_set"),
    job_prefix="vector_",
    expiry_schedule="vector_expiry_schedule",
    proof_jobs=("prove_snapshot", "prove_collections"),
    proof_op="prove_chosen_snapshot",
    repository=lambda stack: stack.vector_repository(),
    subjects=_collections,
    read_record=_read_snapshot,
    metadata=_snapshot_metadata,
    prove=_prove_snapshot,
    policy=_vector_policy,
)
