"""`synapse-ops vectors snapshot`: takes the snapshots of collections into the repository, and says where they lie."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.options import Place, stack_options
from synapse_ops.errors import SynapseOpsError

if TYPE_CHECKING:
    from synapse_ops.operations.vector_snapshot import SnapshotReport


@click.command("snapshot", epilog="Example:  synapse-ops vectors snapshot --collection documents --json")
@click.option("--collection", "chosen", multiple=True, help="Only this one; may be repeated. Default: all.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document (docs/json/vectors-snapshot.schema.json)."
)
@stack_options
def command(chosen: tuple[str, ...], place: Place, *, as_json: bool) -> None:
    """Take the snapshots of collections into the repository, now.

    Collections taken by one call share a set id. When one fails, the others are still taken, and the exit code is that
    of the first failure.
    """
    from synapse_ops.cli.progress_bar import progress_bar
    from synapse_ops.domain.repository_layout import new_backup_id
    from synapse_ops.operations.vector_snapshot import snapshot_collection

    stack = place.stack()
    names = chosen or _all_collections(place)
    set_id = new_backup_id(datetime.now(UTC), os.urandom(3))
    taken: list[SnapshotReport] = []
    failed: dict[str, SynapseOpsError] = {}
    with progress_bar() as progress:
        for name in names:
            try:
                taken.append(snapshot_collection(stack, name, set_id=set_id, progress=progress))
            except SynapseOpsError as error:
                failed[name] = error
    if as_json:
        click.echo(json.dumps({"set_id": set_id, "backups": [snapshot_data(one) for one in taken]}, indent=2))
    else:
        for one in taken:
            click.echo(render_snapshot(one))
        if not names:
            click.echo("the server has no collection")
    if failed:
        (_, first), *others = failed.items()
        also = [f"also: {name}: {error.message}" for name, error in others]
        first.detail = "\n".join([line for line in (first.detail, *also) if line])
        raise first


def _all_collections(place: Place) -> tuple[str, ...]:
    from synapse_ops.systems.qdrant import qdrant_nodes

    first, *_ = qdrant_nodes(place.stack().spec.qdrant)
    with first:
        return first.collections()


def snapshot_data(report: SnapshotReport) -> dict[str, Any]:
    """Return a backup just taken as its stable JSON form."""
    record = report.record
    return {
        "backup_id": record.backup_id,
        "collection": record.source.collection,
        "url": report.url,
        "stored_bytes": record.stored_bytes,
        "snapshot_bytes": record.dumped_bytes,
        "shards": len(record.shards),
        "points": record.window.points_after,
        "window_points": record.window.moved_points,
        "compared_points": record.window.read_points,
        "scope": record.window.scope,
        "window_opened_at": record.window.opened_at.isoformat(),
        "window_closed_at": record.window.closed_at.isoformat(),
        "start_lsn": record.window.start_lsn,
        "stop_lsn": record.window.stop_lsn,
        "database_fault": record.window.database_fault,
        "duration_s": record.duration_s,
        "encrypted": bool(record.encryption_recipients),
        "left_overs": list(report.left_overs),
        "warnings": list(report.warnings),
    }


def render_snapshot(report: SnapshotReport) -> str:
    """Return a backup just taken as an operator reads it."""
    from synapse_ops.cli.tables import format_bytes

    record = report.record
    window = record.window
    sizes = f"{format_bytes(record.dumped_bytes)} -> {format_bytes(record.stored_bytes)} stored"
    moved = (
        f"{window.moved_points} of {window.read_points} compared points moved meanwhile" if window.changed else "idle"
    )
    return "\n".join(
        [
            f"{record.backup_id}  {record.source.collection}  {report.url}",
            f"  {window.points_after} points in {len(record.shards)} shards, {sizes} in {record.duration_s:.1f} s",
            f"  cut in {(window.closed_at - window.opened_at).total_seconds():.1f} s; {moved}",
            *(f"  note: {warning}" for warning in report.warnings),
        ]
    )
