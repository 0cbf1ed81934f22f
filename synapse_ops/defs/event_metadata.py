"""Reports and records of operations as metadata: numbers that the asset page plots, tables cut at their first rows.

Names carry their unit. A name keeps its meaning for ever: the page plots it over years.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from synapse_ops.defs.policies import TABLE_ROWS

if TYPE_CHECKING:
    from synapse_ops.domain.backup.proof_record import ProofRecord
    from synapse_ops.domain.backup.record import BackupRecord, Fact

    Tables = Mapping[str, Sequence[Mapping[str, Fact]]]

Metadata = dict[str, Any]

BACKUP_ID = "backup_id"
PROOF_ID = "proof_id"
LINE = 44  # characters beside key and time, on a page 1,400 pixels wide
MOST_MARKDOWN = 900  # the UI shows markdown under 1,000 characters in place, and the rest behind a click
_COLUMN_TYPES: dict[type, str] = {str: "string", int: "int", float: "float"}


def backup_metadata(record: "BackupRecord", url: str, tables: "Tables | None" = None) -> Metadata:
    """Return what `backup.json` says of a backup, ready to plot. tables: of the report, else those of the record."""
    metadata: Metadata = {BACKUP_ID: record.backup_id, "url": dg.MetadataValue.path(url)}
    for name, value in record.facts().items():
        metadata[name] = dg.MetadataValue.timestamp(value) if isinstance(value, datetime) else value
    return metadata | _tables(record.tables() if tables is None else tables)


def _tables(tables: "Tables") -> Metadata:
    found: Metadata = {}
    for name, rows in tables.items():
        columns = {column: _COLUMN_TYPES[type(value)] for column, value in rows[0].items()} if rows else {}
        found[name] = table(rows, columns)
    return found


def proof_metadata(record: "ProofRecord", url: str) -> Metadata:
    """Return what a proof found, the verdict first, and measured. What was not measured is absent, never 0."""
    measured = {
        "restore_s": record.restore_s,
        "predicted_restore_s": record.predicted_restore_s,
    }
    return {
        "verdict": str(record.verdict),
        **({"reason": record.reason} if record.reason else {}),
        **({"differences": dg.MetadataValue.md(_bullets(record.differences))} if record.differences else {}),
        **record.compared(),
        **{name: value for name, value in measured.items() if value is not None},
        **{f"{name}_phase_s": value for name, value in record.phase_s.items()},
        "duration_s": round((record.finished_at - record.started_at).total_seconds(), 3),
        "restored_bytes": sum(item.size_bytes for item in record.objects),
        **_tables(record.tables()),
        "finished_at": dg.MetadataValue.timestamp(record.finished_at),
        "server_version": record.server_version or "not known",
        BACKUP_ID: record.backup_id,
        PROOF_ID: proof_id(record),
        "url": dg.MetadataValue.path(url),
    }


def proof_id(record: "ProofRecord") -> str:
    """Return the word by which a proof is known in events: which backup, finished when."""
    return f"{record.backup_id}@{record.finished_at.isoformat(timespec='seconds')}"


def table(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> dg.TableMetadataValue:
    """Return a metadata table of the first rows; totals belong beside it."""
    schema = dg.TableSchema([dg.TableColumn(name, kind) for name, kind in columns.items()])
    records = [dg.TableRecord(dict(row)) for _, row in zip(range(TABLE_ROWS), rows, strict=False)]
    return dg.MetadataValue.table(records, schema=schema)


def short_lines(text: str, *, first: str = "", indent: int = 0) -> str:
    """Return a text as markdown in lines that a usual page shows whole; `first` stands before, in a line of its own.

    A wide table on the same page makes its column wider than the page, and would cut off a text that fills it.
    """
    lines = textwrap.wrap(text, LINE - indent)
    return f"  \n{' ' * indent}".join([first, *lines] if first else lines)


def summary(text: str) -> str | dg.MarkdownMetadataValue:
    """Return a page's sentence in short lines; as plain text where the UI would hide it behind a click."""
    lines = short_lines(text)
    return dg.MetadataValue.md(lines) if len(lines) < MOST_MARKDOWN else text


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- `{line}`" for line in lines)
