"""Reports and records of operations as metadata: numbers that the asset page plots, tables cut at their first rows.

Names carry their unit. A name keeps its meaning for ever: the page plots it over years.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from synapse_ops.defs.policies import TABLE_ROWS

if TYPE_CHECKING:
    from synapse_ops.domain.backup_record import BackupRecord, ProofRecord
    from synapse_ops.domain.fingerprint import Fingerprint
    from synapse_ops.domain.snapshot_record import SnapshotRecord

Metadata = dict[str, Any]

BACKUP_ID = "backup_id"
PROOF_ID = "proof_id"


def backup_metadata(record: "BackupRecord", url: str) -> Metadata:
    """Return what `backup.json` says of a backup, ready to plot."""
    seconds = max(record.duration_s, 0.001)
    metadata: Metadata = {
        BACKUP_ID: record.backup_id,
        "url": dg.MetadataValue.path(url),
        "database_size_bytes": record.source.database_size_bytes,
        "dumped_bytes": record.dumped_bytes,
        "stored_bytes": record.stored_bytes,
        "stored_ratio": round(record.stored_bytes / max(record.source.database_size_bytes, 1), 4),
        "duration_s": record.duration_s,
        "fingerprint_s": record.fingerprint_s,
        "database_bytes_per_s": round(record.source.database_size_bytes / seconds),
        "rows": record.row_count,
        "tables": record.table_count,
        "start_lsn": record.start_lsn,
        "stop_lsn": record.stop_lsn,
        "timeline": record.timeline,
        "database_time": dg.MetadataValue.timestamp(record.database_time),
        "finished_at": dg.MetadataValue.timestamp(record.finished_at),
        "server_version": record.source.server_version,
        "node": record.source.node,
        "encryption": ", ".join(record.encryption_recipients) or "none: anyone who can read the bucket can read it",
        "correlation_id": record.correlation_id,
    }
    metadata.update({f"{name}_phase_s": value for name, value in record.phase_s.items()})
    if record.set_id is not None:
        metadata["set_id"] = record.set_id
    return metadata


def snapshot_metadata(record: "SnapshotRecord", url: str) -> Metadata:
    """Return what `backup.json` says of a collection's snapshots, ready to plot; one row a shard."""
    window = record.window
    rows = (
        {
            "shard": shard.shard_id,
            "peer": shard.peer_id,
            "method": shard.method,
            "snapshot_bytes": shard.snapshot_bytes,
            "compression": shard.compression,
            "compression_ratio": shard.compression_ratio,
            "creation_s": shard.creation_s,
        }
        for shard in record.shards
    )
    columns = {"shard": "int", "peer": "string", "method": "string", "snapshot_bytes": "int"}
    columns |= {"compression": "string", "compression_ratio": "float", "creation_s": "float"}
    metadata: Metadata = {
        BACKUP_ID: record.backup_id,
        "url": dg.MetadataValue.path(url),
        "snapshot_bytes": record.dumped_bytes,
        "stored_bytes": record.stored_bytes,
        "stored_ratio": round(record.stored_bytes / max(record.dumped_bytes, 1), 4),
        "duration_s": record.duration_s,
        "points": window.points_after,
        "window_s": round((window.closed_at - window.opened_at).total_seconds(), 3),
        "window_points": window.moved_points,
        "compared_points": f"{window.read_points} of {window.points_before} ({window.scope})",
        "window_opened_at": dg.MetadataValue.timestamp(window.opened_at),
        "window_closed_at": dg.MetadataValue.timestamp(window.closed_at),
        "start_lsn": window.start_lsn or f"none: {window.database_fault}",
        "stop_lsn": window.stop_lsn or f"none: {window.database_fault}",
        "finished_at": dg.MetadataValue.timestamp(record.finished_at),
        "server_version": record.source.server_version,
        "aliases": ", ".join(record.aliases) or "none",
        "shards": table(rows, columns),
        "encryption": ", ".join(record.encryption_recipients) or "none: anyone who can read the bucket can read it",
        "correlation_id": record.correlation_id,
    }
    metadata.update({f"{name}_phase_s": value for name, value in record.phase_s.items()})
    if record.points_digest is not None:
        metadata["points_digest"] = record.points_digest
    if record.set_id is not None:
        metadata["set_id"] = record.set_id
    return metadata


def fingerprint_metadata(fingerprint: "Fingerprint") -> Metadata:
    """Return rows and row hash of each table, the largest first, cut at the first rows."""
    tables = sorted(fingerprint.tables.items(), key=lambda item: (-item[1].rows, item[0]))
    rows = ({"table": name, "rows": content.rows, "row_hash": content.row_hash} for name, content in tables)
    return {
        "fingerprint": table(rows, {"table": "string", "rows": "int", "row_hash": "string"}),
        "sequences": len(fingerprint.sequences),
        "large_objects": sum(part.objects for part in fingerprint.large_objects.values()),
        "extensions": dg.MetadataValue.json(dict(fingerprint.extensions)),
    }


def proof_metadata(record: "ProofRecord", url: str) -> Metadata:
    """Return what a proof found and measured. A duration that was not measured is absent, never 0."""
    measured = {
        "restore_s": record.restore_s,
        "predicted_restore_s": record.predicted_restore_s,
    }
    return {
        BACKUP_ID: record.backup_id,
        PROOF_ID: proof_id(record),
        "verdict": str(record.verdict),
        "url": dg.MetadataValue.path(url),
        **{name: value for name, value in measured.items() if value is not None},
        **{f"{name}_phase_s": value for name, value in record.phase_s.items()},
        "duration_s": round((record.finished_at - record.started_at).total_seconds(), 3),
        "restored_bytes": sum(item.size_bytes for item in record.objects),
        **_what_was_compared(record),
        "finished_at": dg.MetadataValue.timestamp(record.finished_at),
        "server_version": record.server_version or "not known",
        **({"reason": record.reason} if record.reason else {}),
        **({"differences": dg.MetadataValue.md(_bullets(record.differences))} if record.differences else {}),
    }


def _what_was_compared(record: "ProofRecord") -> Metadata:
    found = record.snapshot
    if found is None:
        return {"amcheck_relations": record.amcheck_relations}
    return {
        "points": sum(found.shard_points.values()),
        "still_points": found.still_points,
        "window_points": found.window_points,
        "passing_points": found.passing_points,
        "points_digest": found.points_digest,
        **({"recall_at_10": found.recall_at_10} if found.recall_at_10 is not None else {}),
    }


def proof_id(record: "ProofRecord") -> str:
    """Return the word by which a proof is known in events: which backup, finished when."""
    return f"{record.backup_id}@{record.finished_at.isoformat(timespec='seconds')}"


def table(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> dg.TableMetadataValue:
    """Return a metadata table of the first rows; totals belong beside it."""
    schema = dg.TableSchema([dg.TableColumn(name, kind) for name, kind in columns.items()])
    records = [dg.TableRecord(dict(row)) for _, row in zip(range(TABLE_ROWS), rows, strict=False)]
    return dg.MetadataValue.table(records, schema=schema)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- `{line}`" for line in lines)
