"""`synapse-ops redis`: RDB snapshots of Redis into the repository, and their proof."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.options import Place, repository_options, stack_options, timeout_option, work_dir_option
from synapse_ops.cli.proofs import prove_and_show
from synapse_ops.errors import ConfigError

if TYPE_CHECKING:
    from synapse_ops.domain.backup_record import ProofRecord
    from synapse_ops.operations.rdb_snapshot import RdbReport


@click.group()
def command() -> None:
    """Snapshot Redis and verify its snapshots, where `backup.redis` says that it keeps more than a cache.

    Listing, pins and expiry are the databases' own commands with --redis: `synapse-ops backup list --redis`.

    \b
    Examples:
      synapse-ops redis snapshot
      synapse-ops redis verify --all-unproven
    """


@command.command("snapshot", epilog="Example:  synapse-ops redis snapshot --json")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/json/redis-snapshot.schema.json).")
@stack_options
def snapshot(place: Place, *, as_json: bool) -> None:
    """Take an RDB snapshot of the spec's Redis, every logical database in one, into the repository, now."""
    from synapse_ops.cli.progress_bar import progress_bar
    from synapse_ops.operations.rdb_snapshot import snapshot_redis

    with progress_bar() as progress:
        report = snapshot_redis(place.stack(), progress=progress)
    click.echo(json.dumps(_as_json(report), indent=2) if as_json else _render(report))


@command.command("verify")
@click.argument("backup_id", required=False)
@click.option("--all-unproven", is_flag=True, help="Every backup that is not proven. Default: the newest of those.")
@timeout_option("each proof. Default: the spec's.")
@work_dir_option("Where throwaway servers lie for a while.")
@click.option("--json", "as_json", is_flag=True, help="Print the proofs as JSON (docs/json/redis-verify.schema.json).")
@repository_options
def verify(
    place: Place,
    backup_id: str | None,
    all_unproven: bool,
    timeout_s: float | None,
    work_dir: Path | None,
    as_json: bool,
) -> None:
    """Prove RDB snapshots: load each into a throwaway redis-server, compare it, and record the proof.

    Exit code 0 when every one is proven, 13 when one differs or is damaged, 14 when one could not be proven.

    \b
    Examples:
      synapse-ops redis verify
      synapse-ops redis verify 20261123T201726Z-3f9a1c --repository s3://backups/redis/
    """
    from synapse_ops.operations.rdb_restore_proof import prove_rdb

    if backup_id is not None and all_unproven:
        raise ConfigError("BACKUP_ID and --all-unproven exclude one another")
    prove_and_show(
        place,
        place.redis_repository(),
        partial(prove_rdb, address=None),
        noun="server",
        facts=_facts,
        subject=None,
        backup_id=backup_id,
        all_unproven=all_unproven,
        timeout_s=timeout_s,
        work_dir=work_dir,
        as_json=as_json,
    )


def _facts(record: ProofRecord) -> Iterator[str]:
    found = record.rdb
    if found is not None:
        window = f"; {found.window_keys} moved while it was taken" if found.window_keys else ""
        expired = f"; {found.expired_keys} expired since" if found.expired_keys else ""
        held = f"{found.still_keys} held to the live ones, {found.by_value} of them by value"
        yield f"{sum(found.keys.values())} keys loaded, {held}{window}{expired}"
    if record.restore_s is not None:
        yield f"loaded in {record.restore_s:.1f} s"


def _as_json(report: RdbReport) -> dict[str, Any]:
    record, window = report.record, report.record.window
    return {
        "backup_id": record.backup_id,
        "address": record.source.address,
        "url": report.url,
        "stored_bytes": record.stored_bytes,
        "rdb_bytes": record.dumped_bytes,
        "rdb_version": record.source.rdb_version,
        "keys": {str(number): count for number, count in window.keys_after.items()},
        "is_idle": window.is_idle,
        "scope": window.scope,
        "compared_keys": window.read_keys,
        "window_keys": window.moved_keys,
        "cut_at": window.cut_at.isoformat(),
        "replication_id": record.source.replication_id,
        "replication_offset": record.source.replication_offset,
        "duration_s": record.duration_s,
        "encrypted": bool(record.encryption_recipients),
        "warnings": list(report.warnings),
    }


def _render(report: RdbReport) -> str:
    from synapse_ops.cli.tables import format_bytes

    record, window = report.record, report.record.window
    moved = "idle" if window.is_idle else f"{window.moved_keys} of {window.read_keys} compared keys moved meanwhile"
    stored = f"{format_bytes(record.stored_bytes)} stored in {record.duration_s:.1f} s"
    return "\n".join(
        [
            f"{record.backup_id}  {record.source.address}  {report.url}",
            f"  {record.item_count} keys in {len(window.keys_after)} databases, {stored}; {moved}",
            *(f"  note: {warning}" for warning in report.warnings),
        ]
    )
