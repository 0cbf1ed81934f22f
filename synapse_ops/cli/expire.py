"""`synapse-ops expire`: plan what retention removes, then apply exactly that plan by its digest."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.failures import Failures
from synapse_ops.cli.options import Place, Source, repository_options, subject_of
from synapse_ops.cli.tables import format_bytes, format_moment, show_table
from synapse_ops.cli.terminal import echo, print_json
from synapse_ops.errors import ConfigError, PlanChanged, SynapseOpsError, counted

if TYPE_CHECKING:
    from synapse_ops.domain.backup.retention import RetentionPolicy
    from synapse_ops.operations.backup.expire import ExpiryPlan, ExpiryReport
    from synapse_ops.operations.repository import Repository


@click.command()
@click.argument("subject", required=False)
@click.option(
    "--plan",
    "wants_plan",
    is_flag=True,
    help="Print what would be removed and why, and each plan's digest. The default.",
)
@click.option("--apply", "digest", metavar="DIGEST", help="Apply exactly the plan with this digest.")
@click.option(
    "--accept-ratio",
    type=click.FloatRange(0, 1),
    help="With --apply: remove up to this part of a subject's backups (0 to 1), over retention.max_expiry_ratio.",
)
@click.option("--retention", help="With --plan: the window, as `30d`. Required without a spec.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON document (docs/json/expire-plan.schema.json, expire-apply.schema.json).",
)
@repository_options
def command(
    *,
    subject: str | None,
    wants_plan: bool,
    digest: str | None,
    accept_ratio: float | None,
    retention: str | None,
    as_json: bool,
    place: Place,
) -> None:
    """Plan and apply retention.

    A plan removes nothing. Without a SUBJECT there is one for each kind of backup, by its own retention; with one only
    its backups are in the plan. Applying checks every entry again and removes only what the plan named and what may
    still go; a pin or a restore that came later keeps its backup. A plan older than 24 hours is refused.

    \b
    Examples:
      synapse-ops expire --plan
      synapse-ops expire --plan database/synapse
      synapse-ops expire --apply 3f9a1c0d5e6f7a8b
      synapse-ops expire --plan --repository s3://backups/database/ --retention 30d
    """
    if wants_plan and digest is not None:
        raise click.UsageError("--plan and --apply are mutually exclusive")
    if digest is None:
        if accept_ratio is not None:
            raise click.UsageError("--accept-ratio belongs to --apply DIGEST")
        _plan(place, subject, _window(retention), as_json=as_json)
        return
    if retention is not None:
        raise click.UsageError("--retention belongs to --plan; a plan carries its own")
    if subject is not None:
        raise click.UsageError("SUBJECT belongs to --plan; a plan names its own")
    from synapse_ops.cli.progress_bar import progress_bar
    from synapse_ops.operations.backup.expire import apply_expiry
    from synapse_ops.operations.backup_kinds import read_wal

    repository = _holder_of(place, digest)
    with progress_bar() as progress:
        report = apply_expiry(
            repository, digest, datetime.now(UTC), accept_ratio=accept_ratio, wal=read_wal, progress=progress
        )
    _show_report(report, repository.url, as_json=as_json)


def _plan(place: Place, subject: str | None, window: timedelta | None, *, as_json: bool) -> None:
    """Make and print a plan for each kind of backup that is meant."""
    from synapse_ops.operations.backup.expire import make_expiry_plan
    from synapse_ops.operations.backup_kinds import read_wal

    chosen = _policies(place, subject, window)
    failures = Failures()
    plans: list[tuple[Source, ExpiryPlan]] = []
    for source, policy in chosen:
        with failures.of(source.label):
            if source.name is not None:
                source.catalog()  # refuses a name that nothing is stored under
            kind = source.kind.name if source.kind else None
            plan = make_expiry_plan(
                source.repository, policy, datetime.now(UTC), kind=kind, subject=source.name, wal=read_wal
            )
            plans.append((source, plan))
    if as_json:
        failures.end({"plans": [_plan_json(source, plan) for source, plan in plans]})
    for source, plan in plans:
        _show_plan(source, plan)
    failures.end()


def _policies(place: Place, subject: str | None, window: timedelta | None) -> list[tuple[Source, RetentionPolicy]]:
    """Return what is planned for, each with its kind's own policy: two kinds may share a repository."""
    from synapse_ops.domain.backup.retention import RetentionPolicy
    from synapse_ops.operations.backup_kinds import kinds_of

    if not place.has_spec:
        if window is None:
            raise ConfigError(
                "no retention window given, and no spec to take it from",
                hint="Name the window with --retention 30d, or the spec with --spec.",
            )
        return [(source, RetentionPolicy(window)) for source in place.sources(subject)]
    spec = place.stack().spec
    subjects = [subject] if subject is not None else [kind.word for kind in kinds_of(spec)]
    found = []
    for source in (source for text in subjects for source in place.sources(text)):
        if source.kind is None or not source.kind.is_on(spec):
            raise ConfigError(f"the spec sets no retention for backups of {source.label}")
        policy = source.kind.policy(spec)
        found.append((source, policy if window is None else replace(policy, window=window)))
    return found


