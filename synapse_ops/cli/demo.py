"""`synapse-ops demo`: the main job on the embedded stack, from an empty directory to a restored and compared backup.

Nothing here is special to the demo: it starts the stack, fills it, runs the same Dagster jobs that the schedules run,
and reads the closing tables from the repositories, the prober and what the runs recorded. Everything it started is
stopped when it ends; the data stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from synapse_ops.cli.options import Place, state_dir_option
from synapse_ops.cli.terminal import echo
from synapse_ops.domain.durations import format_age, format_when
from synapse_ops.errors import ConfigError, DeadlineExceeded, SynapseOpsError, Unproven

if TYPE_CHECKING:
    from synapse_ops.domain.recovery.recoverability import Recoverability
    from synapse_ops.operations.failover.ledger import Ledger
    from synapse_ops.operations.health.report import HealthReport
    from synapse_ops.operations.stack import Stack
    from synapse_ops.services.dagster.console import Console

JOB_TIMEOUT_S = 600.0
HEALTH_TIMEOUT_S = 180.0
FAILOVER_TIMEOUT_S = 300.0
FAILOVER_TRIES = 5  # a busy host can keep the store from answering within its 2 s
POLL_S = 0.2
# shown, but a nearly full disk of a test host is not a fault of the stack, nor a store that answers late there
OF_THE_HOST = {"server/disk", "server/failover"}
CLEANED = {
    "logs": "log_retention_set",
    "temporary files": "temp_cleanup",
    "idle cache keys": "cache_cleanup",
    "Dagster's history": "run_history_cleanup",
}


@click.command("demo", epilog="Example:  synapse-ops demo --size 200MiB")
@click.option("--size", default="32MiB", show_default=True, help="Amount of example data.")
@state_dir_option("Where the embedded stack keeps its data.")
def command(size: str, state_dir: Path) -> None:
    """Start real servers, back up, restore, compare, plan retention, clean up, and show what happened.

    A second run uses the same data. `synapse-ops ui` opens the Dagster instance that it filled.

    \b
    Examples:
      synapse-ops demo
      synapse-ops demo --size 200MiB
    """
    from synapse_ops.local.embedded_stack import running_stack

    began = time.monotonic()
    state_dir = state_dir.absolute()
    size_bytes = parsed_size(size)
    with ExitStack() as started:
        with step(
            "real servers: PostgreSQL primary and standby, Redis, Qdrant's engine, S3, the API, the prober, "
            "and a PostgreSQL for Dagster itself"
        ):
            running = started.enter_context(running_stack(state_dir))
        place = Place(spec_path=running.spec_path, state_dir=state_dir)
        stack = place.stack()
        _fill(stack, size_bytes)
        cleaned = _run_main_job(stack, running.spec_path)
        _show(stack, cleaned)
        echo(_fail_over(running.state_dir))
        echo(f"Finished in {time.monotonic() - began:.0f} s.")
        with step("stopping what was started; the data stays in " + str(_short(state_dir))):
            started.close()
    echo("\nOpen the same Dagster instance, its runs and its lineage:  make ui")


def parsed_size(text: str) -> int:
    from synapse_ops.spec.units import parse_size

    try:
        return parse_size(text)
    except ValueError as fault:
        raise ConfigError(f'--size "{text}" is not a size', detail=f"allowed: {fault}") from None


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say on stderr what begins, and how long it took."""
    began = time.monotonic()
    try:
        yield
    except BaseException:
        echo(f"  failed after {time.monotonic() - began:.1f} s: {what}", err=True)
        raise
    echo(f"  {time.monotonic() - began:5.1f} s  {what}", err=True)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _fill(stack: Stack, size_bytes: int) -> None:
    from synapse_ops.local.example_data import (
        VECTORS,
        load_example_data,
        load_example_left_behind,
        load_example_vectors,
    )

    with step(f"example data in {', '.join(stack.spec.database.databases)}: {size_bytes / 2**20:.0f} MiB"):
        for database in stack.spec.database.databases:
            load_example_data(stack.admin_conninfo(database), size=size_bytes)
    qdrant = stack.spec.qdrant
    with step(f"example vectors in {qdrant.collection}: {VECTORS} points of {qdrant.vector_size} dimensions"):
        load_example_vectors(stack.admin_conninfo(stack.spec.database.databases[0]), qdrant)
    with step("aged log and temporary files, and cache keys not read for a day"):
        load_example_left_behind(stack.spec, datetime.now(UTC))


