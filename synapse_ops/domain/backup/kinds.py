"""The kinds of backup, as a table: adding one here, in operations/backup_kinds.py and in defs makes it a kind."""

from __future__ import annotations

from dataclasses import dataclass

from synapse_ops.domain.backup.base_record import BaseRecord
from synapse_ops.domain.backup.document import read_body
from synapse_ops.domain.backup.dump_record import DumpRecord
from synapse_ops.domain.backup.layout import KIND_BASE, KIND_DUMP, KIND_RDB, KIND_SNAPSHOT
from synapse_ops.domain.backup.rdb_record import RdbRecord
from synapse_ops.domain.backup.record import BackupRecord
from synapse_ops.domain.backup.snapshot_record import SnapshotRecord


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of backup, in words.

    name: of `backup.json` and of keys. word: what a person types before `/NAME`. noun: what one subject is.
    form: how a person names a subject. backup_noun: what one backup is called. items: what is counted in it.
    prefix: of the names of its assets, jobs and sensors. backup_asset, proof_asset: names of its assets.
    alert: how the names of its alerts begin. model: of its `backup.json`.
    """

    name: str
    word: str
    noun: str
    form: str
    backup_noun: str
    items: str
    prefix: str
    backup_asset: str
    proof_asset: str
    alert: str
    model: type[BackupRecord]

    @property
    def retention_asset(self) -> str:
        return f"{self.prefix}_retention_set"


DUMP = Kind(
    name=KIND_DUMP,
    word="database",
    noun="database",
    form="database/NAME",
    backup_noun="dump",
    items="rows",
    prefix="database",
    backup_asset="database_dump",
    proof_asset="database_restore_proof",
    alert="Dump",
    model=DumpRecord,
)
SNAPSHOT = Kind(
    name=KIND_SNAPSHOT,
    word="vectors",
    noun="collection",
    form="vectors/COLLECTION",
    backup_noun="snapshot",
    items="points",
    prefix="vector",
    backup_asset="vector_snapshot",
    proof_asset="vector_restore_proof",
    alert="Snapshot",
    model=SnapshotRecord,
)
RDB = Kind(
    name=KIND_RDB,
    word="redis",
    noun="Redis server",
    form="redis",
    backup_noun="RDB snapshot",
    items="keys",
    prefix="redis",
    backup_asset="redis_snapshot",
    proof_asset="redis_restore_proof",
    alert="RedisSnapshot",
    model=RdbRecord,
)
BASE = Kind(
    name=KIND_BASE,
    word="cluster",
    noun="PostgreSQL cluster",
    form="cluster",
    backup_noun="base backup",
    items="databases",
    prefix="cluster",
    backup_asset="base_backup",
    proof_asset="base_backup_proof",
    alert="BaseBackup",
    model=BaseRecord,
)
KINDS = {kind.name: kind for kind in (DUMP, SNAPSHOT, RDB, BASE)}


def parse_backup(data: bytes, *, key: str) -> BackupRecord:
    """Return the `backup.json` stored under `key`, of the kind that it says; raises DocumentUnreadable."""
    body = read_body(data, key=key)
    name = str(body.get("kind")) if isinstance(body, dict) else ""
    return KINDS.get(name, DUMP).model.of_body(body, data, key=key)  # the dump's model says what is wrong
