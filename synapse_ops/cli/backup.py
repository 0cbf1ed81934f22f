"""`synapse-ops backup`: take, list and show backups."""

from __future__ import annotations

import importlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.options import Place, any_repository_options
from synapse_ops.cli.tables import format_age, format_bytes, format_moment, show_table

if TYPE_CHECKING:
    from synapse_ops.domain.any_record import AnyBackup
    from synapse_ops.domain.backup_record import BackupRecord, ProofRecord
    from synapse_ops.domain.catalog import CatalogEntry
    from synapse_ops.domain.rdb_record import RdbRecord
    from synapse_ops.domain.snapshot_record import SnapshotRecord


class _BackupCommands(click.Group):
    """Adds `now` from its own module when it is asked for: it needs PostgreSQL's client, these commands do not."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), "now"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "now":
            return super().get_command(ctx, cmd_name)
        found: click.Command = importlib.import_module("synapse_ops.cli.backup_now").command
        return found


@click.group(cls=_BackupCommands)
def command() -> None:
    """Take, list and show backups.

    \b
    Examples:
      synapse-ops backup now --database synapse
      synapse-ops backup list --repository s3://backups/database/
      synapse-ops backup show 20261123T201726Z-3f9a1c --json
    """


@command.command("list")
@click.option("--database", help="Only this database's backups.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/json/backup-list.schema.json).")
@any_repository_options
def list_backups(database: str | None, place: Place, *, as_json: bool) -> None:
    """List what the repository holds, newest first: backups, whether each is proven, and left-overs."""
    from synapse_ops.operations.backup_catalog import read_catalog

    repository = place.repository()
    catalog = read_catalog(repository, subject=database)
    if as_json:
        _print(
            {
                "repository": repository.url,
                "read_at": catalog.read_at.isoformat(),
                "backups": [entry_as_json(entry) for entry in catalog.backups],
                "left_overs": [
                    {
                        "kind": row.place.kind,
                        "subject": row.place.subject,
                        "backup_id": row.place.backup_id,
                        "prefix": row.place.prefix,
                        "size_bytes": row.size_bytes,
                        "object_count": row.object_count,
                        "touched_at": row.touched_at.isoformat(),
                    }
                    for row in catalog.left_overs
                ],
                "foreign_count": catalog.foreign_count,
                "object_count": catalog.object_count,
            }
        )
        return
    now = datetime.now(UTC)
    show_table(
        ("backup", "of", "identity", ">age", ">stored", ">items", "proven", "pins"),
        (
            (
                entry.place.backup_id,
                entry.place.subject,
                str(entry.place.identity),
                format_age(now - (entry.database_time or entry.started_at)),
                format_bytes(entry.size_bytes),
                "?" if entry.unreadable_reason else f"{entry.item_count:,}",
                format_moment(entry.proven_at) if entry.proven_at else f"NO: {entry.doubt}",
                ", ".join(entry.pins),
            )
            for entry in catalog.backups
        ),
        title=f"{len(catalog.backups)} backups in {repository.url}",
    )
    for row in catalog.left_overs:
        click.echo(
            f"left-over: {row.place.prefix} has no backup.json; {row.object_count} objects, "
            f"{format_bytes(row.size_bytes)}, touched {format_age(catalog.read_at - row.touched_at)} ago"
        )
    if catalog.foreign_count:
        click.echo(f"foreign: {catalog.foreign_count} objects that this tool did not write, and leaves alone")


@command.command()
@click.argument("backup_id")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/json/backup-show.schema.json).")
@any_repository_options
def show(backup_id: str, place: Place, *, as_json: bool) -> None:
    """Show one backup: what it was taken from, its objects, its proofs and its pins."""
    from synapse_ops.errors import ConfigError, IntegrityError
    from synapse_ops.operations.backup_catalog import find_backup, read_catalog, read_proofs, read_record

    repository = place.repository()
    found = find_backup(repository, backup_id)
    catalog = read_catalog(repository, subject=found.subject)
    entry = next((row for row in catalog.backups if row.place == found), None)
    if entry is None:
        raise ConfigError(f"backup {backup_id} was removed while it was read")
    proofs = read_proofs(repository, found)
    try:
        record = read_record(repository, found)
    except IntegrityError:
        if not as_json:
            raise
        record = None  # the entry says why it cannot be read
    if as_json:
        _print(
            {
                "repository": repository.url,
                "backup": entry_as_json(entry),
                "record": record.model_dump(mode="json") if record else None,
                "proofs": [proof.model_dump(mode="json") for proof in proofs],
            }
        )
    elif record is not None:
        _show_record(repository.store.full_url(found.prefix), entry, record, proofs)


def entry_as_json(entry: CatalogEntry) -> dict[str, Any]:
    """Return a catalog entry's stable fields. Times are ISO 8601 UTC, sizes bytes, durations seconds."""
    place = entry.place
    return {
        "backup_id": place.backup_id,
        "kind": place.kind,
        "subject": place.subject,
        "identity": str(place.identity),
        "prefix": place.prefix,
        "size_bytes": entry.size_bytes,
        "source_size_bytes": entry.source_size_bytes,
        "item_count": entry.item_count,
        "started_at": entry.started_at.isoformat(),
        "database_time": entry.database_time.isoformat() if entry.database_time else None,
        "finished_at": entry.finished_at.isoformat() if entry.finished_at else None,
        "duration_s": entry.duration_s,
        "is_encrypted": entry.is_encrypted,
        "is_proven": entry.proven_at is not None,
        "proven_at": entry.proven_at.isoformat() if entry.proven_at else None,
        "last_verdict": str(entry.last_verdict) if entry.last_verdict else None,
        "restore_s": entry.restore_s,
        "not_attempted_at": entry.not_attempted_at.isoformat() if entry.not_attempted_at else None,
        "doubt": entry.doubt,
        "pins": list(entry.pins),
        "held_at": entry.held_at.isoformat() if entry.held_at else None,
    }