def _window(retention: str | None) -> timedelta | None:
    """Return --retention; raises ConfigError for what is not a duration, and for one that keeps nothing."""
    from synapse_ops.spec.units import parse_duration

    if retention is None:
        return None
    try:
        window = parse_duration(retention, bare_unit="d")
    except ValueError as fault:
        raise ConfigError(f'--retention "{retention}" is not a duration', detail=str(fault)) from fault
    if window.total_seconds() <= 0:
        raise ConfigError(f'--retention "{retention}" keeps nothing', hint="Name a window such as 30d.")
    return window


def _holder_of(place: Place, digest: str) -> Repository:
    """Return the repository that holds a plan. Raises PlanChanged when none does, ConfigError for no digest."""
    from synapse_ops.operations.backup.expiry_plans import holds_plan, require_digest

    require_digest(digest)
    fault: SynapseOpsError | None = None
    repositories = [source.repository for source in place.sources()]
    for repository in repositories:
        try:
            if holds_plan(repository, digest):
                return repository
        except SynapseOpsError as error:
            fault = error
    raise fault or PlanChanged(
        f"there is no plan {digest} in {' or '.join(repository.url for repository in repositories)}",
        hint="`synapse-ops expire --plan` makes one and prints its digest.",
    )


def _plan_json(source: Source, plan: ExpiryPlan) -> dict[str, Any]:
    return {
        "subject": source.label,
        "repository": source.repository.url,
        "digest": plan.digest,
        "made_at": plan.made_at.isoformat(),
        "policy": plan.policy.as_json(),
        "totals": plan.totals.as_json(),
        "warnings": list(plan.warnings),
        "notes": list(plan.notes),
        "foreign_count": plan.foreign_count,
        "entries": [entry.as_json() for entry in plan.entries],
    }


def _show_plan(source: Source, plan: ExpiryPlan) -> None:
    show_table(
        ("action", "backup", "of", "taken", ">stored", "proven", "because"),
        (
            (
                str(entry.action),
                entry.place.backup_id,
                subject_of(entry.place),
                format_moment(entry.taken_at),
                format_bytes(entry.size_bytes),
                format_moment(entry.proven_at) if entry.proven_at else f"NO: {entry.doubt}" if entry.doubt else "",
                entry.reason,
            )
            for entry in plan.entries
        ),
        title=f"Expiry plan of {source.label} in {source.repository.url}",
    )
    totals = plan.totals
    echo(
        f"keeps {totals.kept}, would remove {counted(totals.expired, 'backup')}, "
        f"{counted(totals.left_overs, 'left-over')}, {counted(totals.uploads, 'upload')} and "
        f"{counted(totals.wal_groups, 'group')} of WAL segments: {format_bytes(totals.removed_bytes)}"
    )
    for note in plan.notes:
        echo(note)
    for warning in plan.warnings:
        echo(f"warning: {warning}")
    if any(entry.removes for entry in plan.entries):
        echo(f"apply it within 24 hours:  synapse-ops expire --apply {plan.digest}")
    else:
        echo(f"nothing to remove; digest {plan.digest}")


def _show_report(report: ExpiryReport, url: str, *, as_json: bool) -> None:
    for warning in report.warnings:
        echo(f"warning: {warning}", err=True)
    if as_json:
        print_json({"repository": url, **report.as_json()})
        return
    rows = [(str(row.action), row.place.backup_id, subject_of(row.place), row.reason) for row in report.removed]
    rows += [("kept", row.entry.place.backup_id, subject_of(row.entry.place), row.reason) for row in report.skipped]
    if rows:
        show_table(("done", "backup", "of", "because"), rows)
    for key in report.old_plans_removed:
        echo(f"removed {key}: it could no longer be applied")
    echo(f"{report}; {format_bytes(report.freed_bytes)} freed")
