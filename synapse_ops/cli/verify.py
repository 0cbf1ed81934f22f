"""`synapse-ops verify`: proves backups by restoring and comparing them. Exit 0 only when every one is proven."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.failures import Failures
from synapse_ops.cli.options import Place, Source, repository_options, subject_of, timeout_option, work_dir_option
from synapse_ops.cli.tables import fact_lines
from synapse_ops.cli.terminal import echo
from synapse_ops.errors import ConfigError

if TYPE_CHECKING:
    from synapse_ops.domain.backup.layout import BackupPlace
    from synapse_ops.domain.backup.record import Fact
    from synapse_ops.operations.backup.proving import ProofReport
    from synapse_ops.operations.repository import Repository


@click.command()
@click.argument("what", metavar="[SUBJECT|ID]", required=False)
@click.option("--all-unproven", is_flag=True, help="Every backup that is not proven. Default: the newest of a subject.")
@timeout_option("each proof. Default: the spec's.")
@work_dir_option("Directory for throwaway servers and copies.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/json/verify.schema.json).")
@repository_options
def command(
    place: Place,
    what: str | None,
    all_unproven: bool,
    timeout_s: float | None,
    work_dir: Path | None,
    as_json: bool,
) -> None:
    """Prove backups: restore each into a throwaway, compare it, and record the proof.

    Of a SUBJECT (`database/NAME`, `vectors/COLLECTION`, `redis`, or `database`, `vectors` for all of them), or of all,
    the newest backup that is not proven. Of an ID, that backup, proven or not.

    Exit code 0 when every one is proven, 13 when one differs or is damaged, 14 when one could not be proven. A failure
    of one does not stop the others.

    \b
    Examples:
      synapse-ops verify
      synapse-ops verify database/synapse
      synapse-ops verify 20261123T201726Z-3f9a1c
      synapse-ops verify vectors --all-unproven --repository s3://backups/vectors/
    """
    from synapse_ops.cli.progress_bar import progress_bar
    from synapse_ops.operations.backup_kinds import kind_named

    identities, limit_s = place.age_identities(), timeout_s or place.proof_timeout_s()
    failures = Failures()
    reports: list[ProofReport] = []
    for repository, target in _targets(place, what, failures, all_unproven=all_unproven):
        report = None
        with failures.of(subject_of(target), target.backup_id), progress_bar() as progress:
            report = kind_named(target.kind).prove(
                repository,
                place=target,
                identities=identities,
                work_dir=work_dir or place.work_dir,
                timeout_s=limit_s,
                progress=progress,
            )
        if report is not None:
            reports.append(report)
            if not as_json:
                echo(_render(report))
    codes = [report.exit_code for report in reports]
    if as_json:
        failures.end({"proofs": [_as_json(report) for report in reports]}, codes=codes)
    if not reports and not failures.rows:
        echo("nothing to prove: every backup is proven")
    failures.end(codes=codes)


def _targets(
    place: Place, what: str | None, failures: Failures, *, all_unproven: bool
) -> list[tuple[Repository, BackupPlace]]:
    """Return the backups to prove. Raises ConfigError for an argument that names nothing."""
    if what is not None and not _names_subject(what):
        if all_unproven:
            raise ConfigError("ID and --all-unproven are mutually exclusive")
        repository, found, _ = place.locate(what)
        return [(repository, found)]
    targets: list[tuple[Repository, BackupPlace]] = []
    for source in place.sources(what):
        with failures.of(source.label):
            targets += [(source.repository, found) for found in _unproven(source, all_unproven=all_unproven)]
    return targets


def _names_subject(text: str) -> bool:
    from synapse_ops.operations.backup_kinds import KINDS

    return text.partition("/")[0] in {kind.word for kind in KINDS}


def _unproven(source: Source, *, all_unproven: bool) -> Iterator[BackupPlace]:
    from synapse_ops.operations.backup.proving import newest_unproven

    entries = sorted(source.catalog().backups, key=lambda row: (row.place.kind, row.place.subject))  # stable
    for _, group in groupby(entries, key=lambda row: (row.place.kind, row.place.subject)):
        rows = list(group)
        if all_unproven:
            yield from (row.place for row in rows if row.proven_at is None)
        else:
            newest = newest_unproven(rows)
            yield from () if newest is None else (newest,)


def _as_json(report: ProofReport) -> dict[str, Any]:
    """Return a report as its stable JSON form: the proof's own document, of what, and where it was to be written."""
    return {
        "kind": report.place.kind,
        "subject": report.place.subject,
        "identity": str(report.place.identity),
        "url": report.url,
        "not_recorded": None if report.not_recorded is None else report.not_recorded.message,
        **report.record.body(),
    }


def _render(report: ProofReport) -> str:
    """Return a report as an operator reads it: the verdict first, then why, then what was measured."""
    record = report.record
    lines = [f"{record.verdict.upper()}  {record.backup_id}  {subject_of(report.place)}"]
    if record.reason:
        lines.append(f"  reason: {record.reason}")
    lines += [f"  {difference}" for difference in record.differences]
    lines += [f"  not in this backup: {name}" for name in record.not_in_backup]
    if report.error is not None and report.error.hint:
        lines.append(f"  hint: {report.error.hint}")
    if report.not_recorded is not None:
        lines.append(f"  not recorded: {report.not_recorded.message}; other hosts still count this backup as before")
    facts: dict[str, Fact] = dict(record.compared())
    for name in ("restore_s", "predicted_restore_s"):
        value = getattr(record, name)
        if value is not None:
            facts[name] = value
    if report.not_recorded is None:
        facts["proof"] = report.url
    return "\n".join([*lines, *fact_lines(facts)])
