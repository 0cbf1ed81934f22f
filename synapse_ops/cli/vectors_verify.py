"""`synapse-ops vectors verify`: proves backups of collections, and says what was compared."""

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


@click.command("verify")
@click.argument("backup_id", required=False)
@click.option("--all-unproven", is_flag=True, help="Every backup that is not proven. Default: the newest of those.")
@click.option("--collection", help="Only backups of this collection.")
@timeout_option("each proof. Default: the spec's.")
@work_dir_option("Where copies lie for a while.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the proofs as JSON (docs/json/vectors-verify.schema.json)."
)
@repository_options
def command(
    place: Place,
    backup_id: str | None,
    all_unproven: bool,
    collection: str | None,
    timeout_s: float | None,
    work_dir: Path | None,
    as_json: bool,
) -> None:
    """Prove backups of collections: open each without a server, compare every point, and record the proof.

    Exit code 0 when every one is proven, 13 when one differs or is damaged, 14 when one could not be proven.

    \b
    Examples:
      synapse-ops vectors verify
      synapse-ops vectors verify 20261123T201726Z-3f9a1c --repository s3://backups/vectors/
    """
    from synapse_ops.operations.vector_restore_proof import prove_snapshot

    if backup_id is not None and all_unproven:
        raise ConfigError("BACKUP_ID and --all-unproven exclude one another")
    prove_and_show(
        place,
        place.vector_repository(),
        partial(prove_snapshot, collection=collection),
        noun="collection",
        facts=_facts,
        subject=collection,
        backup_id=backup_id,
        all_unproven=all_unproven,
        timeout_s=timeout_s,
        work_dir=work_dir,
        as_json=as_json,
    )


def _facts(record: ProofRecord) -> Iterator[str]:
    found = record.snapshot
    if found is not None:
        window = f"; {found.window_points} moved while it was taken" if found.window_points else ""
        recall = f", recall@10 {found.recall_at_10:.2f}" if found.recall_at_10 is not None else ""
        points = sum(found.shard_points.values())
        yield f"{points} points read, {found.still_points} held to the live ones{window}{recall}"
    if record.restore_s is not None:
        yield f"opened in {record.restore_s:.1f} s"
