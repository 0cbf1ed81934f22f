"""`synapse-ops demo-recovery`: all but the bucket is lost and comes back. On the embedded stack, without Dagster."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from synapse_ops.cli.options import Place, state_dir_option
from synapse_ops.cli.progress_bar import progress_bar
from synapse_ops.cli.terminal import echo
from synapse_ops.errors import DeadlineExceeded, Unproven

if TYPE_CHECKING:
    from synapse_ops.operations.stack import Stack

WRITES = 20
STORED_LIMIT_S = 60.0
POLL_S = 0.1


@click.command("demo-recovery")
@click.option("--size", default="32MiB", show_default=True, help="Amount of example data.")
@state_dir_option("Where the embedded stack keeps its data.")
def command(size: str, state_dir: Path) -> None:
    """Back up and prove, write on, lose every server and its data, and recover from the bucket, timed step by step.

    \b
    Examples:
      synapse-ops demo-recovery
      synapse-ops demo-recovery --size 200MiB --state-dir /tmp/demo
    """
    from synapse_ops.cli.demo import parsed_size, step
    from synapse_ops.cli.recover import show_impact
    from synapse_ops.domain.recovery.sentences import done_lines, prepared_lines
    from synapse_ops.local.embedded_stack import running_stack
    from synapse_ops.local.example_data import load_example_data, load_example_vectors
    from synapse_ops.local.lose_everything import LOST, lose
    from synapse_ops.local.recovery_place import EmbeddedRecovery
    from synapse_ops.operations.backup_kinds import BASES, SNAPSHOTS
    from synapse_ops.operations.recovery.prepare import prepare_recovery
    from synapse_ops.operations.recovery.switch import apply_recovery

    began, size_bytes = time.monotonic(), parsed_size(size)
    with running_stack(state_dir.absolute()) as running:
        stack = Place(spec_path=running.spec_path, state_dir=state_dir.absolute().resolve()).stack()
        with step(f"example data: {size_bytes / 2**20:.0f} MiB and its vectors"):
            load_example_data(stack.admin_conninfo(stack.spec.database.databases[0]), size=size_bytes)
            load_example_vectors(stack.admin_conninfo(stack.spec.database.databases[0]), stack.spec.qdrant)
        for kind, subject in ((BASES, BASES.word), (SNAPSHOTS, stack.spec.qdrant.collection)):
            with step(f"{kind.noun} backed up, restored from S3 and compared"):
                backup_id = kind.verbs().take(stack, subject).record.backup_id
                repository, work_dir = kind.repository(stack), stack.state_dir / "proof"
                report = kind.prove(repository, backup_id=backup_id, work_dir=work_dir)
                if report is None or not report.is_proven:
                    raise Unproven(f"backup {backup_id} is not proven")
        with step(f"{WRITES} documents written after the backups, and their WAL stored"):
            _write(stack.spec.health_base_url or "")
            _await_stored(stack)
        with step(f"lost, by kill -9 and with all data: {', '.join(LOST)}"):
            lose(state_dir)
        place = EmbeddedRecovery(stack.state_dir, stack.spec.qdrant, dies_with_us=True)
        with progress_bar() as progress:
            record = prepare_recovery(stack, place, "latest", show_impact, progress)
            echo("\n".join(prepared_lines(record)))
            with step(f"recover --apply {record.digest}"):
                record = apply_recovery(stack, place, record.digest, "", progress)
        echo("\n".join(done_lines(record)))
        echo(f"Finished at {datetime.now(UTC):%H:%M:%S} UTC, in {time.monotonic() - began:.0f} s.")


def _write(base_url: str) -> None:
    import httpx

    with httpx.Client(base_url=base_url, timeout=30.0, trust_env=False) as client:
        for number in range(WRITES):
            client.post("/generate", json={"prompt": f"written after the backup, {number}"}).raise_for_status()


def _await_stored(stack: Stack) -> None:
    from synapse_ops.operations.database.wal_report import read_wal_report

    deadline_s = time.monotonic() + STORED_LIMIT_S
    while True:
        status = read_wal_report(stack).status
        if status is not None and status.lag_bytes == 0:
            return
        if time.monotonic() > deadline_s:
            raise DeadlineExceeded(f"WAL was not stored within {STORED_LIMIT_S:g} s")
        time.sleep(POLL_S)
