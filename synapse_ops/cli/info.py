"""`synapse-ops info`: what is protected, per subject, and what the stores cannot do."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.failures import Failures
from synapse_ops.cli.options import Place, repository_options, subject_of
from synapse_ops.cli.tables import format_age, format_bytes, format_moment, show_table
from synapse_ops.cli.terminal import echo
from synapse_ops.errors import counted

if TYPE_CHECKING:
    from synapse_ops.operations.backup.overview import RepositoryOverview, SubjectOverview


@click.command()
@click.argument("subject", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/json/info.schema.json).")
@repository_options
def command(subject: str | None, place: Place, *, as_json: bool) -> None:
    """Show what is protected: newest and newest proven backup, RPO now, predicted restore time.

    Without a SUBJECT: of every repository of the spec, or all that --repository holds.

    \b
    Examples:
      synapse-ops info
      synapse-ops info vectors/documents
      synapse-ops info --repository s3://backups/database/ --json
    """
    from synapse_ops.operations.backup.overview import overview_of

    now = datetime.now(UTC)
    failures = Failures()
    found: list[RepositoryOverview] = []
    for source in place.sources(subject):
        with failures.of(source.label):
            found.append(overview_of(source.repository, source.catalog(), now))
    if as_json:
        failures.end({"repositories": [_as_json(overview, now) for overview in found]})
    for overview in found:
        _show(overview, now)
    failures.end()


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
