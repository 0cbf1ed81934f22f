"""`synapse-ops pin` exempts a backup from expiry; `synapse-ops unpin` lifts that."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from synapse_ops.cli.options import Place, repository_options
from synapse_ops.cli.terminal import echo, print_json
from synapse_ops.errors import counted


@click.command(epilog="Example:  synapse-ops pin 20261123T201726Z-3f9a1c audit-2026 --reason 'annual audit'")
@click.argument("backup_id", metavar="ID")
@click.argument("label")
@click.option("--reason", default="", help="Reason for the pin; it is shown with it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/json/pin.schema.json).")
@repository_options
def command(backup_id: str, label: str, reason: str, place: Place, *, as_json: bool) -> None:
    """Exempt a backup from expiry until it is unpinned. LABEL names the reason: audit-2026."""
    from synapse_ops.operations.backup.pins import pin_backup

    repository, found, _ = place.locate(backup_id)
    report = pin_backup(repository, found, label, datetime.now(UTC), reason=reason)
    if as_json:
        print_json(report.as_json())
    else:
        echo(f'backup {backup_id} {"is now" if report.changed else "was already"} pinned as "{label}"')


@click.command("unpin", epilog="Example:  synapse-ops unpin 20261123T201726Z-3f9a1c audit-2026")
@click.argument("backup_id", metavar="ID")
@click.argument("label", required=False)
@click.option("--all", "wants_all", is_flag=True, help="Lift every pin of this backup.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/json/pin.schema.json).")
@repository_options
def unpin(backup_id: str, label: str | None, place: Place, *, wants_all: bool, as_json: bool) -> None:
    """Lift the pin LABEL of a backup. It then expires by the same rules as every other."""
    from synapse_ops.operations.backup.pins import unpin_backup

    if (label is None) != wants_all:
        raise click.UsageError("give either LABEL or --all")
    repository, found, _ = place.locate(backup_id)
    report = unpin_backup(repository, found, label)
    if as_json:
        print_json(report.as_json())
    else:
        echo(f"backup {backup_id} has now {counted(len(report.labels), 'pin')}: {', '.join(report.labels) or 'none'}")
