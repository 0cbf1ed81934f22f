"""`backup.json` of any kind: which document it is, by what it says of itself."""

from __future__ import annotations

import json

from synapse_ops.domain.backup_record import BackupRecord
from synapse_ops.domain.rdb_record import RdbRecord
from synapse_ops.domain.repository_layout import KIND_RDB, KIND_SNAPSHOT
from synapse_ops.domain.snapshot_record import SnapshotRecord

AnyBackup = BackupRecord | SnapshotRecord | RdbRecord
_MODELS: dict[str, type[SnapshotRecord] | type[RdbRecord]] = {KIND_SNAPSHOT: SnapshotRecord, KIND_RDB: RdbRecord}


def parse_backup(data: bytes, *, key: str) -> AnyBackup:
    """Return the `backup.json` stored under `key`, of the kind that it says; raises DocumentUnreadable."""
    try:
        kind = str(json.loads(data)["kind"])
    except (ValueError, KeyError, TypeError):
        kind = ""  # the dump's model says what is wrong
    return _MODELS.get(kind, BackupRecord).from_json(data, key=key)
