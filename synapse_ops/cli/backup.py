"""`synapse-ops backup`: take, list and show backups of every kind."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.failures import Failures
from synapse_ops.cli.options import Place, repository_options, stack_options, subject_of
from synapse_ops.cli.tables import fact_rows, format_bytes, format_fact, format_moment, show_table
from synapse_ops.cli.terminal import echo, print_json
from synapse_ops.domain.durations import format_age
from synapse_ops.errors import ConfigError, counted

if TYPE_CHECKING:
    from synapse_ops.domain.backup.catalog import CatalogEntry
    from synapse_ops.domain.backup.proof_record import ProofRecord
    from synapse_ops.domain.backup.record import BackupRecord
    from synapse_ops.operations.backup.catalog import Catalog
    from synapse_ops.operations.backup.taking import BackupReport
    from synapse_ops.operations.backup_kinds import BackupKind
    from synapse_ops.operations.stack import Stack


@click.group()
def command() -> None:
    """Take, list and show backups.

    A SUBJECT is `database/NAME`, `vectors/COLLECTION` or `redis`; `database` or `vectors` alone means all of them.

    \b
    Examples:
      synapse-ops backup now
      synapse-ops backup now database/synapse redis
      synapse-ops backup list vectors --repository s3://backups/vectors/
      synapse-ops backup show 20261123T201726Z-3f9a1c --json
    """


@command.command()
@click.argument("subjects", metavar="[SUBJECT]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/json/backup-now.schema.json).")
@stack_options
def now(subjects: tuple[str, ...], place: Place, *, as_json: bool) -> None:
    """Take backups now. Without a SUBJECT: of everything that the spec has backed up.

    Backups taken by one call share a set id. When one fails, the others are still taken, and the exit code is that of
    the worst failure.

    \b
    Examples:
      synapse-ops backup now
      synapse-ops backup now database/synapse vectors/documents
      synapse-ops backup now redis --json
    """
    from synapse_ops.cli.progress_bar import progress_bar
    from synapse_ops.domain.backup.layout import new_backup_id

    stack = place.stack()
    failures = Failures()
    chosen = _chosen(stack, subjects, failures)
    set_id = new_backup_id(datetime.now(UTC), os.urandom(3))
    taken: list[BackupReport] = []
    for kind, name in chosen:
        with failures.of(f"{kind.word}/{name}"):
            with progress_bar() as progress:
                taken.append(kind.verbs().take(stack, name, set_id=set_id, progress=progress))
            if not as_json:
                echo(_render_taken(taken[-1]))  # at once: an interrupt must not hide what exists
    if as_json:
        failures.end({"set_id": set_id, "backups": [report.as_json() for report in taken]})
    if not taken and not failures.rows:
        echo("nothing to back up: the servers hold no subject of this kind")
    failures.end()


def _chosen(stack: Stack, subjects: tuple[str, ...], failures: Failures) -> list[tuple[BackupKind, str]]:
    """Return the kind and name of each subject to take, in the order given and each once.

    A server that does not say its subjects is noted in `failures`. Raises ConfigError for what the spec and the servers
    do not have, before anything is taken.
    """
    from synapse_ops.operations.backup_kinds import Subject, kinds_of, parse_subject

    named = [parse_subject(text) for text in subjects] or [Subject(kind, None) for kind in kinds_of(stack.spec)]
    for subject in named:
        subject.kind.repository(stack)  # says how to turn on a kind that is off
    known: dict[str, tuple[str, ...]] = {}
    for kind in {subject.kind.name: subject.kind for subject in named}.values():
        with failures.of(kind.word):
            known[kind.name] = kind.subjects(stack)
            if not known[kind.name]:
                echo(f"{kind.word}: nothing to back up: the server has no {kind.noun}", err=True)
    chosen: dict[tuple[str, str], tuple[BackupKind, str]] = {}
    faults = []
    for subject in named:
        names = known.get(subject.kind.name, ())
        if subject.name is not None and subject.name not in names and subject.kind.name in known:
            word = subject.kind.word
            faults.append(f"{subject}: allowed: {', '.join(f'{word}/{name}' for name in names) or 'none exists'}")
        for name in names if subject.name is None else {subject.name}.intersection(names):
            chosen[subject.kind.name, name] = (subject.kind, name)
    if faults:
        raise ConfigError(f"{len(faults)} of the subjects do not exist", detail="\n".join(faults))
    return list(chosen.values())


def _render_taken(report: BackupReport) -> str:
    from synapse_ops.operations.backup_kinds import kind_named

    record, kind = report.record, kind_named(report.place.kind)
    size = f"{format_bytes(record.source_size_bytes)} -> {format_bytes(record.stored_bytes)} stored"
    return "\n".join(
        [
            f"{record.backup_id}  {subject_of(report.place)}  {report.url}",
            f"  {record.item_count:,} {kind.items}, {size} in {record.duration_s:.1f} s",
            *(f"  note: {warning}" for warning in report.warnings),
        ]
    )


@command.command("list")
@click.argument("subject", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/json/backup-list.schema.json).")
@repository_options
def list_backups(subject: str | None, place: Place, *, as_json: bool) -> None:
    """List backups, newest first, whether each is proven, and left-overs. Without a SUBJECT: of all repositories.

    \b
    Examples:
      synapse-ops backup list
      synapse-ops backup list database/synapse
      synapse-ops backup list --repository s3://backups/database/ --json
    """
    failures = Failures()
    found: list[tuple[str, Catalog]] = []
    for source in place.sources(subject):
        with failures.of(source.label):
            found.append((source.repository.url, source.catalog()))
    if as_json:
        failures.end({"repositories": [_catalog_json(url, catalog) for url, catalog in found]})
    for url, catalog in found:
        _show_catalog(url, catalog)
    failures.end()


def _catalog_json(url: str, catalog: Catalog) -> dict[str, Any]:
    return {
        "repository": url,
        "read_at": catalog.read_at.isoformat(),
        "backups": [entry_as_json(entry) for entry in catalog.backups],
        "left_overs": [
            {
                "kind": row.place.kind,
                "subject": row.place.subject,
                "backup_id": row.place.backup_id,
                "prefix": row.place.prefix,
                "size_bytes": row.size_bytes,
                "object_count": row.object_count,
                "touched_at": row.touched_at.isoformat(),
            }
            for row in catalog.left_overs
        ],
        "foreign_count": catalog.foreign_count,
        "object_count": catalog.object_count,
    }


def _show_catalog(url: str, catalog: Catalog) -> None:
    now = datetime.now(UTC)
    show_table(
        ("backup", "of", "identity", ">age", ">stored", ">items", "proven", "pins"),
        (
            (
                entry.place.backup_id,
                subject_of(entry.place),
                str(entry.place.identity),
                format_age(now - (entry.database_time or entry.started_at)),
                format_bytes(entry.size_bytes),
                "?" if entry.unreadable_reason else f"{entry.item_count:,}",
                format_moment(entry.proven_at) if entry.proven_at else f"NO: {entry.doubt}",
                ", ".join(entry.pins),
            )
            for entry in catalog.backups
        ),
        title=f"{counted(len(catalog.backups), 'backup')} in {url}",
    )
    for row in catalog.left_overs:
        echo(
            f"left-over: {row.place.prefix} has no backup.json; {counted(row.object_count, 'object')}, "
            f"{format_bytes(row.size_bytes)}, touched {format_age(catalog.read_at - row.touched_at)} ago"
        )
    if catalog.foreign_count:
        foreign = counted(catalog.foreign_count, "object")
        echo(f"foreign: {foreign} that this tool did not write, and leaves alone")


@command.command()
@click.argument("backup_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/json/backup-show.schema.json).")
@repository_options
def show(backup_id: str, place: Place, *, as_json: bool) -> None:
    """Show one backup of any kind: what it was taken from, its objects, its proofs and its pins.

    \b
    Examples:
      synapse-ops backup show 20261123T201726Z-3f9a1c
      synapse-ops backup show 20261123T201726Z-3f9a1c --repository s3://backups/database/ --json
    """
    from synapse_ops.errors import IntegrityError
    from synapse_ops.operations.backup.catalog import read_catalog, read_proofs, read_record

    repository, found, _ = place.locate(backup_id)
    catalog = read_catalog(repository, subject=found.subject)
    entry = next((row for row in catalog.backups if row.place == found), None)
    if entry is None:
        raise ConfigError(f"backup {backup_id} was removed while it was read")
    proofs = read_proofs(repository, found)
    try:
        record = read_record(repository, found)
    except IntegrityError:
        if not as_json:
            raise
        record = None  # the entry says why it cannot be read
    if as_json:
        print_json(
            {
                "repository": repository.url,
                "backup": entry_as_json(entry),
                "record": record.body() if record else None,
                "proofs": [proof.body() for proof in proofs],
            }
        )
    elif record is not None:
        _show_record(repository.store.full_url(found.prefix), entry, record, proofs)


def entry_as_json(entry: CatalogEntry) -> dict[str, Any]:
    """Return a catalog entry's stable fields. Times are ISO 8601 UTC, sizes bytes, durations seconds."""
    place = entry.place
    return {
        "backup_id": place.backup_id,
        "kind": place.kind,
        "subject": place.subject,
        "identity": str(place.identity),
        "prefix": place.prefix,
        "size_bytes": entry.size_bytes,
        "source_size_bytes": entry.source_size_bytes,
        "item_count": entry.item_count,
        "started_at": entry.started_at.isoformat(),
        "database_time": entry.database_time.isoformat() if entry.database_time else None,
        "finished_at": entry.finished_at.isoformat() if entry.finished_at else None,
        "duration_s": entry.duration_s,
        "is_encrypted": entry.is_encrypted,
        "is_proven": entry.proven_at is not None,
        "proven_at": entry.proven_at.isoformat() if entry.proven_at else None,
        "last_verdict": str(entry.last_verdict) if entry.last_verdict else None,
        "restore_s": entry.restore_s,
        "not_attempted_at": entry.not_attempted_at.isoformat() if entry.not_attempted_at else None,
        "doubt": entry.doubt,
        "pins": list(entry.pins),
        "held_at": entry.held_at.isoformat() if entry.held_at else None,
    }


