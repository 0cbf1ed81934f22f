"""`synapse-ops demo`: the main job on the embedded stack, from an empty directory to a restored and compared backup.

Nothing here is special to the demo: it starts the stack, fills it, runs the same Dagster jobs that the schedules run,
and reads the closing table from the repository. Everything it started is stopped when it ends; the data stays.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from synapse_ops.cli.options import Place
from synapse_ops.errors import SynapseOpsError, Unproven

if TYPE_CHECKING:
    from synapse_ops.domain.catalog import CatalogEntry
    from synapse_ops.operations.expire import ExpiryPlan
    from synapse_ops.operations.stack import Stack
    from synapse_ops.services.console import Console

JOB_TIMEOUT_S = 600.0


@click.command("demo", epilog="Example:  synapse-ops demo --size 200MiB")
@click.option("--size", default="32MiB", show_default=True, help="How much data the stack is filled with.")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="SYNAPSE_STATE_DIR",
    default=Path(".synapse"),
    show_default=True,
    help="Where the embedded stack keeps its data.",
)
def command(size: str, state_dir: Path) -> None:
    """Start real servers, back up, restore, compare, plan retention, and show what happened.

    Run it again: it goes on with the same data. `synapse-ops ui` opens the Dagster instance that it filled.

    \b
    Examples:
      synapse-ops demo
      synapse-ops demo --size 200MiB
    """
    from synapse_ops.local.embedded_stack import start_stack, stop_stack

    began = time.monotonic()
    state_dir = state_dir.absolute()
    size_bytes = _parsed_size(size)
    try:
        with _step(
            "real servers: PostgreSQL primary and standby, Redis, S3, the API, and a PostgreSQL for Dagster itself"
        ):
            running = start_stack(state_dir)
        place = Place(spec_path=running.spec_path, state_dir=state_dir)
        stack = place.stack()
        _fill(stack, size_bytes)
        _run_main_job(stack, running.spec_path)
        _show(stack, began)
    finally:
        with _step("stopping every server; the data stays in " + str(_short(state_dir))):
            stop_stack(state_dir)
    click.echo("\nOpen the same Dagster instance, its runs and its lineage:  make ui")


def _parsed_size(text: str) -> int:
    from synapse_ops.spec.units import parse_size

    return parse_size(text)


@contextmanager
def _step(what: str) -> Iterator[None]:
    """Say on stderr what begins, and how long it took."""
    began = time.monotonic()
    try:
        yield
    except BaseException:
        click.echo(f"  failed after {time.monotonic() - began:.1f} s: {what}", err=True)
        raise
    click.echo(f"  {time.monotonic() - began:5.1f} s  {what}", err=True)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _fill(stack: Stack, size_bytes: int) -> None:
    from synapse_ops.local.example_data import VECTORS, load_example_data, load_example_vectors

    with _step(f"example data in {', '.join(stack.spec.database.databases)}: {size_bytes / 2**20:.0f} MiB"):
        for database in stack.spec.database.databases:
            load_example_data(stack.admin_conninfo(database), size=size_bytes)
    qdrant = stack.spec.qdrant
    with _step(f"example vectors in {qdrant.collection}: {VECTORS} points of {qdrant.vector_size} dimensions"):
        load_example_vectors(stack.admin_conninfo(stack.spec.database.databases[0]), qdrant)


def _run_main_job(stack: Stack, spec_path: Path) -> None:
    """Back up, prove and plan as Dagster runs through the code server, exactly as from the UI."""
    from synapse_ops.services.console import start_console

    with _step("Dagster: code server and daemon"):
        console_context = start_console(stack.state_dir, spec_path, webserver=False)
        console = console_context.__enter__()
    try:
        for database in stack.spec.database.databases:
            with _step(f"database_dump [{database}]: streamed into S3, fingerprint in the same snapshot"):
                _run(console, "dump_databases", database)
            with _step(f"database_restore_proof [{database}]: restored into a throwaway server and compared"):
                _run(console, "prove_databases", database)
        with _step("database_expiry_plan: what retention keeps, and why"):
            _run(console, "expire_plan", None)
    finally:
        console_context.__exit__(None, None, None)


def _run(console: Console, job: str, partition: str | None) -> None:
    result = console.run_job(job, partition=partition, tags={"synapse/trigger": "demo"}, timeout_s=JOB_TIMEOUT_S)
    if not result.succeeded:
        raise SynapseOpsError(
            f"Dagster run {result.run_id} of {job} ended with {result.status}",
            detail=result.failure,
            hint="`make ui` opens the run with its log.",
        )


def _show(stack: Stack, began: float) -> None:
    """Print the closing table from what the repository itself says. Raises Unproven unless every newest backup is."""
    from rich.console import Console as Terminal
    from rich.table import Table

    from synapse_ops.operations.backup_catalog import read_catalog
    from synapse_ops.operations.expire import RetentionPolicy, make_expiry_plan

    repository = stack.database_repository()
    now = datetime.now(UTC)
    catalog = read_catalog(repository)
    plan = make_expiry_plan(repository, RetentionPolicy.of_databases(stack.spec), now)
    table = Table(title="\nWhat is protected now", title_justify="left", show_lines=True)
    for column in ("what", "where", "size", "RPO now", "proven by a restore in", "retention keeps it because"):
        table.add_column(column, overflow="fold")
    newest: list[CatalogEntry] = []
    for database in stack.spec.database.databases:
        entries = catalog.of_subject(database)
        newest += entries[:1]
        for entry in entries[:3]:
            table.add_row(*_cells(repository.store.full_url(entry.place.prefix), entry, plan, now))
    Terminal(width=140).print(table)
    older = max(0, len(catalog.backups) - 3)
    click.echo(f"{len(catalog.backups)} backups{f', {older} older ones not shown' if older else ''}; {_totals(plan)}")
    click.echo(f"The whole took {time.monotonic() - began:.0f} s.")
    unproven = [f"{entry.place.subject}: {entry.doubt}" for entry in newest if entry.proven_at is None]
    if unproven or not newest:
        raise Unproven("the newest backup is not proven", detail="\n".join(unproven))


def _cells(url: str, entry: CatalogEntry, plan: ExpiryPlan, now: datetime) -> tuple[str, ...]:
    taken_at = entry.database_time or entry.started_at
    reason = next((row.reason for row in plan.entries if row.place == entry.place), "not in the plan")
    return (
        f"database {entry.place.subject}\n{entry.item_count:,} rows",
        url,
        f"{entry.source_size_bytes / 2**20:.1f} MiB\n-> {entry.size_bytes / 2**20:.1f} MiB stored",
        f"{(now - taken_at).total_seconds():.0f} s",
        f"{entry.restore_s:.1f} s" if entry.proven_at and entry.restore_s is not None else f"NOT: {entry.doubt}",
        reason,
    )


def _totals(plan: ExpiryPlan) -> str:
    totals = plan.totals
    left_overs = sum(row.taken_at is None and not row.removes for row in plan.entries)
    waiting = f", and {left_overs} left-overs of interrupted work wait out their grace" if left_overs else ""
    return f"retention plan {plan.digest} keeps {totals.kept - left_overs} and expires {totals.expired}{waiting}"
