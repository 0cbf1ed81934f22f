"""`synapse-ops unpin`: lifts a pin, so that retention counts again."""

from __future__ import annotations

import json

import click

from synapse_ops.cli.options import Place, any_repository_options


@click.command(epilog="Example:  synapse-ops unpin 20261123T201726Z-3f9a1c audit-2026")
@click.argument("backup_id")
@click.argument("label", required=False)
@click.option("--all", "wants_all", is_flag=True, help="Lift every pin of this backup.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/json/pin.schema.json).")
@any_repository_options
def command(backup_id: str, label: str | None, place: Place, *, wants_all: bool, as_json: bool) -> None:
    """Lift the pin LABEL of a backup. It then expires by the same rules as every other."""
    from synapse_ops.operations.backup_catalog import find_backup
    from synapse_ops.operations.pins import unpin_backup

    if (label is None) != wants_all:
        raise click.UsageError("give either LABEL or --all")
    repository = place.repository()
    report = unpin_backup(repository, find_backup(repository, backup_id), label)
    if as_json:
        click.echo(json.dumps(report.as_json(), ensure_ascii=False, indent=2))
    else:
        click.echo(f"backup {backup_id} has now {len(report.labels)} pins: {', '.join(report.labels) or 'none'}")
