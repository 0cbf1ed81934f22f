"""What dumps and proofs take through the queue, and how long each stage of a run is."""

from __future__ import annotations

import re
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import psycopg
from dagster import DagsterRunStatus, RunsFilter

from benchmarks.scale_site import Site
from benchmarks.scale_storage import Rows, ask, events_since, newest_event, tell
from synapse_ops.defs.policies import POOL_POSTGRES_IO
from synapse_ops.services.dagster import home
from synapse_ops.services.dagster.console import Console

PROOFS = 10
RUN_TIMEOUT_S = 3600.0
SAMPLE_S = 2.0
_UNFINISHED = [DagsterRunStatus.QUEUED, DagsterRunStatus.STARTING, DagsterRunStatus.STARTED]


def measure_dumps(console: Console, site: Site, runs: int, limits: tuple[int, int]) -> dict[str, object]:
    """Return one row: `runs` dumps asked for at once. limits: of the pool and of the lane."""
    pool, lane = limits
    console.instance.event_log_storage.set_concurrency_slots(POOL_POSTGRES_IO, pool)
    names = [site.databases[number % len(site.databases)] for number in range(runs)]
    began_s, busy = time.time(), psutil.cpu_times()
    with sampled(site) as peak:
        run_ids = [console.start_job("backup_database", partition=name) for name in names]
        asked_s = time.time() - began_s
        wait_until_done(console, runs, f"dumps with pool {pool}, lane {lane}", "backup_database")
    stages = stages_of(site, run_ids)
    spans = [(one["RUN_STARTING"], one["RUN_SUCCESS"]) for one in stages.values() if "RUN_SUCCESS" in one]
    whole_s = max(end for _, end in spans) - began_s
    held_s = sum(end - begin for begin, end in spans)
    queued = [one["RUN_STARTING"] - one["RUN_ENQUEUED"] for one in stages.values() if "RUN_STARTING" in one]
    return {
        "runs": runs,
        "pool": pool,
        "lane": lane,
        "not_successful": runs - len(spans),
        "asked_s": round(asked_s, 1),
        "whole_s": round(whole_s, 1),
        "runs_per_hour": round(len(spans) / whole_s * 3600),
        "at_once_mean": round(held_s / whole_s, 2),
        "at_once_most": most_at_once(spans),
        "queue_p50_s": round(statistics.median(queued), 1),
        "queue_max_s": round(max(queued), 1),
        "process_p50_s": _between(stages, "RUN_STARTING", "RUN_START"),
        "work_p50_s": _between(stages, "STEP_START", "STEP_SUCCESS"),
        "end_p50_s": _between(stages, "STEP_SUCCESS", "RUN_SUCCESS"),
        "host_busy": _busy_share(busy, psutil.cpu_times()),
        **weight_of(site, run_ids),
        "memory_peak_mib": round(peak.memory_mib),
        "storage_connections": peak.connections,
    }


def measure_proofs(console: Console, site: Site) -> Rows:
    """Return a row for a few proofs, and what their events weigh."""
    names = site.databases[:PROOFS]
    for name in names:
        console.start_job("backup_database", partition=name)
    wait_until_done(console, len(names), "dumps to prove", "backup_database")
    before, began_s = newest_event(site), time.time()
    run_ids = [console.start_job("prove_database", partition=name) for name in names]
    wait_until_done(console, len(names), "proofs", "prove_database")
    stages = stages_of(site, run_ids)
    done = [one for one in stages.values() if "RUN_SUCCESS" in one]
    whole_s = time.time() - began_s
    checks = [row for row in events_since(site, before) if row["kind"] == "ASSET_CHECK_EVALUATION"]
    return [
        {
            "proofs": len(names),
            "not_successful": len(names) - len(done),
            "whole_s": round(whole_s, 1),
            "proofs_per_hour": round(len(done) / whole_s * 3600),
            "work_p50_s": _between(stages, "STEP_START", "RUN_SUCCESS"),
            **weight_of(site, run_ids),
            **{f"check_{name}": checks[0][name] if checks else 0 for name in ("rows", "mean_bytes")},
        }
    ]


