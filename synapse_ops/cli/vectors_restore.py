"""`synapse-ops vectors restore` into a new collection; `switch-alias`, the step that makes it live."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.options import Place, stack_options, timeout_option, work_dir_option
from synapse_ops.errors import ConfigError

if TYPE_CHECKING:
    from synapse_ops.operations.vector_restore import VectorRestoreReport
    from synapse_ops.operations.vector_restore_plan import VectorRestorePlan
    from synapse_ops.systems.qdrant import QdrantServer


@click.command("restore")
@click.argument("backup_id")
@click.option("--to", "collection", required=True, metavar="COLLECTION", help="A new collection: a name not in use.")
@click.option("--plan", "only_plan", is_flag=True, help="Print what would happen. The default.")
@click.option("--apply", "apply", is_flag=True, help="Do it.")
@timeout_option("the restore. Default: a day.")
@work_dir_option("Where shards are staged for a while.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON (docs/json/vectors-restore.schema.json)."
)
@stack_options
def restore(
    place: Place,
    backup_id: str,
    collection: str,
    only_plan: bool,
    apply: bool,
    timeout_s: float | None,
    work_dir: Path | None,
    as_json: bool,
) -> None:
    """Restore a backup into a new collection of the spec's server, and compare it there. No alias is touched.

    \b
    Examples:
      synapse-ops vectors restore 20261123T201726Z-3f9a1c --to documents_yesterday --plan
      synapse-ops vectors restore 20261123T201726Z-3f9a1c --to documents_yesterday --apply
    """
    from synapse_ops.cli.progress_bar import progress_bar
    from synapse_ops.operations.backup_catalog import find_backup
    from synapse_ops.operations.vector_restore import DEFAULT_TIMEOUT_S, apply_vector_restore
    from synapse_ops.operations.vector_restore_plan import plan_vector_restore

    if only_plan and apply:
        raise ConfigError("--plan and --apply exclude one another")
    repository = place.vector_repository()
    with _servers(place) as servers:
        plan = plan_vector_restore(repository, find_backup(repository, backup_id), servers, collection)
        if not apply:
            click.echo(json.dumps(plan_data(plan), ensure_ascii=False, indent=2) if as_json else render_plan(plan))
            return
        if not as_json:
            click.echo(render_plan(plan), err=True)
        with progress_bar() as progress:
            report = apply_vector_restore(
                repository,
                plan,
                servers,
                identities=place.age_identities(),
                work_dir=work_dir or place.work_dir,
                timeout_s=timeout_s or DEFAULT_TIMEOUT_S,
                progress=progress,
            )
    click.echo(json.dumps(restore_data(report), ensure_ascii=False, indent=2) if as_json else render_restore(report))


def plan_data(plan: VectorRestorePlan) -> dict[str, Any]:
    """Return a plan as its stable JSON form."""
    return {
        "backup_id": plan.place.backup_id,
        "collection": plan.place.subject,
        "target": plan.collection,
        "server_url": plan.server_url,
        "target_server_version": plan.server_version,
        "source_server_version": plan.record.source.server_version,
        "window_opened_at": plan.record.window.opened_at.isoformat(),
        "window_closed_at": plan.record.window.closed_at.isoformat(),
        "nodes": list(plan.nodes),
        "shards": plan.shard_number,
        "size_bytes": plan.size_bytes,
        "stored_bytes": plan.stored_bytes,
        "aliases": plan.aliases,
        "notes": list(plan.notes),
    }


def restore_data(report: VectorRestoreReport) -> dict[str, Any]:
    """Return a finished restore as its stable JSON form."""
    return {
        **plan_data(report.plan),
        "restore_s": report.restore_s,
        "phase_s": report.phase_s,
        "counts": report.counts,
        "compared_points": report.compared_points,
        "notes": list(report.notes),
    }


def render_plan(plan: VectorRestorePlan) -> str:
    """Return a plan as an operator reads it."""
    window = plan.record.window
    versions = f"Qdrant {plan.server_version}, backup of {plan.record.source.server_version}"
    aliases = [f"{alias} (now: {target or 'nothing'})" for alias, target in plan.aliases.items()]
    moment = f"{window.opened_at:%Y-%m-%d %H:%M:%S %Z} to {window.closed_at:%H:%M:%S}"
    lines = [
        f"restore {plan.place.backup_id} of collection {plan.place.subject}",
        f"  state of      {moment}, {window.points_after} points",
        f"  into          {plan.collection} on {plan.server_url} (new; {versions})",
        f"  reads         {plan.stored_bytes / 2**20:.1f} MiB, uploads {plan.size_bytes / 2**20:.1f} MiB",
        f"  shards        {plan.shard_number}, nodes {', '.join(plan.nodes)}",
        f"  its aliases   {', '.join(aliases) or 'none'}; left alone",
    ]
    return "\n".join([*lines, *(f"  note          {note}" for note in plan.notes)])


def render_restore(report: VectorRestoreReport) -> str:
    """Return a finished restore as an operator reads it, with the step that makes it live."""
    plan = report.plan
    points = max(report.counts.values(), default=0)
    lines = [
        f"restored and compared equal: {plan.collection}, {points} points on every node",
        f"  usable after {report.restore_s:.1f} s; {report.compared_points} points compared through the server",
        *(f"  note: {note}" for note in report.notes),
    ]
    lines += [
        f"  to make it live:  synapse-ops vectors switch-alias {alias} {plan.collection}" for alias in plan.aliases
    ]
    return "\n".join(lines)


@click.command("switch-alias", epilog="Example:  synapse-ops vectors switch-alias documents-live documents_yesterday")
@click.argument("alias")
@click.argument("collection")
@stack_options
def switch(alias: str, collection: str, place: Place) -> None:
    """Make ALIAS stand for COLLECTION, in one atomic step. Refused unless the collection is whole on every node."""
    from synapse_ops.operations.vector_alias import switch_alias

    with _servers(place) as servers:
        before = switch_alias(servers, alias, collection)
    click.echo(f"{alias} stands for {collection} now" + (f"; before: {before}" if before else "; it is new"))
    if before:
        click.echo(f"back again:  synapse-ops vectors switch-alias {alias} {before}")


@contextmanager
def _servers(place: Place) -> Iterator[tuple[QdrantServer, ...]]:
    """Yield a client for each node of the spec, and close them."""
    from synapse_ops.systems.qdrant import qdrant_nodes

    with ExitStack() as opened:
        yield tuple(opened.enter_context(server) for server in qdrant_nodes(place.stack().spec.qdrant))
