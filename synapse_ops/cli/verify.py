"""`synapse-ops verify`: proves backups by restoring and comparing them. Exit 0 only when every one is proven."""

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


@click.command()
@click.argument("backup_id", required=False)
@click.option("--newest-unproven", is_flag=True, help="The newest backup that is not proven. The default.")
@click.option("--all-unproven", is_flag=True, help="Every backup that is not proven, the newest first.")
@click.option("--database", help="Only backups of this database.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=1), help="Seconds for each proof. Default: the spec's."
)
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where throwaway servers live for a while. Default: proof/ of the state directory.",
)
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
    from synapse_ops.cli.progress_bar import progress_bar
    from synapse_ops.operations.restore_proof import prove_backup

    if sum((backup_id is not None, newest_unproven, all_unproven)) > 1:
        raise ConfigError("BACKUP_ID, --newest-unproven and --all-unproven exclude one another")
    repository = place.repository()
    reports: list[ProofReport] = []
    for target in _targets(repository, backup_id, database, all_unproven=all_unproven):
        with progress_bar() as progress:
            report = prove_backup(
                repository,
                place=target,
                database=database,
                identities=place.age_identities(),
                work_dir=work_dir or default_work_dir(place),
                timeout_s=timeout_s or default_timeout_s(place),
                progress=progress,
            )
        if report is not None:
            reports.append(report)
            if not as_json:
                click.echo(render(report))
    if as_json:
        click.echo(json.dumps([as_data(report) for report in reports], ensure_ascii=False, indent=2))
    elif not reports:
        click.echo("nothing to prove: every backup is proven")
    raise SystemExit(max((report.exit_code for report in reports), default=0))


def _targets(repository: Repository, backup_id: str | None, database: str | None, *, all_unproven: bool) -> list[Any]:
    """Return the places to prove; [None] lets the operation choose the newest that is not proven."""
    from synapse_ops.operations.backup_catalog import find_backup, read_catalog

    if backup_id is not None:
        return [find_backup(repository, backup_id)]
    if all_unproven:
        entries = read_catalog(repository, subject=database).backups
        return [entry.place for entry in entries if entry.proven_at is None]
    return [None]


def default_work_dir(place: Place) -> Path:
    return place.state_dir.absolute() / "proof"


def default_timeout_s(place: Place) -> float:
    """Return `proof.timeout` of the spec, or its default where the command works on a repository alone."""
    from synapse_ops.operations.proof import DEFAULT_TIMEOUT_S

    if place.repository_url is not None and place.spec_path is None:
        return DEFAULT_TIMEOUT_S
    return place.stack().spec.proof.timeout.total_seconds()


def as_data(report: ProofReport) -> dict[str, Any]:
    """Return a report as its stable JSON form: the proof's own document and where it was written."""
    return {
        "database": report.place.subject,
        "identity": str(report.place.identity),
        "url": report.url,
        **report.record.model_dump(mode="json"),
    }


def render(report: ProofReport) -> str:
    """Return a report as an operator reads it: the verdict first, then why, then what was measured."""
    record = report.record
    lines = [f"{record.verdict.upper()}  {record.backup_id}  database {report.place.subject}"]
    if record.reason:
        lines.append(f"  reason: {record.reason}")
    lines += [f"  {difference}" for difference in record.differences]
    if report.error is not None and report.error.hint:
        lines.append(f"  hint: {report.error.hint}")
    if record.restore_s is not None:
        predicted = record.predicted_restore_s
        words = f", predicted {predicted:.1f} s" if predicted is not None else ", the first of this repository"
        lines.append(f"  restored in {record.restore_s:.1f} s{words}; {record.amcheck_relations} relations checked")
    lines.append(f"  proof: {report.url}")
    return "\n".join(lines)
