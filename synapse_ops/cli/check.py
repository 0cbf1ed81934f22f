"""`synapse-ops check`: whether WAL archiving works, tried from end to end."""

from __future__ import annotations

import click

from synapse_ops.cli.options import Place, stack_options
from synapse_ops.cli.tables import console, table_of
from synapse_ops.cli.terminal import echo, print_json
from synapse_ops.errors import Unhealthy, counted


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/json/check.schema.json).")
@stack_options
def command(place: Place, *, as_json: bool) -> None:
    """Make a restore point on the primary, see it arrive in the repository, and look at what could stop it.

    Each fault is named with the command that corrects it. Exit code 0 only when nothing is wrong, 17 otherwise.

    \b
    Examples:
      synapse-ops check
      synapse-ops check --json --spec infrastructure.yaml
    """
    from synapse_ops.cli.progress_bar import progress_bar
    from synapse_ops.operations.database.wal_check import check_wal

    with progress_bar() as progress:
        rows = check_wal(place.stack(), progress=progress)
    wrong = [row for row in rows if row.fault]
    if as_json:
        print_json({"rows": [row.as_json() for row in rows], "faults": len(wrong)})
    else:
        console().print(table_of(("what", "found", "wrong"), [(row.what, row.found, row.fault or "-") for row in rows]))
        for row in wrong:
            echo(f"{row.what}: {row.fix}")
    if wrong:
        raise Unhealthy(
            f"WAL archiving: {counted(len(wrong), 'fault')}",
            detail="\n".join(f"{row.what}: {row.fault}" for row in wrong),
        )
