"""`synapse-ops info`: what a repository protects, per database, and what its store cannot do."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.options import Place, repository_options
from synapse_ops.cli.tables import format_age, format_bytes, format_moment, show_table

if TYPE_CHECKING:
    from synapse_ops.operations.overview import DatabaseOverview, RepositoryOverview


@click.command(epilog="Example:  synapse-ops info --repository s3://backups/database/ --json")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/json/info.schema.json).")
@repository_options
def command(place: Place, *, as_json: bool) -> None:
    """Show what a repository protects: newest and newest proven backup, RPO now, predicted restore time."""
    from synapse_ops.operations.overview import read_overview

    now = datetime.now(UTC)
    overview = read_overview(place.repository(), now)
    if as_json:
        click.echo(json.dumps(_as_json(overview, now), ensure_ascii=False, indent=2))
    else:
        _show(overview, now)


def _as_json(overview: RepositoryOverview, now: datetime) -> dict[str, Any]:
    missing = overview.missing_features
    return {
        "repository": overview.url,
        "read_at": overview.read_at.isoformat(),
        "databases": [_database_json(row, now) for row in overview.databases],
        "left_over_count": overview.left_over_count,
        "left_over_bytes": overview.left_over_bytes,
        "foreign_count": overview.foreign_count,
        "missing_store_features": list(missing) if missing is not None else None,
    }


def _database_json(row: DatabaseOverview, now: datetime) -> dict[str, Any]:
    proven = row.newest_proven
    return {
        "database": row.database,
        "identity": str(row.identity),
        "backup_count": row.backup_count,
        "proven_count": row.proven_count,
        "stored_bytes": row.stored_bytes,
        "newest_backup_id": row.newest.place.backup_id,
        "newest_age_s": (now - (row.newest.database_time or row.newest.started_at)).total_seconds(),
        "newest_doubt": row.newest.doubt,
        "newest_proven_backup_id": proven.place.backup_id if proven else None,
        "newest_proven_at": proven.proven_at.isoformat() if proven and proven.proven_at else None,
        "rpo_now_s": row.rpo_now.total_seconds() if row.rpo_now is not None else None,
        "last_restore_s": proven.restore_s if proven else None,
        "predicted_restore_s": row.predicted_restore_s,
    }


def _show(overview: RepositoryOverview, now: datetime) -> None:
    count = len(overview.databases)
    show_table(
        (
            "database",
            "identity",
            ">backups",
            ">proven",
            ">stored",
            "newest",
            "newest proven",
            ">RPO now",
            ">restore takes",
        ),
        (
            (
                row.database,
                str(row.identity),
                str(row.backup_count),
                str(row.proven_count),
                format_bytes(row.stored_bytes),
                f"{row.newest.place.backup_id}, {format_age(now - row.newest.started_at)} old",
                _proven(row),
                format_age(row.rpo_now) if row.rpo_now is not None else "unbounded",
                f"about {row.predicted_restore_s:.0f} s" if row.predicted_restore_s is not None else "not known yet",
            )
            for row in overview.databases
        ),
        title=f"{overview.url} protects {count} database{'' if count == 1 else 's'}",
    )
    if overview.left_over_count:
        size = format_bytes(overview.left_over_bytes)
        click.echo(f"left-overs: {overview.left_over_count} prefixes, {size}; `synapse-ops expire --plan` names them")
    if overview.foreign_count:
        click.echo(f"foreign: {overview.foreign_count} objects that this tool did not write, and leaves alone")
    if overview.missing_features is None:
        click.echo("store features: could not be asked, because these keys may not write")
    for words in overview.missing_features or ():
        click.echo(f"the store lacks {words}")


def _proven(row: DatabaseOverview) -> str:
    if row.newest_proven is None:
        return f"NONE: {row.newest.doubt}"
    return f"{row.newest_proven.place.backup_id}, proven {format_moment(row.newest_proven.proven_at)}"
