"""The kinds of backup, as a table: adding one here, in operations/backup_kinds.py and in defs makes it a kind."""

from __future__ import annotations

from dataclasses import dataclass

from synapse_ops.domain.backup.document import read_body
from synapse_ops.domain.backup.dump_record import DumpRecord
from synapse_ops.domain.backup.layout import KIND_DUMP, KIND_RDB, KIND_SNAPSHOT
from synapse_ops.domain.backup.rdb_record import RdbRecord
from synapse_ops.domain.backup.record import BackupRecord
from synapse_ops.domain.backup.snapshot_record import SnapshotRecord


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of backup, in words.

    name: of `backup.json` and of keys. word: what a person types, `database/NAME`. noun: what one subject is.
    items: what is counted in it. model: of its `backup.json`.
    """

    name: str
    word: str
    noun: str
    items: str
    model: type[BackupRecord]


DUMP = Kind(KIND_DUMP, "database", "database", "rows", DumpRecord)
SNAPSHOT = Kind(KIND_SNAPSHOT, "vectors", "collection", "points", SnapshotRecord)
RDB = Kind(KIND_RDB, "redis", "Redis server", "keys", RdbRecord)
KINDS = {kind.name: kind for kind in (DUMP, SNAPSHOT, RDB)}


def parse_backup(data: bytes, *, key: str) -> BackupRecord:
    """Return the `backup.json` stored under `key`, of the kind that it says; raises DocumentUnreadable."""
    body = read_body(data, key=key)
    name = str(body.get("kind")) if isinstance(body, dict) else ""
    return KINDS.get(name, DUMP).model.of_body(body, data, key=key)  # the dump's model says what is wrong
