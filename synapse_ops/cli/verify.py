"""`synapse-ops verify`: proves backups by restoring and comparing them. Exit 0 only when every one is proven."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from synapse_ops.cli.options import Place, repository_options, timeout_option, work_dir_option
from synapse_ops.cli.proofs import prove_and_show
from synapse_ops.errors import ConfigError

if TYPE_CHECKING:
    from synapse_ops.domain.backup_record import ProofRecord


@click.command()
@click.argument("backup_id", required=False)
@click.option("--newest-unproven", is_flag=True, help="The newest backup that is not proven. The default.")
@click.option("--all-unproven", is_flag=True, help="Every backup that is not proven, the newest first.")
@click.option("--database", help="Only backups of this database.")
@timeout_option("each proof. Default: the spec's.")
@work_dir_option("Where throwaway servers live for a while.")
@click.option("--json", "as_json", is_flag=True, help="Print the proofs as JSON.")
@repository_options
def command(
    place: Place,
    backup_id: str | None,
    newest_unproven: bool,
    all_unproven: bool,
    database: str | None,
    timeout_s: float | None,
    work_dir: Path | None,
    as_json: bool,
) -> None:
    """Prove backups: restore each into a throwaway server, compare it exactly, and record the proof.

    Exit code 0 when every one is proven, 13 when one differs or is damaged, 14 when one could not be proven.

    \b
    Examples:
      synapse-ops verify
      synapse-ops verify 20261123T201726Z-3f9a1c
      synapse-ops verify --all-unproven --repository s3://backups/database/
    """
    from synapse_ops.operations.restore_proof import prove_backup

    if sum((backup_id is not None, newest_unproven, all_unproven)) > 1:
        raise ConfigError("BACKUP_ID, --newest-unproven and --all-unproven exclude one another")
    prove_and_show(
        place,
        place.repository(),
        partial(prove_backup, database=database),
        noun="database",
        facts=_facts,
        subject=database,
        backup_id=backup_id,
        all_unproven=all_unproven,
        timeout_s=timeout_s,
        work_dir=work_dir,
        as_json=as_json,
    )


def _facts(record: ProofRecord) -> Iterator[str]:
    if record.restore_s is not None:
        predicted = record.predicted_restore_s
        words = f", predicted {predicted:.1f} s" if predicted is not None else ", the first of this repository"
        yield f"restored in {record.restore_s:.1f} s{words}; {record.amcheck_relations} relations checked"
