"""`synapse-ops pin`: exempts a backup from expiry."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import click

from synapse_ops.cli.options import Place, any_repository_options


@click.command(epilog="Example:  synapse-ops pin 20261123T201726Z-3f9a1c audit-2026 --reason 'annual audit'")
@click.argument("backup_id")
@click.argument("label")
@click.option("--reason", default="", help="Why, for whoever finds the pin in a year.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/json/pin.schema.json).")
@any_repository_options
def command(backup_id: str, label: str, reason: str, place: Place, *, as_json: bool) -> None:
    """Exempt a backup from expiry until it is unpinned. LABEL says why: audit-2026."""
    from synapse_ops.operations.backup_catalog import find_backup
    from synapse_ops.operations.pins import pin_backup

    repository = place.repository()
    report = pin_backup(repository, find_backup(repository, backup_id), label, datetime.now(UTC), reason=reason)
    if as_json:
        click.echo(json.dumps(report.as_json(), ensure_ascii=False, indent=2))
    else:
        click.echo(f'backup {backup_id} {"is now" if report.changed else "was already"} pinned as "{label}"')
