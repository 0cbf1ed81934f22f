"""`synapse-ops info`: what is protected, per subject, and what the stores cannot do."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.failures import Failures
from synapse_ops.cli.options import Place, repository_options, subject_of
from synapse_ops.cli.tables import format_bytes, format_moment, show_table
from synapse_ops.cli.terminal import echo
from synapse_ops.domain.durations import format_age
from synapse_ops.errors import counted

if TYPE_CHECKING:
    from synapse_ops.domain.recovery.recoverability import Recoverability
    from synapse_ops.operations.backup.catalog import Catalog
    from synapse_ops.operations.backup.overview import RepositoryOverview, SubjectOverview
    from synapse_ops.operations.backup_kinds import BackupKind


@click.command()
@click.argument("subject", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/json/info.schema.json).")
@repository_options
def command(subject: str | None, place: Place, *, as_json: bool) -> None:
    """Show to when each subject can be restored, in what time, proven when, and whether the spec's objectives are met.

    Without a SUBJECT: of every repository of the spec, or all that --repository holds. A repository alone promises
    nothing: then only what lies in it is shown.

    \b
    Examples:
      synapse-ops info
      synapse-ops info vectors/documents
      synapse-ops info --repository s3://backups/database/ --json
    """
    from synapse_ops.domain.recovery.recoverability import COLUMNS, table_rows
    from synapse_ops.domain.recovery.recoverability import as_json as row_json
    from synapse_ops.operations.backup.overview import overview_of

    now = datetime.now(UTC)
    failures = Failures()
    found: list[RepositoryOverview] = []
    catalogs: dict[str, Catalog] = {}
    for source in place.sources(subject):
        with failures.of(source.label):
            catalogs[source.repository.url] = source.catalog()
            found.append(overview_of(source.repository, catalogs[source.repository.url], now))
    restorable = _restorable(place, subject, catalogs, now)
    if as_json:
        page = (
            None if restorable is None else {"sentence": restorable.sentence, "rows": [*map(row_json, restorable.rows)]}
        )
        failures.end({"recoverability": page, "repositories": [_as_json(overview, now) for overview in found]})
    if restorable is not None:
        echo(restorable.sentence)
        rows = table_rows(restorable.rows, restorable.time_zone)
        show_table(COLUMNS, ([row[name] for name in COLUMNS] for row in rows))
    for overview in found:
        _show(overview, now)
    failures.end()


def _restorable(
    place: Place, subject: str | None, catalogs: Mapping[str, Catalog], now: datetime
) -> Recoverability | None:
    """Return what can be restored by the spec; None where a repository alone was named."""
    if place.repository_url is not None:
        return None
    from synapse_ops.operations.backup.catalog import read_catalog
    from synapse_ops.operations.backup_kinds import parse_subject
    from synapse_ops.operations.recovery.recoverability import read_recoverability

    stack = place.stack()

    def read(kind: BackupKind) -> Catalog:
        repository = kind.repository(stack)
        return (catalogs.get(repository.url) or read_catalog(repository)).only(kind.name)

    named = parse_subject(subject) if subject is not None else None
    kinds = None if named is None else (named.kind,)
    found = read_recoverability(stack, now, read=read, kinds=kinds)
    return found if named is None else found.of(named.kind.word, named.name)


def _as_json(overview: RepositoryOverview, now: datetime) -> dict[str, Any]:
    missing = overview.missing_features
    return {
        "repository": overview.url,
        "read_at": overview.read_at.isoformat(),
        "subjects": [_subject_json(row, now) for row in overview.subjects],
        "left_over_count": overview.left_over_count,
        "left_over_bytes": overview.left_over_bytes,
        "foreign_count": overview.foreign_count,
        "missing_store_features": list(missing) if missing is not None else None,
    }


def _subject_json(row: SubjectOverview, now: datetime) -> dict[str, Any]:
    proven = row.newest_proven
    return {
        "kind": row.kind,
        "subject": row.subject,
        "identity": str(row.identity),
        "backup_count": row.backup_count,
        "proven_count": row.proven_count,
        "stored_bytes": row.stored_bytes,
        "newest_backup_id": row.newest.place.backup_id,
        "newest_age_s": (now - (row.newest.database_time or row.newest.started_at)).total_seconds(),
        "newest_doubt": row.newest.doubt,
        "newest_lacks": list(row.newest.not_in_backup),
        "newest_proven_backup_id": proven.place.backup_id if proven else None,
        "newest_proven_at": proven.proven_at.isoformat() if proven and proven.proven_at else None,
        "rpo_now_s": row.rpo_now.total_seconds() if row.rpo_now is not None else None,
        "last_restore_s": proven.restore_s if proven else None,
        "predicted_restore_s": row.predicted_restore_s,
    }


def _show(overview: RepositoryOverview, now: datetime) -> None:
    count = len(overview.subjects)
    show_table(
        (
            "of",
            "identity",
            ">backups",
            ">proven",
            ">stored",
            "newest",
            "newest proven",
            ">RPO now",
            ">restore takes",
        ),
        (
            (
                subject_of(row.newest.place),
                str(row.identity),
                str(row.backup_count),
                str(row.proven_count),
                format_bytes(row.stored_bytes),
                f"{row.newest.place.backup_id}, {format_age(now - row.newest.started_at)} old",
                _proven(row),
                format_age(row.rpo_now) if row.rpo_now is not None else "unbounded",
                f"about {row.predicted_restore_s:.0f} s" if row.predicted_restore_s is not None else "not known yet",
            )
            for row in overview.subjects
        ),
        title=f"{overview.url} protects {counted(count, 'subject')}",
    )
    for row in overview.subjects:
        for name in row.newest.not_in_backup:
            echo(f"not in the newest backup of {subject_of(row.newest.place)}: {name}")
    if overview.left_over_count:
        size = format_bytes(overview.left_over_bytes)
        prefixes = counted(overview.left_over_count, "prefix", "prefixes")
        echo(f"left-overs: {prefixes}, {size}; `synapse-ops expire --plan` names them")
    if overview.foreign_count:
        foreign = counted(overview.foreign_count, "object")
        echo(f"foreign: {foreign} that this tool did not write, and leaves alone")
    if overview.missing_features is None:
        echo("store features: not tested, because these keys may not write")
    for words in overview.missing_features or ():
        echo(f"the store lacks {words}")


def _proven(row: SubjectOverview) -> str:
    if row.newest_proven is None:
        return f"NONE: {row.newest.doubt}"
    return f"{row.newest_proven.place.backup_id}, proven {format_moment(row.newest_proven.proven_at)}"
