"""`synapse-ops expire`: plan what retention removes, then apply exactly that plan by its digest."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from synapse_ops.cli.options import Place, any_repository_options
from synapse_ops.cli.tables import format_bytes, format_moment, show_table
from synapse_ops.errors import ConfigError

if TYPE_CHECKING:
    from synapse_ops.domain.retention import RetentionPolicy
    from synapse_ops.operations.expire import ExpiryPlan, ExpiryReport


@click.command(
    epilog="Examples:  synapse-ops expire --plan   |   synapse-ops expire --apply 3f9a1c0d5e6f7a8b   |   "
    "synapse-ops expire --plan --repository s3://backups/database/ --retention 30d"
)
@click.option("--plan", "wants_plan", is_flag=True, help="Print what would go and why, and the plan's digest.")
@click.option("--apply", "digest", metavar="DIGEST", help="Do exactly the plan of this digest.")
@click.option(
    "--accept-ratio",
    type=click.FloatRange(0, 1),
    help="With --apply: remove up to this part of a database's backups (0 to 1), over retention.max_expiry_ratio.",
)
@click.option("--retention", help="With --plan: the window, as `30d`. Needed where no spec says it.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON document (docs/json/expire-plan.schema.json, expire-apply.schema.json).",
)
@any_repository_options
def command(
    *,
    wants_plan: bool,
    digest: str | None,
    accept_ratio: float | None,
    retention: str | None,
    as_json: bool,
    place: Place,
) -> None:
    """Plan and apply retention.

    A plan removes nothing. Applying checks every entry again and removes only what the plan named and what may still
    go; a pin or a restore that came later keeps its backup. A plan older than 24 hours is refused.
    """
    from synapse_ops.operations.expire import apply_expiry, make_expiry_plan

    if wants_plan == (digest is not None):
        raise click.UsageError("give either --plan or --apply DIGEST")
    repository = place.repository()
    if digest is None:
        if accept_ratio is not None:
            raise click.UsageError("--accept-ratio belongs to --apply DIGEST")
        plan = make_expiry_plan(repository, _policy(place, retention), datetime.now(UTC))
        _show_plan(plan, repository.url, kind_option=place.kind_option, as_json=as_json)
        return
    if retention is not None:
        raise click.UsageError("--retention belongs to --plan; a plan carries its own")
    from synapse_ops.cli.progress_bar import progress_bar

    with progress_bar() as progress:
        report = apply_expiry(repository, digest, datetime.now(UTC), accept_ratio=accept_ratio, progress=progress)
    _show_report(report, as_json=as_json)


def _policy(place: Place, retention: str | None) -> RetentionPolicy:
    from synapse_ops.domain.retention import RetentionPolicy
    from synapse_ops.spec.units import parse_duration

    window = None
    if retention is not None:
        try:
            window = parse_duration(retention, bare_unit="d")
        except ValueError as fault:
            raise ConfigError(f'--retention "{retention}" is not a duration', detail=str(fault)) from fault
        if window.total_seconds() <= 0:
            raise ConfigError(f'--retention "{retention}" keeps nothing', hint="Name a window such as 30d.")
    if place.repository_url is not None and place.spec_path is None:
        if window is None:
            raise ConfigError(
                "no retention given, and a repository alone does not say one",
                hint="Name the window with --retention 30d, or the spec with --spec.",
            )
        return RetentionPolicy(window)
    spec = place.stack().spec
    if place.of_redis:
        policy = RetentionPolicy.of_redis(spec)
    else:
        policy = RetentionPolicy.of_vectors(spec) if place.of_vectors else RetentionPolicy.of_databases(spec)
    return policy if window is None else replace(policy, window=window)


def _show_plan(plan: ExpiryPlan, url: str, *, kind_option: str, as_json: bool) -> None:
    if as_json:
        body = {
            "repository": url,
            "digest": plan.digest,
            "made_at": plan.made_at.isoformat(),
            "policy": plan.policy.as_json(),
            "totals": plan.totals.as_json(),
            "warnings": list(plan.warnings),
            "foreign_count": plan.foreign_count,
            "entries": [entry.as_json() for entry in plan.entries],
        }
        click.echo(json.dumps(body, ensure_ascii=False, indent=2))
        return
    show_table(
        ("action", "backup", "of", "taken", ">stored", "proven", "because"),
        (
            (
                str(entry.action),
                entry.place.backup_id,
                entry.place.subject,
                format_moment(entry.taken_at),
                format_bytes(entry.size_bytes),
                format_moment(entry.proven_at) if entry.proven_at else f"NO: {entry.doubt}",
                entry.reason,
            )
            for entry in plan.entries
        ),
        title=f"Expiry plan of {url}",
    )
    totals = plan.totals
    click.echo(
        f"keeps {totals.kept}, would remove {totals.expired} backups, {totals.left_overs} left-overs and "
        f"{totals.uploads} uploads: {format_bytes(totals.removed_bytes)}"
    )
    for warning in plan.warnings:
        click.echo(f"warning: {warning}")
    if any(entry.removes for entry in plan.entries):
        click.echo(f"apply it within 24 hours:  synapse-ops expire{kind_option} --apply {plan.digest}")
    else:
        click.echo(f"nothing to remove; digest {plan.digest}")


def _show_report(report: ExpiryReport, *, as_json: bool) -> None:
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(report.as_json(), ensure_ascii=False, indent=2))
        return
    rows = [(str(entry.action), entry.place.backup_id, entry.place.subject, entry.reason) for entry in report.removed]
    rows += [("kept", row.entry.place.backup_id, row.entry.place.subject, row.reason) for row in report.skipped]
    if rows:
        show_table(("done", "backup", "of", "because"), rows)
    for key in report.old_plans_removed:
        click.echo(f"removed {key}: it could no longer be applied")
    click.echo(f"{report}; {format_bytes(report.freed_bytes)} freed")