def _run_main_job(stack: Stack, spec_path: Path) -> dict[str, Mapping[str, Any]]:
    """Back up, prove, plan and clean up as Dagster runs through the code server, exactly as from the UI.

    Returns what the cleanup's assets recorded, by kind.
    """
    from synapse_ops.defs.backup.kinds import COLLECTIONS_PARTITION
    from synapse_ops.services.dagster.console import start_console

    collection = stack.spec.qdrant.collection
    with step("Dagster: code server and daemon"):
        console_context = start_console(stack.state_dir, spec_path, webserver=False)
        console = console_context.__enter__()
    try:
        console.instance.add_dynamic_partitions(COLLECTIONS_PARTITION, [collection])  # the sensor may not yet have
        databases = stack.spec.database.databases
        for what, runs in (  # a proof right behind its backup: else the sensor starts another beside it
            (
                "database_dump, vector_snapshot: streamed into S3, every row and point hashed",
                [*(("backup_database", database) for database in databases), ("backup_vectors", collection)],
            ),
            (
                "database_restore_proof, vector_restore_proof: restored into throwaway servers and compared",
                [*(("prove_database", database) for database in databases), ("prove_vectors", collection)],
            ),
            (
                "base_backup: the whole cluster, physically; what retention keeps, and why; health_report",
                [("backup_cluster", "cluster"), ("expire_plan", None), ("report_health", None)],
            ),
            (
                "base_backup_proof: recovered to a moment from S3 alone; the cleanup that its schedule starts",
                [("prove_cluster", "cluster"), ("cleanup", None)],
            ),
        ):
            with step(what):
                for job, run_id in [_start(console, job, partition) for job, partition in runs]:
                    _finish(console, job, run_id)
        return {kind: _recorded(console, asset) for kind, asset in CLEANED.items()}
    finally:
        console_context.__exit__(None, None, None)


def _start(console: Console, job: str, partition: str | None = None) -> tuple[str, str]:
    return job, console.start_job(job, partition=partition, tags={"synapse/trigger": "demo"})


def _finish(console: Console, job: str, run_id: str) -> None:
    result = console.wait_for_run(run_id, timeout_s=JOB_TIMEOUT_S)
    if not result.succeeded:
        raise SynapseOpsError(
            f"Dagster run {result.run_id} of {job} ended with {result.status}",
            detail=result.failure,
            hint="`make ui` opens the run with its log.",
        )


def _recorded(console: Console, asset: str) -> Mapping[str, Any]:
    event = console.asset_metadata(asset)
    if event is None:
        raise SynapseOpsError(f"the cleanup run succeeded, but {asset} was not materialized")
    return event.metadata