def wait_until_done(console: Console, runs: int | None, what: str, job: str | None = None) -> None:
    """Return when no run of a job (any) is left."""
    deadline = time.monotonic() + RUN_TIMEOUT_S
    shown_s = 0.0
    while time.monotonic() < deadline:
        left = console.instance.get_runs_count(RunsFilter(statuses=_UNFINISHED, job_name=job))
        if left == 0:
            return
        if time.monotonic() - shown_s > 10:
            shown_s = time.monotonic()
            tell(f"{what}: {left}{f' of {runs}' if runs else ''} left")
        time.sleep(1)
    raise SystemExit(f"{what}: not done within {RUN_TIMEOUT_S:g} s")


def stages_of(site: Site, run_ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return when each run reached each stage, by the events that Dagster recorded."""
    names = {
        "PIPELINE_ENQUEUED": "RUN_ENQUEUED",
        "PIPELINE_STARTING": "RUN_STARTING",
        "PIPELINE_START": "RUN_START",
        "PIPELINE_SUCCESS": "RUN_SUCCESS",
        "STEP_START": "STEP_START",
        "STEP_SUCCESS": "STEP_SUCCESS",
    }
    rows = ask(
        site,
        "SELECT run_id, dagster_event_type, extract(epoch FROM timestamp)::float8 FROM event_logs "
        "WHERE run_id = ANY(%s) AND dagster_event_type = ANY(%s)",
        [list(run_ids), list(names)],
    )
    found: dict[str, dict[str, float]] = {run_id: {} for run_id in run_ids}
    for run_id, kind, at_s in rows:
        found[run_id][names[kind]] = at_s
    return found


def weight_of(site: Site, run_ids: Sequence[str]) -> dict[str, object]:
    """Return how many event rows each run wrote, and how large they are."""
    [[count, size]] = ask(
        site,
        "SELECT count(*), coalesce(sum(octet_length(event)), 0) FROM event_logs WHERE run_id = ANY(%s)",
        [list(run_ids)],
    )
    return {"rows_each": round(count / len(run_ids), 1), "kib_each": round(int(size) / len(run_ids) / 1024, 1)}


def most_at_once(spans: Sequence[tuple[float, float]]) -> int:
    marks = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    now = most = 0
    for _, step in marks:
        now += step
        most = max(most, now)
    return most


def _between(stages: Mapping[str, Mapping[str, float]], begin: str, end: str) -> float:
    took = [one[end] - one[begin] for one in stages.values() if begin in one and end in one]
    return round(statistics.median(took), 2) if took else float("nan")


def _busy_share(before: Any, after: Any) -> str:
    """Return how busy the host was meanwhile, whoever it worked for."""
    spent = [new - old for new, old in zip(after, before, strict=True)]
    idle = (after.idle - before.idle) + (after.iowait - before.iowait)
    return f"{1 - idle / sum(spent):.0%}"


@dataclass
class Peak:
    """The most at any sample. memory_mib: PSS of this process and all below it: stack, Dagster, runs. connections: to
    Dagster's storage.
    """

    memory_mib: float = 0.0
    connections: int = 0


@contextmanager
def sampled(site: Site) -> Iterator[Peak]:
    """Yield what is sampled while the block runs."""
    peak, done = Peak(), threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_S):
            total = 0
            for one in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                with suppress(psutil.Error, OSError, StopIteration):
                    lines = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
                    total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            peak.memory_mib = max(peak.memory_mib, total / 1024)
            with suppress(psycopg.OperationalError):
                [[count]] = ask(site, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
                peak.connections = max(peak.connections, count)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield peak
    finally:
        done.set()
        sampler.join()


@contextmanager
def lane_limit(limit: int) -> Iterator[None]:
    """Let the next console have another limit of each lane in its dagster.yaml."""
    shipped = home.shipped_file
    with tempfile.TemporaryDirectory() as folder:
        text, count = re.subn(
            r"(applyLimitPerUniqueValue: true}, limit: )\d+", rf"\g<1>{limit}", shipped("dagster.yaml").read_text()
        )
        if count != 1:
            raise SystemExit("dagster.yaml has no limit of lanes as expected")
        changed = Path(folder) / "dagster.yaml"
        changed.write_text(text)
        with mock.patch.object(home, "shipped_file", lambda name: changed if name == changed.name else shipped(name)):
            yield
