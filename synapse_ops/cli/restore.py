"""`synapse-ops restore`: a backup into a new database or a new data directory. It prints its plan first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.options import Place, repository_options, timeout_option, work_dir_option
from synapse_ops.errors import ConfigError

if TYPE_CHECKING:
    from synapse_ops.operations.restore_target import RestorePlan, RestoreReport, ServerTarget, Target

_REFER = "Refer to it instead: --target env:NAME, --target file:/PATH, or --target service:NAME of libpq."


@click.command()
@click.argument("backup_id")
@click.option("--to", "to", metavar="DATABASE", help="A new database: its name, or a conninfo without a password.")
@click.option(
    "--to-directory",
    type=click.Path(path_type=Path),
    help="A new PostgreSQL data directory, which must not exist or be empty.",
)
@click.option(
    "--target",
    "target_reference",
    metavar="REFERENCE",
    help="The server of --to, as superuser: env:NAME or file:PATH of a libpq URL, or service:NAME. "
    "Default: database.admin of the spec.",
)
@click.option("--plan", "only_plan", is_flag=True, help="Print what would happen. The default.")
@click.option("--apply", "apply", is_flag=True, help="Do it.")
@timeout_option("the restore. Default: a day.")
@work_dir_option("Where the dump is staged for a while.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan or the result as JSON.")
@repository_options
def command(
    place: Place,
    backup_id: str,
    to: str | None,
    to_directory: Path | None,
    target_reference: str | None,
    only_plan: bool,
    apply: bool,
    timeout_s: float | None,
    work_dir: Path | None,
    as_json: bool,
) -> None:
    """Restore a backup into a new database or a new data directory, compare it, and only then give it its name.

    \b
    Examples:
      synapse-ops restore 20261123T201726Z-3f9a1c --to synapse_yesterday --plan
      synapse-ops restore 20261123T201726Z-3f9a1c --to synapse_yesterday --apply
      synapse-ops restore 20261123T201726Z-3f9a1c --to-directory /var/lib/postgresql/restored --apply
      synapse-ops restore ID --repository s3://backups/database/ --to copy --target env:TARGET_DSN --apply
    """
    from synapse_ops.cli.progress_bar import progress_bar
    from synapse_ops.operations.backup_catalog import find_backup
    from synapse_ops.operations.restore import DEFAULT_TIMEOUT_S, apply_restore, plan_restore

    if only_plan and apply:
        raise ConfigError("--plan and --apply exclude one another")
    target = _target(place, to, to_directory, target_reference)
    repository = place.repository()
    identities = place.age_identities()
    plan = plan_restore(repository, find_backup(repository, backup_id), target, identities=identities)
    if not apply:
        click.echo(json.dumps(plan_data(plan), ensure_ascii=False, indent=2) if as_json else render_plan(plan))
        return
    if not as_json:
        click.echo(render_plan(plan), err=True)
    with progress_bar() as progress:
        report = apply_restore(
            repository,
            plan,
            identities=identities,
            work_dir=work_dir or place.work_dir,
            timeout_s=timeout_s or DEFAULT_TIMEOUT_S,
            progress=progress,
        )
    click.echo(json.dumps(report_data(report), ensure_ascii=False, indent=2) if as_json else render_report(report))


def _target(place: Place, to: str | None, to_directory: Path | None, reference: str | None) -> Target:
    from synapse_ops.operations.restore_target import DirectoryTarget

    if (to is None) == (to_directory is None):
        raise ConfigError("say where to restore: either --to DATABASE or --to-directory DIR")
    if to_directory is not None:
        return DirectoryTarget(to_directory)
    return _server_target(place, to or "", reference)


def _server_target(place: Place, to: str, reference: str | None) -> ServerTarget:
    """Return the new database and how its server is reached; a password in an argument is refused."""
    from psycopg.conninfo import make_conninfo

    from synapse_ops.operations.restore_target import ServerTarget
    from synapse_ops.spec.secrets import holds_literal_secret
    from synapse_ops.systems.postgres import conninfo_parts

    if "=" not in to and "://" not in to:
        return ServerTarget(_conninfo(place, reference), to)
    if holds_literal_secret(to):
        raise ConfigError("--to holds a password, which every user of this host can read in argv", hint=_REFER)
    if reference is not None:
        raise ConfigError("--to is a conninfo already, so --target has nothing to name")
    parts = conninfo_parts(to)
    database = parts.pop("dbname", "")
    if not database:
        raise ConfigError("--to names no database: add dbname=NEW_NAME")
    return ServerTarget(make_conninfo("", **{**parts, "dbname": "postgres"}), database)


def _conninfo(place: Place, reference: str | None) -> str:
    """Return the conninfo of a maintenance database on the target server; it may hold a password."""
    from psycopg.conninfo import make_conninfo

    from synapse_ops.spec import SecretRef

    if reference is None:
        if place.repository_url is not None and place.spec_path is None:
            raise ConfigError("which server? --to names a new database only", hint=_REFER)
        return place.stack().admin_conninfo("postgres")
    scheme, _, name = reference.partition(":")
    if scheme == "service" and name:
        return make_conninfo("", service=name, dbname="postgres")
    if scheme not in {"env", "file"} or not name:
        raise ConfigError("--target is not of the form env:NAME, file:/PATH or service:NAME", hint=_REFER)
    return make_conninfo(SecretRef(scheme, name).resolve(), dbname="postgres")


def plan_data(plan: RestorePlan) -> dict[str, Any]:
    """Return a plan as its stable JSON form."""
    return {
        "backup_id": plan.place.backup_id,
        "database": plan.place.subject,
        "target": plan.where,
        "target_server_version": plan.server_version,
        "source_server_version": plan.record.source.server_version,
        "database_time": plan.record.database_time.isoformat(),
        "size_bytes": plan.size_bytes,
        "stored_bytes": plan.stored_bytes,
        "row_count": plan.record.row_count,
        "predicted_restore_s": plan.predicted_s,
        "tools": f"{plan.tools.version} in {plan.tools.bin_dir}",
        "roles_missing": list(plan.roles_missing),
        "roles_present": list(plan.roles_present),
        "tablespaces_missing": list(plan.tablespaces_missing),
        "notes": list(plan.notes),
    }


def report_data(report: RestoreReport) -> dict[str, Any]:
    """Return a finished restore as its stable JSON form."""
    return {
        **plan_data(report.plan),
        "restore_s": report.restore_s,
        "phase_s": report.phase_s,
        "row_count": report.row_count,
        "notes": list(report.notes),
    }


def render_plan(plan: RestorePlan) -> str:
    """Return a plan as an operator reads it."""
    record = plan.record
    predicted = "unknown: nothing was restored yet" if plan.predicted_s is None else f"{plan.predicted_s:.1f} s"
    versions = f"PostgreSQL {plan.server_version}, backup of {record.source.server_version}"
    content = f"{record.row_count} rows in {record.table_count} tables"
    lines = [
        f"restore {plan.place.backup_id} of database {plan.place.subject}",
        f"  state of      {record.database_time:%Y-%m-%d %H:%M:%S %Z}, {content}",
        f"  into          {plan.where} (new; {versions})",
        f"  reads         {plan.stored_bytes / 2**20:.1f} MiB, restores about {plan.size_bytes / 2**20:.1f} MiB",
        f"  predicted     {predicted}",
        f"  with          pg_restore {plan.tools.version} in {plan.tools.bin_dir}",
        f"  creates roles {', '.join(plan.roles_missing) or 'none'}",
        f"  leaves alone  {', '.join(plan.roles_present) or 'no role'}",
    ]
    return "\n".join([*lines, *(f"  note          {note}" for note in plan.notes)])


def render_report(report: RestoreReport) -> str:
    """Return a finished restore as an operator reads it."""
    lines = [
        f"restored and compared equal: {report.plan.where}, {report.row_count} rows",
        f"  usable after {report.restore_s:.1f} s",
    ]
    return "\n".join([*lines, *(f"  note: {note}" for note in report.notes)])
