"""`synapse-ops vectors`: snapshot, verify and restore collections; switching an alias is a step of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.options import Place, repository_options, stack_options
from synapse_ops.errors import ConfigError, SynapseOpsError

if TYPE_CHECKING:
    from synapse_ops.operations.proof import ProofReport
    from synapse_ops.operations.repository import Repository
    from synapse_ops.operations.vector_restore import VectorRestorePlan, VectorRestoreReport
    from synapse_ops.operations.vector_snapshot import SnapshotReport
    from synapse_ops.systems.qdrant import QdrantServer


@click.group()
def command() -> None:
    """Snapshot, verify and restore collections of Qdrant.

    Listing, pins and expiry are the databases' own commands with --vectors: `synapse-ops backup list --vectors`.

    \b
    Examples:
      synapse-ops vectors snapshot
      synapse-ops vectors verify --all-unproven
      synapse-ops vectors restore 20261123T201726Z-3f9a1c --to documents_yesterday --apply
      synapse-ops vectors switch-alias documents-live documents_yesterday
    """


@command.command(epilog="Example:  synapse-ops vectors snapshot --collection documents --json")
@click.option("--collection", "chosen", multiple=True, help="Only this one; may be repeated. Default: all.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document (docs/json/vectors-snapshot.schema.json)."
)
@stack_options
def snapshot(chosen: tuple[str, ...], place: Place, *, as_json: bool) -> None:
    """Take the snapshots of collections into the repository, now.

    Collections taken by one call share a set id. When one fails, the others are still taken, and the exit code is that
    of the first failure.
    """
    from synapse_ops.cli.progress_bar import progress_bar
    from synapse_ops.domain.repository_layout import new_backup_id
    from synapse_ops.operations.vector_snapshot import snapshot_collection

    stack = place.stack()
    names = chosen or _all_collections(place)
    set_id = new_backup_id(datetime.now(UTC), os.urandom(3))
    taken: list[SnapshotReport] = []
    failed: dict[str, SynapseOpsError] = {}
    with progress_bar() as progress:
        for name in names:
            try:
                taken.append(snapshot_collection(stack, name, set_id=set_id, progress=progress))
            except SynapseOpsError as error:
                failed[name] = error
    if as_json:
        click.echo(json.dumps({"set_id": set_id, "backups": [snapshot_data(one) for one in taken]}, indent=2))
    else:
        for one in taken:
            click.echo(render_snapshot(one))
        if not names:
            click.echo("the server has no collection")
    if failed:
        (_, first), *others = failed.items()
        also = [f"also: {name}: {error.message}" for name, error in others]
        first.detail = "\n".join([line for line in (first.detail, *also) if line])
        raise first


def _all_collections(place: Place) -> tuple[str, ...]:
    with _servers(place) as servers:
        return servers[0].collections()


@contextmanager
def _servers(place: Place) -> Iterator[tuple[QdrantServer, ...]]:
    """Yield a client for each node of the spec, and close them."""
    from synapse_ops.systems.qdrant import qdrant_nodes

    with ExitStack() as opened:
        yield tuple(opened.enter_context(server) for server in qdrant_nodes(place.stack().spec.qdrant))


def snapshot_data(report: SnapshotReport) -> dict[str, Any]:
    """Return a backup just taken as its stable JSON form."""
    record = report.record
    return {
        "backup_id": record.backup_id,
        "collection": record.source.collection,
        "url": report.url,
        "stored_bytes": record.stored_bytes,
        "snapshot_bytes": record.dumped_bytes,
        "shards": len(record.shards),
        "points": record.window.points_after,
        "window_points": record.window.moved_points,
        "compared_points": record.window.read_points,
        "scope": record.window.scope,
        "window_opened_at": record.window.opened_at.isoformat(),
        "window_closed_at": record.window.closed_at.isoformat(),
        "start_lsn": record.window.start_lsn,
        "stop_lsn": record.window.stop_lsn,
        "duration_s": record.duration_s,
        "encrypted": bool(record.encryption_recipients),
        "left_overs": list(report.left_overs),
        "warnings": list(report.warnings),
    }


def render_snapshot(report: SnapshotReport) -> str:
    """Return a backup just taken as an operator reads it."""
    from synapse_ops.cli.tables import format_bytes

    record = report.record
    window = record.window
    sizes = f"{format_bytes(record.dumped_bytes)} -> {format_bytes(record.stored_bytes)} stored"
    moved = (
        f"{window.moved_points} of {window.read_points} compared points moved meanwhile" if window.changed else "idle"
    )
    return "\n".join(
        [
            f"{record.backup_id}  {record.source.collection}  {report.url}",
            f"  {window.points_after} points in {len(record.shards)} shards, {sizes} in {record.duration_s:.1f} s",
            f"  cut in {(window.closed_at - window.opened_at).total_seconds():.1f} s; {moved}",
            *(f"  note: {warning}" for warning in report.warnings),
        ]
    )


@command.command()
@click.argument("backup_id", required=False)
@click.option("--all-unproven", is_flag=True, help="Every backup that is not proven. Default: the newest of those.")
@click.option("--collection", help="Only backups of this collection.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=1), help="Seconds for each proof. Default: the spec's."
)
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where copies lie for a while. Default: proof/ of the state directory.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the proofs as JSON (docs/json/vectors-verify.schema.json)."
)
@repository_options
def verify(
    place: Place,
    backup_id: str | None,
    all_unproven: bool,
    collection: str | None,
    timeout_s: float | None,
    work_dir: Path | None,
    as_json: bool,
) -> None:
    """Prove backups of collections: open each without a server, compare every point, and record the proof.

    Exit code 0 when every one is proven, 13 when one differs or is damaged, 14 when one could not be proven.

    \b
    Examples:
      synapse-ops vectors verify
      synapse-ops vectors verify 20261123T201726Z-3f9a1c --repository s3://backups/vectors/
    """
    from synapse_ops.cli.progress_bar import progress_bar
    from synapse_ops.cli.verify import default_timeout_s, default_work_dir
    from synapse_ops.operations.vector_restore_proof import prove_snapshot

    if backup_id is not None and all_unproven:
        raise ConfigError("BACKUP_ID and --all-unproven exclude one another")
    repository = place.vector_repository()
    reports: list[ProofReport] = []
    for target in _targets(repository, backup_id, collection, all_unproven=all_unproven):
        with progress_bar() as progress:
            report = prove_snapshot(
                repository,
                place=target,
                collection=collection,
                identities=place.age_identities(),
                work_dir=work_dir or default_work_dir(place),
                timeout_s=timeout_s or default_timeout_s(place),
                progress=progress,
            )
        if report is not None:
            reports.append(report)
            if not as_json:
                click.echo(render_proof(report))
    if as_json:
        click.echo(json.dumps([proof_data(report) for report in reports], ensure_ascii=False, indent=2))
    elif not reports:
        click.echo("nothing to prove: every backup is proven")
    raise SystemExit(max((report.exit_code for report in reports), default=0))


def _targets(repository: Repository, backup_id: str | None, collection: str | None, *, all_unproven: bool) -> list[Any]:
    """Return the places to prove; [None] lets the operation choose the newest that is not proven."""
    from synapse_ops.operations.backup_catalog import find_backup, read_catalog

    if backup_id is not None:
        return [find_backup(repository, backup_id)]
    if all_unproven:
        entries = read_catalog(repository, subject=collection).backups
        return [entry.place for entry in entries if entry.proven_at is None]
    return [None]


def proof_data(report: ProofReport) -> dict[str, Any]:
    """Return a proof as its stable JSON form: its own document, and where it was written."""
    return {
        "collection": report.place.subject,
        "identity": str(report.place.identity),
        "url": report.url,
        **report.record.model_dump(mode="json"),
    }


def render_proof(report: ProofReport) -> str:
    """Return a proof as an operator reads it: the verdict first, then why, then what was measured."""
    record, found = report.record, report.record.snapshot
    lines = [f"{record.verdict.upper()}  {record.backup_id}  collection {report.place.subject}"]
    if record.reason:
        lines.append(f"  reason: {record.reason}")
    lines += [f"  {difference}" for difference in record.differences]
    if report.error is not None and report.error.hint:
        lines.append(f"  hint: {report.error.hint}")
    if found is not None:
        window = f"; {found.window_points} moved while it was taken" if found.window_points else ""
        recall = f", recall@10 {found.recall_at_10:.2f}" if found.recall_at_10 is not None else ""
        points = sum(found.shard_points.values())
        lines.append(f"  {points} points read, {found.still_points} held to the live ones{window}{recall}")
    if record.restore_s is not None:
        lines.append(f"  opened in {record.restore_s:.1f} s")
    lines.append(f"  proof: {report.url}")
    return "\n".join(lines)


@command.command()
@click.argument("backup_id")
@click.option("--to", "collection", required=True, metavar="COLLECTION", help="A new collection: a name not in use.")
@click.option("--plan", "only_plan", is_flag=True, help="Print what would happen. The default.")
@click.option("--apply", "apply", is_flag=True, help="Do it.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=1), help="Seconds for the restore. Default: a day.")
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where shards are staged for a while. Default: proof/ of the state directory.",
)
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
    from synapse_ops.cli.verify import default_work_dir
    from synapse_ops.operations.backup_catalog import find_backup
    from synapse_ops.operations.vector_restore import DEFAULT_TIMEOUT_S, apply_vector_restore, plan_vector_restore

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
                work_dir=work_dir or default_work_dir(place),
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


@command.command("switch-alias", epilog="Example:  synapse-ops vectors switch-alias documents-live documents_yesterday")
@click.argument("alias")
@click.argument("collection")
@stack_options
def switch(alias: str, collection: str, place: Place) -> None:
    """Make ALIAS stand for COLLECTION, in one atomic step. Refused unless the collection is whole on every node."""
    from synapse_ops.operations.vector_restore import switch_alias

    with _servers(place) as servers:
        before = switch_alias(servers, alias, collection)
    click.echo(f"{alias} stands for {collection} now" + (f"; before: {before}" if before else "; it is new"))
    if before:
        click.echo(f"back again:  synapse-ops vectors switch-alias {alias} {before}")