def _show_record(url: str, entry: CatalogEntry, record: AnyBackup, proofs: tuple[ProofRecord, ...]) -> None:
    from synapse_ops.domain.catalog import not_attempted

    facts = (
        ("where", url),
        *_facts_of(record),
        ("encryption", ", ".join(record.encryption_recipients) or "off: whoever reads the bucket reads the data"),
        ("proven", format_moment(entry.proven_at) if entry.proven_at else f"NO: {entry.doubt}"),
        *([("warning", not_attempted(entry.not_attempted_at))] if entry.not_attempted_at else []),
        ("pins", ", ".join(entry.pins) or "none"),
    )
    show_table(("", f"backup {record.backup_id}"), facts)
    show_table(
        ("object", ">stored", "sha256"),
        ((one.name, format_bytes(one.size_bytes), one.sha256) for one in record.objects),
    )
    if proofs:
        show_table(
            ("proof finished", "verdict", ">restore", ">predicted", "reason"),
            (
                (
                    format_moment(proof.finished_at),
                    str(proof.verdict),
                    _seconds(proof.restore_s),
                    _seconds(proof.predicted_restore_s),
                    proof.reason or "; ".join(proof.differences[:3]),
                )
                for proof in proofs
            ),
        )


def _facts_of(record: AnyBackup) -> tuple[tuple[str, str], ...]:
    from synapse_ops.domain.rdb_record import RdbRecord
    from synapse_ops.domain.snapshot_record import SnapshotRecord

    if isinstance(record, RdbRecord):
        return _rdb_facts(record)
    return _snapshot_facts(record) if isinstance(record, SnapshotRecord) else _dump_facts(record)


def _dump_facts(record: BackupRecord) -> tuple[tuple[str, str], ...]:
    source = record.source
    server = f"PostgreSQL {source.server_version}, identity {record.identity}"
    return (
        ("source", f"{source.database} on {source.node}, {server}"),
        ("restores to", f"{format_moment(record.database_time)}, LSN {record.start_lsn}, timeline {record.timeline}"),
        ("size", f"{format_bytes(source.database_size_bytes)} -> {format_bytes(record.stored_bytes)} stored"),
        ("content", f"{record.table_count} tables, {record.row_count:,} rows"),
        ("took", f"{record.duration_s:.1f} s dump, {record.fingerprint_s:.1f} s fingerprint"),
    )


def _snapshot_facts(record: SnapshotRecord) -> tuple[tuple[str, str], ...]:
    source, window = record.source, record.window
    server = f"Qdrant {source.server_version}, identity {record.identity}"
    lsn = f"LSN {window.start_lsn} to {window.stop_lsn}"
    if window.database_fault is not None:
        lsn = f"our clock and no LSN: {window.database_fault}"
    return (
        ("source", f"{source.collection} on {', '.join(source.nodes.values())}, {server}"),
        ("restores to", f"{format_moment(window.opened_at)} to {format_moment(window.closed_at)}, {lsn}"),
        ("size", f"{format_bytes(record.dumped_bytes)} -> {format_bytes(record.stored_bytes)} stored"),
        ("content", f"{window.points_after:,} points in {len(record.shards)} shards"),
        ("window", f"{window.moved_points} of {window.read_points} compared points moved ({window.scope})"),
        ("took", f"{record.duration_s:.1f} s"),
    )


def _rdb_facts(record: RdbRecord) -> tuple[tuple[str, str], ...]:
    source, window = record.source, record.window
    keys = ", ".join(f"{count:,} in db {number}" for number, count in sorted(window.keys_after.items()))
    moved = "nothing was written" if window.is_idle else f"{window.moved_keys} of {window.read_keys} read keys moved"
    return (
        ("source", f"Redis {source.server_version} at {source.address}, {source.role}, identity {record.identity}"),
        ("restores to", f"{format_moment(window.cut_at)}, offset {source.replication_offset}"),
        ("size", f"{format_bytes(record.dumped_bytes)} of RDB version {source.rdb_version}"),
        ("content", f"keys: {keys or 'none'}"),
        ("window", f"{moved} ({window.scope})"),
        ("took", f"{record.duration_s:.1f} s"),
    )


def _seconds(value: float | None) -> str:
    return f"{value:.1f} s" if value is not None else "-"


def _print(document: object) -> None:
    click.echo(json.dumps(document, ensure_ascii=False, indent=2))
