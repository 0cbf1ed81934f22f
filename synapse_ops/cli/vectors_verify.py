"""`synapse-ops vectors verify`: proves backups of collections, and says what was compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.options import Place, repository_options
from synapse_ops.errors import ConfigError

if TYPE_CHECKING:
    from synapse_ops.operations.proof import ProofReport
    from synapse_ops.operations.repository import Repository


@click.command("verify")
@click.argument("backup_id", required=False)
@click.option("--all-unproven", is_flag=True, help="Every backup that is not proven. Default: the newest of those.")
@click.option("--collection", help="Only backups of this collection.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=1), help="Seconds for each proof. Default: the spec's."
)
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where copies lie for a while. Default: proof/ of the state directory.",
)
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
    from synapse_ops.cli.progress_bar import progress_bar
    from synapse_ops.cli.verify import default_timeout_s, default_work_dir
    from synapse_ops.operations.vector_restore_proof import prove_snapshot

    if backup_id is not None and all_unproven:
        raise ConfigError("BACKUP_ID and --all-unproven exclude one another")
    repository = place.vector_repository()
    reports: list[ProofReport] = []
    for target in _targets(repository, backup_id, collection, all_unproven=all_unproven):
        with progress_bar() as progress:
            report = prove_snapshot(
                repository,
                place=target,
                collection=collection,
                identities=place.age_identities(),
                work_dir=work_dir or default_work_dir(place),
                timeout_s=timeout_s or default_timeout_s(place),
                progress=progress,
            )
        if report is not None:
            reports.append(report)
            if not as_json:
                click.echo(render_proof(report))
    if as_json:
        click.echo(json.dumps([proof_data(report) for report in reports], ensure_ascii=False, indent=2))
    elif not reports:
        click.echo("nothing to prove: every backup is proven")
    raise SystemExit(max((report.exit_code for report in reports), default=0))


def _targets(repository: Repository, backup_id: str | None, collection: str | None, *, all_unproven: bool) -> list[Any]:
    """Return the places to prove; [None] lets the operation choose the newest that is not proven."""
    from synapse_ops.operations.backup_catalog import find_backup, read_catalog

    if backup_id is not None:
        return [find_backup(repository, backup_id)]
    if all_unproven:
        entries = read_catalog(repository, subject=collection).backups
        return [entry.place for entry in entries if entry.proven_at is None]
    return [None]


def proof_data(report: ProofReport) -> dict[str, Any]:
    """Return a proof as its stable JSON form: its own document, and where it was written."""
    return {
        "collection": report.place.subject,
        "identity": str(report.place.identity),
        "url": report.url,
        **report.record.model_dump(mode="json"),
    }


def render_proof(report: ProofReport) -> str:
    """Return a proof as an operator reads it: the verdict first, then why, then what was measured."""
    record, found = report.record, report.record.snapshot
    lines = [f"{record.verdict.upper()}  {record.backup_id}  collection {report.place.subject}"]
    if record.reason:
        lines.append(f"  reason: {record.reason}")
    lines += [f"  {difference}" for difference in record.differences]
    if report.error is not None and report.error.hint:
        lines.append(f"  hint: {report.error.hint}")
    if found is not None:
        window = f"; {found.window_points} moved while it was taken" if found.window_points else ""
        recall = f", recall@10 {found.recall_at_10:.2f}" if found.recall_at_10 is not None else ""
        points = sum(found.shard_points.values())
        lines.append(f"  {points} points read, {found.still_points} held to the live ones{window}{recall}")
    if record.restore_s is not None:
        lines.append(f"  opened in {record.restore_s:.1f} s")
    lines.append(f"  proof: {report.url}")
    return "\n".join(lines)
