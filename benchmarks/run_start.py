"""From the request for a restore to its first line, while dumps wait in Dagster's queue.

    python -m benchmarks.run_start                      20 dumps of 64 MiB, 8 rounds
    python -m benchmarks.run_start --dumps 0            an idle Dagster

Starts an embedded stack and Dagster in a directory of its own, and removes them. The request is the mutation that the
UI sends; the first line is the step's start as Dagster records it, in the run's own process. Restores do not share the
pool of dumps; each goes into a new database while dumps run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from dagster import DagsterEventType, DagsterRunStatus, RunsFilter

from synapse_ops.cli.options import Place
from synapse_ops.local.embedded_stack import reset_stack, running_stack
from synapse_ops.local.example_data import load_example_data
from synapse_ops.services.dagster.console import Console, start_console
from synapse_ops.spec.units import parse_size

DEADLINE_S = 600.0
WAITING = [DagsterRunStatus.QUEUED, DagsterRunStatus.STARTING, DagsterRunStatus.STARTED]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dumps", type=int, default=20)
    parser.add_argument("--size", type=parse_size, default=parse_size("64MiB"))
    parser.add_argument("--rounds", type=int, default=8)
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="synapse-bench-", dir="/var/tmp"))
    try:
        with running_stack(folder / "state") as running:
            stack = Place(spec_path=running.spec_path, state_dir=folder / "state").stack()
            database = stack.spec.database.databases[0]
            load_example_data(stack.admin_conninfo(database), size=chosen.size)
            with start_console(folder / "state", running.spec_path, webserver=False) as console:
                measure(console, database, chosen.dumps, chosen.rounds)
    finally:
        reset_stack(folder / "state")  # root's is a link to a folder under /var/lib
        shutil.rmtree(folder, ignore_errors=True)


def measure(console: Console, database: str, dumps: int, rounds: int) -> None:
    """Print the times of all rounds, and how many runs had been started meanwhile."""
    console.wait_for_run(console.start_job("backup_database", partition=database), timeout_s=DEADLINE_S)
    taken = console.asset_metadata("database_dump", database)
    assert taken is not None
    times_s, started = [], []
    for number in range(rounds):
        waiting = console.instance.get_runs_count(RunsFilter(statuses=WAITING, job_name="backup_database"))
        for _ in range(dumps - waiting):
            console.start_job("backup_database", partition=database)
        config = {"backup_id": taken.metadata["backup_id"], "target": f"restored_{number}"}
        began_s = time.time()
        run_id = console.start_job("restore", run_config={"ops": {"restore_backup": {"config": config}}})
        stages = stages_s(console, run_id, began_s)
        times_s.append(sum(stages.values()))
        started.append(console.instance.get_runs_count(RunsFilter(statuses=WAITING[1:])))
        shown = ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items())
        print(f"{times_s[-1]:6.2f} s ({shown}), {started[-1]} runs started, load {os.getloadavg()[0]:.1f}", flush=True)
        console.wait_for_run(run_id, timeout_s=DEADLINE_S)
    print(f"median {statistics.median(times_s):.1f} s [{min(times_s):.1f}-{max(times_s):.1f}], {rounds} rounds")


def stages_s(console: Console, run_id: str, began_s: float) -> dict[str, float]:
    """Return how long each stage took until the run's step began: accepted, queued, its process, its first line."""
    kinds = {
        "accept": DagsterEventType.PIPELINE_ENQUEUED,
        "queue": DagsterEventType.PIPELINE_STARTING,
        "process": DagsterEventType.PIPELINE_START,
        "step": DagsterEventType.STEP_START,
    }
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        time.sleep(1.0)  # the times are those of the events: a look costs, and delays nothing
        found = {entry.dagster_event_type: entry.timestamp for entry in console.instance.all_logs(run_id)}
        if DagsterEventType.STEP_START in found:
            ends = {name: found[kind] for name, kind in kinds.items() if kind in found}
            starts = [began_s, *ends.values()]
            return {name: end - start for (name, end), start in zip(ends.items(), starts, strict=False)}
    raise TimeoutError(f"run {run_id} has no first line after {DEADLINE_S:g} s")


if __name__ == "__main__":
    main()