def _show(stack: Stack, cleaned: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the closing tables. Raises Unproven unless every newest backup is proven, Unhealthy for a failed probe."""
    from rich.console import Console as Terminal

    from synapse_ops.cli.demo_tables import cleanup_table, health_table, protected_table, read_protected
    from synapse_ops.cli.health import error_of
    from synapse_ops.operations.backup_kinds import BASES, DUMPS, SNAPSHOTS
    from synapse_ops.operations.recovery.recoverability import read_recoverability

    now, spec = datetime.now(UTC), stack.spec
    databases = read_protected(DUMPS, stack, spec.database.databases, now)
    vectors = read_protected(SNAPSHOTS, stack, (spec.qdrant.collection,), now)
    cluster = read_protected(BASES, stack, (BASES.word,), now)
    recoverable = read_recoverability(stack, datetime.now(UTC), kinds=(BASES,))
    health = _settled_health(stack)
    terminal = Terminal(width=140)
    for table in (protected_table((databases, vectors, cluster)), health_table(health), cleanup_table(cleaned)):
        terminal.print(table)
    echo(f"databases: {databases.totals}\nvectors:   {vectors.totals}\ncluster:   {cluster.totals}")
    echo(_recovery_lines(recoverable))
    unproven = (*databases.unproven, *vectors.unproven, *cluster.unproven)
    if unproven:
        raise Unproven("the newest backup is not proven", detail="\n".join(unproven))
    error = error_of(replace(health, rows=tuple(row for row in health.rows if row.probe.name not in OF_THE_HOST)))
    if error is not None:
        raise error


def _fail_over(state_dir: Path) -> str:
    """Kill the primary, wait until the standby takes writes and the old primary follows it; return what happened.

    Raises SynapseOpsError when the watcher refused, or does not come to an end.
    """
    import signal

    from synapse_ops.domain.failover.transitions import State
    from synapse_ops.local.failover_place import primary_processes
    from synapse_ops.operations.failover.ledger import Ledger, Request
    from synapse_ops.operations.failover.status import read_status

    ledger = Ledger.of(state_dir.resolve())
    before = len(ledger.incidents())
    with step("kill -9 of every process of the primary: fenced, the standby promoted, the old primary rejoined"):
        _until(lambda: not read_status(state_dir.resolve(), datetime.now(UTC)).unarmed, state_dir)
        name, marks = primary_processes(state_dir)
        for mark in marks:
            mark.signal(signal.SIGKILL)
        for _ in range(FAILOVER_TRIES):
            _until(partial(_has_ended, ledger, before), state_dir)
            incident = ledger.incidents()[-1]
            if incident.state is not State.REFUSED:
                break
            echo(f"         refused: {incident.facts['reason']}; asked to go on, as `failover run` does", err=True)
            before += 1
            ledger.ask(Request(datetime.now(UTC)))
        if incident.state is not State.DONE:
            raise SynapseOpsError(f"the failover ended as {incident.state}: {incident.facts.get('reason')}")
        _until(lambda: ledger.rejoin(incident.id) is not None, state_dir)
    back, facts, phases = ledger.rejoin(incident.id) or {}, incident.facts, incident.phases_s()
    if "seconds" not in back:
        raise SynapseOpsError(f"{name} was not rejoined: {back.get('fault')}")
    steps = ", ".join(f"{step} {phases[step]:.1f} s" for step in ("confirmed", "fenced", "switching", "done"))
    return (
        f"failover:  {name} was killed; {facts['new']} took writes after {phases['done']:.1f} s ({steps}); "
        f"lost: {facts['lost_commits']} commits; {name} {back['how']} and following after {back['seconds']:.1f} s"
    )


def _has_ended(ledger: Ledger, known: int) -> bool:
    return any(not one.is_open for one in ledger.incidents()[known:])


def _until(is_so: Callable[[], bool], state_dir: Path) -> None:
    """Return once something is so; raises DeadlineExceeded with how failover stands."""
    from synapse_ops.operations.failover.status import read_status

    deadline_s = time.monotonic() + FAILOVER_TIMEOUT_S
    while not is_so():
        if time.monotonic() > deadline_s:
            status = read_status(state_dir.resolve(), datetime.now(UTC))
            raise DeadlineExceeded(f"after {FAILOVER_TIMEOUT_S:g} s failover is {status.sentence}")
        time.sleep(POLL_S)


def _recovery_lines(recoverable: Recoverability) -> str:
    """Return to when the cluster can be restored, what would be lost now, and what proved it."""
    [row] = recoverable.rows
    proven = f"proven by a point-in-time restore in {row.evidence.restore_s or 0:.0f} s"
    if row.evidence.from_at is None or row.evidence.to_at is None:
        return row.sentence(recoverable.time_zone)
    first, last = (format_when(at, row.at, recoverable.time_zone) for at in (row.evidence.from_at, row.evidence.to_at))
    return f"restorable from {first} (every moment) to {last}; lost if now: {format_age(row.lost_now)}; {proven}"


def _settled_health(stack: Stack) -> HealthReport:
    """Return the prober's report once nothing in it is unknown, or as it stands after HEALTH_TIMEOUT_S."""
    from synapse_ops.domain.health.states import State
    from synapse_ops.operations.health.report import read_health

    deadline = time.monotonic() + HEALTH_TIMEOUT_S
    while True:
        report = read_health(stack.state_dir, datetime.now(UTC))
        if not report.of(State.UNKNOWN) or time.monotonic() > deadline:
            return report
        time.sleep(POLL_S)