def _show_record(url: str, entry: CatalogEntry, record: BackupRecord, proofs: tuple[ProofRecord, ...]) -> None:
    from synapse_ops.domain.backup.catalog import not_attempted

    facts = [
        ("of", subject_of(entry.place)),
        ("identity", str(entry.place.identity)),
        ("where", url),
        ("restores to", format_moment(record.data_time)),
        *fact_rows(record.facts()),
        ("proven", format_moment(entry.proven_at) if entry.proven_at else f"NO: {entry.doubt}"),
        *([("warning", not_attempted(entry.not_attempted_at))] if entry.not_attempted_at else []),
        ("pins", ", ".join(entry.pins) or "none"),
    ]
    show_table(("", f"backup {record.backup_id}"), facts)
    for title, rows in record.tables().items():
        if rows:
            texts = [[format_fact(name, value) for name, value in row.items()] for row in rows]
            show_table([name.replace("_", " ") for name in rows[0]], texts, title=title)
    show_table(
        ("object", ">stored", "sha256"),
        ((one.name, format_bytes(one.size_bytes), one.sha256) for one in record.objects),
    )
    if proofs:
        show_table(
            ("proof finished", "verdict", ">restore", ">predicted", "reason"),
            (
                (
                    format_moment(proof.finished_at),
                    str(proof.verdict),
                    _seconds(proof.restore_s),
                    _seconds(proof.predicted_restore_s),
                    proof.reason or "; ".join(proof.differences[:3]),
                )
                for proof in proofs
            ),
        )


def _seconds(value: float | None) -> str:
    return f"{value:.1f} s" if value is not None else "-"
