"""`synapse-ops backup now`: takes a backup of one or all databases of the spec, and says where it lies."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.options import Place, stack_options
from synapse_ops.errors import SynapseOpsError

if TYPE_CHECKING:
    from synapse_ops.operations.database_dump import DumpReport


@click.command("now", epilog="Example:  synapse-ops backup now --database synapse --json")
@click.option(
    "--database", "databases", multiple=True, help="Only this database; may be repeated. Default: all of the spec's."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of lines.")
@stack_options
def command(databases: tuple[str, ...], place: Place, *, as_json: bool) -> None:
    """Dump databases into the repository, with fingerprint and structure, now.

    Databases taken by one call share a set id. When one fails, the others are still taken, and the exit code is that
    of the first failure.
    """
    from synapse_ops.cli.progress_bar import progress_bar
    from synapse_ops.domain.repository_layout import new_backup_id
    from synapse_ops.operations.database_dump import dump_database

    stack = place.stack()
    chosen = databases or stack.spec.database.databases
    set_id = new_backup_id(datetime.now(UTC), os.urandom(3))
    taken: list[DumpReport] = []
    failed: dict[str, SynapseOpsError] = {}
    with progress_bar() as progress:
        for database in chosen:
            try:
                taken.append(dump_database(stack, database, set_id=set_id, progress=progress))
            except SynapseOpsError as error:
                failed[database] = error
    if as_json:
        click.echo(json.dumps({"set_id": set_id, "backups": [_as_json(report) for report in taken]}, indent=2))
    else:
        for report in taken:
            _print_lines(report)
    if failed:
        raise _first_failure(failed)


def _first_failure(failed: dict[str, SynapseOpsError]) -> SynapseOpsError:
    """Return the first failure, with the others named in its detail."""
    (_, first), *others = failed.items()
    also = [f"also: {database}: {error.message}" for database, error in others]
    first.detail = "\n".join([line for line in (first.detail, *also) if line])
    return first


def _as_json(report: DumpReport) -> dict[str, Any]:
    record = report.record
    return {
        "backup_id": record.backup_id,
        "database": record.source.database,
        "url": report.url,
        "stored_bytes": record.stored_bytes,
        "dumped_bytes": record.dumped_bytes,
        "database_bytes": record.source.database_size_bytes,
        "tables": record.table_count,
        "rows": record.row_count,
        "duration_s": record.duration_s,
        "start_lsn": record.start_lsn,
        "encrypted": bool(record.encryption_recipients),
        "warnings": list(report.warnings),
    }


def _print_lines(report: DumpReport) -> None:
    record = report.record
    click.echo(f"{record.backup_id}  {record.source.database}  {report.url}")
    click.echo(
        f"  {_mib(record.source.database_size_bytes)} in {record.table_count} tables, {record.row_count} rows"
        f" -> {_mib(record.stored_bytes)} stored in {record.duration_s:.1f} s"
    )
    for warning in report.warnings:
        click.echo(f"  note: {warning}")


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"
