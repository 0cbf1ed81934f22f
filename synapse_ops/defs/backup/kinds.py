"""What differs between the kinds of backup in Dagster: names, partitions, pools and descriptions.

Everything else (backup, proof, expiry, the check restore_proven, the jobs, the repository sensor) is one code for all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

from synapse_ops.defs.policies import (
    GROUP_DATABASE,
    GROUP_REDIS,
    GROUP_VECTORS,
    POOL_POSTGRES_IO,
    POOL_QDRANT_IO,
    POOL_REDIS_IO,
)
from synapse_ops.operations.backup_kinds import BASES, DUMPS, RDBS, SNAPSHOTS, BackupKind, redis_address

if TYPE_CHECKING:
    from synapse_ops.operations.backup.catalog import Catalog
    from synapse_ops.operations.stack import Stack
    from synapse_ops.spec import Spec
    from synapse_ops.spec.cron import Cron

COLLECTIONS_PARTITION = "collections"

collection_partitions = dg.DynamicPartitionsDefinition(name=COLLECTIONS_PARTITION)


@dataclass(frozen=True)
class AssetKind:
    """One kind of backup in Dagster.

    expected: names that must have backups. blocks: of the spec, that a backup reads. versioned: modules whose code
    makes a backup, and a proof. about_backup, about_proof: what the figures on the asset pages mean.
    proven_with: further assets that a proof reads.
    """

    kind: BackupKind
    group: str
    pool: str
    technology: str
    blocks: tuple[str, ...]
    partitions: Callable[["Spec"], dg.PartitionsDefinition[str]]
    expected: Callable[["Stack", dg.DagsterInstance], Sequence[str]]
    versioned: tuple[tuple[str, ...], tuple[str, ...]]
    about_backup: str
    about_proof: str
    proven_with: tuple[str, ...] = ()

    @property
    def noun(self) -> str:
        return self.kind.noun

    @property
    def prefix(self) -> str:
        return self.kind.kind.prefix

    @property
    def backup_key(self) -> dg.AssetKey:
        return dg.AssetKey(self.kind.kind.backup_asset)

    @property
    def proof_key(self) -> dg.AssetKey:
        return dg.AssetKey(self.kind.kind.proof_asset)

    @property
    def plan_key(self) -> dg.AssetKey:
        return dg.AssetKey(f"{self.prefix}_expiry_plan")

    @property
    def retention_key(self) -> dg.AssetKey:
        return dg.AssetKey(self.kind.kind.retention_asset)

    def schedule(self, spec: "Spec") -> "Cron":
        return self.kind.schedule(spec)

    def job(self, verb: str) -> str:
        """Return the name of a job: backup or prove, and what."""
        return f"{verb}_{self.kind.kind.word}"

    def catalog(self, stack: "Stack") -> "Catalog":
        """Read what lies in its repository of this kind."""
        from synapse_ops.operations.backup.catalog import read_catalog

        return read_catalog(self.kind.repository(stack)).only(self.kind.name)

    def proof_max_age(self, stack: "Stack") -> timedelta:
        return stack.spec.retention.proof_max_age


def _discovered_collections(stack: "Stack", instance: dg.DagsterInstance) -> Sequence[str]:
    """Return the collections that were ever discovered and not forgotten, those that vanished included."""
    del stack
    return sorted(instance.get_dynamic_partitions(COLLECTIONS_PARTITION))


DATABASES = AssetKind(
    kind=DUMPS,
    group=GROUP_DATABASE,
    pool=POOL_POSTGRES_IO,
    technology="postgres",
    blocks=("database", "backup", "encryption", "object_store"),
    partitions=lambda spec: dg.StaticPartitionsDefinition(list(spec.database.databases)),
    expected=lambda stack, _: DUMPS.subjects(stack),
    versioned=(
        ("synapse_ops.operations.database.dump", "synapse_ops.operations.backup.writer"),
        ("synapse_ops.operations.database.proof", "synapse_ops.domain.database.fingerprint"),
    ),
    about_backup="A whole logical backup of one database in the repository. Each materialization is one backup: "
    "`stored_bytes` is what lies in the bucket, `duration_s` what the dump took.",
    about_proof="A backup restored into a throwaway server and compared exactly with what was backed up. "
    "`restore_s` is the time from the first byte read to a server that answers; `predicted_restore_s` is what was "
    "predicted before.",
)

COLLECTIONS = AssetKind(
    kind=SNAPSHOTS,
    group=GROUP_VECTORS,
    pool=POOL_QDRANT_IO,
    technology="qdrant",
    blocks=("qdrant", "backup", "encryption", "object_store"),
    partitions=lambda spec: collection_partitions,
    expected=_discovered_collections,
    versioned=(
        ("synapse_ops.operations.vectors.snapshot", "synapse_ops.operations.vectors.shards"),
        ("synapse_ops.operations.vectors.proof", "synapse_ops.domain.vectors.fingerprint"),
    ),
    about_backup="Every shard of one collection in the repository, each from one active replica. `window_s` is the "
    "time in which they were cut, `window_points` how many of the compared points moved meanwhile.",
    about_proof="A backup opened in its own engine, every point read and compared. `restore_s` is the time "
    "from the first byte read to a copy that answers, `recall_at_10` the part of the searches' best ten that was "
    "found.",
)

REDIS = AssetKind(
    kind=RDBS,
    group=GROUP_REDIS,
    pool=POOL_REDIS_IO,
    technology="redis",
    blocks=("redis", "backup", "encryption", "object_store"),
    partitions=lambda spec: dg.StaticPartitionsDefinition([redis_address(spec)]),
    expected=lambda stack, _: RDBS.subjects(stack),
    versioned=(
        ("synapse_ops.operations.redis.snapshot",),
        ("synapse_ops.operations.redis.proof", "synapse_ops.domain.redis.fingerprint"),
    ),
    about_backup="An RDB snapshot of Redis in the repository, every logical database in one file. `keys` is what "
    "the second reading counted; `window_keys` moved between the two, and no proof covers them.",
    about_proof="An RDB snapshot loaded into a throwaway server and compared key for key. `restore_s` is the time "
    "from the first byte read to a server that answers.",
)

CLUSTER = AssetKind(
    kind=BASES,
    group=GROUP_DATABASE,
    pool=POOL_POSTGRES_IO,
    technology="postgres",
    blocks=("database", "backup", "encryption", "object_store"),
    partitions=lambda spec: dg.StaticPartitionsDefinition([BASES.word]),
    expected=lambda stack, _: BASES.subjects(stack),
    versioned=(
        ("synapse_ops.operations.database.base_backup", "synapse_ops.operations.database.exact_position"),
        ("synapse_ops.operations.database.base_proof", "synapse_ops.operations.database.cluster_copy"),
    ),
    about_backup="A physical copy of the whole PostgreSQL cluster in the repository: with the WAL since, any moment "
    "from its end on can be restored. `duration_s` includes the wait for its WAL, `copy_phase_s` does not.",
    about_proof="A base backup recovered by a throwaway server from the repository alone: first to the position at "
    "which the standby was read behind the backup, and compared row for row; then, by turns, to the newest moment or "
    "one in between, where every page and index is checked. `compared` says with what, `contents` what each database "
    "holds there; `restore_s` is the time until that server takes queries.",
    proven_with=("wal_archive",),
)

ASSET_KINDS = (DATABASES, COLLECTIONS, REDIS, CLUSTER)


def asset_kinds_of(spec: "Spec") -> tuple[AssetKind, ...]:
    """Return the kinds that the spec has backed up: of a cache no backup is made, and none is missing."""
    return tuple(kind for kind in ASSET_KINDS if kind.kind.is_on(spec))
