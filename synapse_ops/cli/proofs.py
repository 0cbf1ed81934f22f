"""What `verify` and `vectors verify` share: which backups are proven, one after another, and how a proof is shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.options import Place

if TYPE_CHECKING:
    from synapse_ops.domain.backup_record import ProofRecord
    from synapse_ops.operations.proof import ProofReport
    from synapse_ops.operations.repository import Repository


def prove_and_show(
    place: Place,
    repository: Repository,
    prove: Callable[..., ProofReport | None],
    *,
    noun: str,
    facts: Callable[[ProofRecord], Iterable[str]],
    subject: str | None,
    backup_id: str | None,
    all_unproven: bool,
    timeout_s: float | None,
    work_dir: Path | None,
    as_json: bool,
) -> None:
    """Prove the chosen backups, print each proof, and exit with the worst one's code.

    prove: one proof; takes the repository, the backup's place (None: the newest that is not proven) and its limits.
    noun: what `subject` is a name of. facts: what a person is told of a proof beyond verdict and reasons.
    """
    from synapse_ops.cli.progress_bar import progress_bar

    reports: list[ProofReport] = []
    for target in _targets(repository, backup_id, subject, all_unproven=all_unproven):
        with progress_bar() as progress:
            report = prove(
                repository,
                place=target,
                identities=place.age_identities(),
                work_dir=work_dir or place.work_dir,
                timeout_s=timeout_s or place.proof_timeout_s(),
                progress=progress,
            )
        if report is not None:
            reports.append(report)
            if not as_json:
                click.echo(_render(report, noun, facts))
    if as_json:
        click.echo(json.dumps([_as_data(report, noun) for report in reports], ensure_ascii=False, indent=2))
    elif not reports:
        click.echo("nothing to prove: every backup is proven")
    raise SystemExit(max((report.exit_code for report in reports), default=0))


def _targets(repository: Repository, backup_id: str | None, subject: str | None, *, all_unproven: bool) -> list[Any]:
    """Return the places to prove; [None] lets the operation choose the newest that is not proven."""
    from synapse_ops.operations.backup_catalog import find_backup, read_catalog

    if backup_id is not None:
        return [find_backup(repository, backup_id)]
    if all_unproven:
        entries = read_catalog(repository, subject=subject).backups
        return [entry.place for entry in entries if entry.proven_at is None]
    return [None]


def _as_data(report: ProofReport, noun: str) -> dict[str, Any]:
    """Return a report as its stable JSON form: the proof's own document and where it was written."""
    return {
        noun: report.place.subject,
        "identity": str(report.place.identity),
        "url": report.url,
        **report.record.model_dump(mode="json"),
    }


def _render(report: ProofReport, noun: str, facts: Callable[[ProofRecord], Iterable[str]]) -> str:
    """Return a report as an operator reads it: the verdict first, then why, then what was measured."""
    record = report.record
    lines = [f"{record.verdict.upper()}  {record.backup_id}  {noun} {report.place.subject}"]
    if record.reason:
        lines.append(f"  reason: {record.reason}")
    lines += [f"  {difference}" for difference in record.differences]
    if report.error is not None and report.error.hint:
        lines.append(f"  hint: {report.error.hint}")
    lines += [f"  {fact}" for fact in facts(record)]
    return "\n".join([*lines, f"  proof: {report.url}"])
