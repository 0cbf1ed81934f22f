"""200 databases and 50 collections: what each part of Synapse Ops takes then, and which limit is met first.

    python -m benchmarks.scale                               all stages
    python -m benchmarks.scale --stage load --stage break    seconds, without any server
    python -m benchmarks.scale --databases 20 --collections 5 --runs 20 --minutes 1    a try

Starts an embedded stack of its own with that many real databases and collections, and Dagster as `synapse-ops ui`
starts it; removes both. Stages: load (of the definitions, in fresh processes), dumps (all through the queue, then
fewer with higher limits), proofs, ticks, idle (a measured stretch, and rows a day), pages (of the UI), queue (a long
one that nothing leaves), break (definitions and verdicts for many more, without servers). `history`, written before all
but the first stages, is a proven backup a day. Progress goes to stderr; tables and at last JSON to stdout.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg
import psutil
import psycopg
from dagster import DagsterRunStatus, RunsFilter

from benchmarks.idle import PARTS, counters, cpu_s, memory_bytes
from benchmarks.scale_pages import measure_pages
from benchmarks.scale_site import ROWS, Site, running_site, write_databases, write_history
from synapse_ops.defs.backup.kinds import DATABASES
from synapse_ops.defs.backup.restore_check import CHECK_NAME, evaluation_of, judge_repository
from synapse_ops.defs.policies import POOL_POSTGRES_IO
from synapse_ops.domain.backup.catalog import CatalogEntry
from synapse_ops.domain.backup.proof_record import Verdict
from synapse_ops.local.stack_spec import EXAMPLE
from synapse_ops.operations.backup.catalog import Catalog
from synapse_ops.services.dagster import home
from synapse_ops.services.dagster.console import Console, start_console
from synapse_ops.systems.dagster_storage import open_workspace
from synapse_ops.systems.log_output import configure_logging
from tests.stored_backups import place_of

STAGES = ("load", "dumps", "proofs", "ticks", "idle", "pages", "queue", "break")
WITHOUT_SERVERS = {"load", "break"}
LOADS = ((1, 1), (50, 10), (200, 50))
FURTHER = (400, 800, 1600, 3200)
LIMITS = (2, 4)  # of the pool and the lane, after the shipped ones
REPEAT = 3
ROUNDS = 15
PROOFS = 10
QUEUED = (200, 800)
QUEUE_STRETCH_S = 30.0
HISTORY_DAYS = 30  # of each database in `break`
RUN_TIMEOUT_S = 3600.0
SAMPLE_S = 2.0
DAY_S = 86_400
_UNFINISHED = [DagsterRunStatus.QUEUED, DagsterRunStatus.STARTING, DagsterRunStatus.STARTED]
Rows = list[dict[str, object]]

_LOAD = """
import json, time
began = time.process_time()
import synapse_ops.definitions as ours
imported = time.process_time()
repository = ours.definitions().get_repository_def()
repository.get_all_jobs()
made = time.process_time()
status = open("/proc/self/status").read().split()  # ru_maxrss counts the process that started this one, too
peak = int(status[status.index("VmHWM:") + 1])
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster_shared.serdes import serialize_value
size = len(serialize_value(RepositorySnap.from_def(repository)))
print(json.dumps({"import_cpu_s": imported - began, "definitions_cpu_s": made - imported, "rss_mib": peak / 1024,
                  "answer_kib": size / 1024, "assets": len(repository.asset_graph.get_all_asset_keys())}))
"""


def main() -> None:
    options = _options()
    os.environ.setdefault("SYNAPSE_LOG_LEVEL", "error")
    configure_logging()
    stages = options.stage or list(STAGES)
    found: dict[str, object] = {"cores": os.cpu_count(), "load_at_start": round(os.getloadavg()[0], 1)}
    report = _Report(found)
    if "load" in stages:
        report.add("load of the code location", measure_load([*LOADS]))
    if set(stages) - WITHOUT_SERVERS:
        with running_site(options.databases, options.collections, tell) as site:
            measure_site(site, stages, options, report)
    if "break" in stages:
        report.add("definitions of more databases", measure_load([(number, 1) for number in FURTHER]))
        report.add("verdicts on more databases, without servers", measure_verdicts([200, *FURTHER]))
    found["load_at_end"] = round(os.getloadavg()[0], 1)
    print(json.dumps(found, indent=2, default=str))


def measure_site(site: Site, stages: Sequence[str], options: argparse.Namespace, report: _Report) -> None:
    with console_of(site) as console:
        write_history(site, console.instance, options.history, tell)
    if "dumps" in stages:
        with console_of(site) as console:
            hold_sensors(console)
            report.add("dumps through the queue", [measure_dumps(console, site, options.runs, (1, 2))])
        for limit in LIMITS:
            with lane_limit(limit), console_of(site) as console:
                hold_sensors(console)
                row = measure_dumps(console, site, options.compare_runs, (limit, limit))
                report.add("dumps through the queue", [row])
    if "proofs" in stages:
        with console_of(site) as console:
            hold_sensors(console)
            report.add("proofs", measure_proofs(console, site))
    with console_of(site, webserver=True) as console:
        if "ticks" in stages:
            hold_sensors(console)
            report.add("ticks, evaluated by the code server", measure_ticks(console))
            release_sensors(console)
        if "idle" in stages:
            idle, rows = measure_idle(console, site, options.minutes)
            report.add("processes while nothing happens", idle)
            report.add("rows while nothing happens, a day", rows)
        if "pages" in stages:
            keys = [key.path for key in console.instance.all_asset_keys()]
            name = DATABASES.backup_key.to_user_string()
            report.add("pages of the UI", measure_pages(console.service, keys, name, ROUNDS, tell))
    if "queue" in stages:
        with console_of(site) as console:
            report.add("a queue that nothing leaves", measure_queue(console, site, options.queued))
    report.add("tables of Dagster's storage at the end", table_sizes(site))


# ---- load


def measure_load(sizes: Sequence[tuple[int, int]]) -> Rows:
    """Return what importing and evaluating the definitions takes; collections are partitions that Dagster stores."""
    rows: Rows = []
    for databases, collections in sizes:
        with tempfile.TemporaryDirectory() as folder:
            spec = Path(folder) / "infrastructure.yaml"
            spec.write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
            write_databases(spec, [f"tiny_{number:04}" for number in range(databases)])
            variables = {"SYNAPSE_SPEC": str(spec), "SYNAPSE_STATE_DIR": folder, "SYNAPSE_EMBEDDED": "1"}
            environment = {**os.environ, **variables}
            environment.pop("PYTHONDONTWRITEBYTECODE", None)
            runs = [_load_once(environment) for _ in range(REPEAT)]
        medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        first = rows[0] if rows else None
        row: dict[str, object] = {"databases": databases, "collections": collections}
        row |= {name: round(value, 2) for name, value in medians.items()}
        for name in ("definitions_cpu_s", "rss_mib", "answer_kib"):
            row[f"{name.partition('_')[0]}_ratio"] = round(medians[name] / float(str((first or row)[name])), 2)
        rows.append(row)
        tell(f"{databases} databases: definitions in {medians['definitions_cpu_s']:.2f} s")
    return rows


def _load_once(environment: Mapping[str, str]) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", _LOAD], env=environment, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


# ---- dumps and proofs


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
    before, began_s = _newest_event(site), time.time()
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


# ---- ticks, idle, queue


def measure_ticks(console: Console) -> Rows:
    """Return a row for each sensor and schedule: its tick without a cursor, and the tick after that."""
    rows: Rows = []
    instance = console.instance
    with open_workspace(instance, console.service.home.workspace) as workspace:
        location = workspace.create_request_context().get_code_location("synapse_ops")
        repository = location.get_repository("__repository__")
        for sensor in repository.get_sensors():
            if "AUTO" in sensor.sensor_type.name:
                continue  # the daemon evaluates conditions itself, in its own loop
            cursor, row = None, dict[str, object](tick=sensor.name)
            for name in ("first", "next"):
                began_s = time.perf_counter()
                try:
                    found = location.get_sensor_execution_data(
                        instance, repository.handle, sensor.name, None, None, cursor, None, None
                    )
                except Exception as error:  # noqa: BLE001 - what a tick raises is a finding
                    row[f"{name}_s"] = f"{type(error).__name__}"
                    tell(str(error)[:500])
                    break
                row[f"{name}_s"] = round(time.perf_counter() - began_s, 2)
                row[f"{name}_runs"] = len(found.run_requests or ())
                row[f"{name}_events"] = len(found.asset_events)
                row["cursor_bytes"] = len(found.cursor or "")
                cursor = found.cursor
            rows.append(row)
            tell(", ".join(f"{name} {value}" for name, value in row.items()))
        for schedule in repository.get_schedules():
            moment = _timestamp(datetime.now(UTC))
            began_s = time.perf_counter()
            made = location.get_schedule_execution_data(instance, repository.handle, schedule.name, moment, None)
            took_s = round(time.perf_counter() - began_s, 2)
            rows.append({"tick": schedule.name, "first_s": took_s, "first_runs": len(made.run_requests or ())})
    return rows


def _timestamp(moment: datetime) -> Any:
    from dagster._core.definitions.timestamp import TimestampWithTimezone

    return TimestampWithTimezone(moment.timestamp(), "UTC")


def measure_idle(console: Console, site: Site, minutes: float) -> tuple[Rows, Rows]:
    """Return shares of a core, and rows a day by kind: a stretch in which nothing is asked for."""
    tell("waiting until what the sensors found is done")
    time.sleep(90)  # every sensor has ticked
    wait_until_done(console, None, "what the sensors asked for")
    time.sleep(30)
    before, counts, newest, began_s = cpu_s(site.state_dir), counters(site.state_dir), _newest_event(site), time.time()
    tell(f"nothing happens for {minutes:g} minutes")
    time.sleep(minutes * 60)
    took_s = time.time() - began_s
    after, later = cpu_s(site.state_dir), counters(site.state_dir)
    parts: Rows = [
        {
            "part": part,
            "share_of_a_core": f"{(after[part] - before[part]) / took_s:.1%}",
            "mib": round(memory_bytes(site.state_dir, part) / 2**20),
        }
        for part in PARTS
    ]
    rows: Rows = []
    for row in events_since(site, newest):
        number = float(str(row["rows"]))
        rows.append(
            {
                **row,
                "rows_a_day": round(number * DAY_S / took_s),
                "mib_a_day": round(number * float(str(row["mean_bytes"])) * DAY_S / took_s / 2**20, 1),
            }
        )
    ticks = ask(
        site,
        "SELECT selector_id, status, count(*), avg(octet_length(tick_body)) FROM job_ticks "
        "WHERE timestamp > to_timestamp(%s) AT TIME ZONE 'UTC' GROUP BY 1, 2",
        [began_s],
    )
    for status in sorted({status for _, status, *_ in ticks}):
        number = sum(count for _, one, count, _ in ticks if one == status)
        size = sum(count * float(mean) for _, one, count, mean in ticks if one == status) / number
        rows.append(
            {
                "kind": f"tick {status}",
                "asset": "",
                "rows": number,
                "mean_bytes": round(size),
                "rows_a_day": round(number * DAY_S / took_s),
                "mib_a_day": round(number * size * DAY_S / took_s / 2**20, 1),
            }
        )
    for name in ("commits", "sessions"):
        parts.append(
            {"part": f"storage: {name} a second", "share_of_a_core": round((later[name] - counts[name]) / took_s, 1)}
        )
    return parts, rows


def measure_queue(console: Console, site: Site, lengths: Sequence[int]) -> Rows:
    """Return what the daemon takes while runs wait for a pool that gives no place."""
    rows: Rows = []
    hold_sensors(console)
    console.instance.event_log_storage.set_concurrency_slots(POOL_POSTGRES_IO, 0)
    waiting = 0
    for wanted in sorted(lengths):
        began_s = time.time()
        added = wanted - waiting
        for number in range(waiting, wanted):
            console.start_job("backup_database", partition=site.databases[number % len(site.databases)])
        waiting = wanted
        asked_s = time.time() - began_s
        before, began_s = cpu_s(site.state_dir), time.time()
        time.sleep(QUEUE_STRETCH_S)
        took_s, after = time.time() - began_s, cpu_s(site.state_dir)
        row: dict[str, object] = {"queued": wanted, "asked_ms_each": round(asked_s / added * 1000)}
        row |= {part: f"{(after[part] - before[part]) / took_s:.0%} of a core" for part in PARTS}
        rows.append(row)
        tell(f"{wanted} runs queued: {row}")
    for run in console.instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.QUEUED])):
        console.instance.delete_run(run.run_id)
    console.instance.event_log_storage.set_concurrency_slots(POOL_POSTGRES_IO, 1)
    return rows


def measure_verdicts(sizes: Sequence[int]) -> Rows:
    """Return what judging this many databases takes, and what the check's evaluation weighs; each proof writes one."""
    from dagster_shared.serdes import serialize_value

    rows: Rows = []
    now = datetime.now(UTC).replace(microsecond=0)
    for databases in sizes:
        names = [f"tiny_{number:04}" for number in range(databases)]
        catalog = _catalog(names, now)
        key = dg.AssetCheckKey(DATABASES.backup_key, CHECK_NAME)
        began_s = time.perf_counter()
        judgement = judge_repository(key, catalog, names, timedelta(days=30), now)
        took_s = time.perf_counter() - began_s
        with dg.DagsterInstance.ephemeral() as instance:
            size = len(serialize_value(evaluation_of(judgement, kind=DATABASES, instance=instance)))
        rows.append(
            {
                "databases": databases,
                "backups": len(catalog.backups),
                "judge_s": round(took_s, 2),
                "evaluation_kib": round(size / 1024),
                "mib_for_a_proof_of_each": round(2 * databases * size / 2**20),  # two checks are judged after each
            }
        )
        tell(f"{databases} databases judged in {took_s:.2f} s")
    return rows


def _catalog(names: Sequence[str], now: datetime) -> Catalog:
    backups = [_entry(name, day, now) for day in range(HISTORY_DAYS) for name in names]
    return Catalog(tuple(backups), (), 0, 9 * len(backups), now)


def _entry(name: str, day: int, now: datetime) -> CatalogEntry:
    """Return the row of a proven backup that was taken `day` days ago."""
    at = now - timedelta(days=day, hours=1)
    digest = hashlib.sha256(f"{name} {day}".encode())
    proven_at = at + timedelta(minutes=10)
    return CatalogEntry(
        place=place_of(at, database=name, number=int.from_bytes(digest.digest()[:3], "big")),
        size_bytes=10_000,
        listing_digest=digest.digest(),
        finished_at=at,
        database_time=at,
        source_size_bytes=7_000_000,
        item_count=ROWS,
        duration_s=1.0,
        is_encrypted=False,
        not_in_backup=(),
        proven_at=proven_at,
        last_verdict=Verdict.PROVEN,
        last_proof_at=proven_at,
        restore_s=1.0,
        not_attempted_at=None,
        doubt="",
        pins=(),
        held_at=None,
        unreadable_reason="",
        outcome="restored and equal in every row",
    )


# ---- shared


def console_of(site: Site, *, webserver: bool = False) -> Any:
    return start_console(site.state_dir, site.spec_path, webserver=webserver)


def hold_sensors(console: Console) -> None:
    _each_sensor(
        console,
        lambda instance, sensor: instance.stop_sensor(sensor.get_remote_origin_id(), sensor.selector_id, sensor),
    )


def release_sensors(console: Console) -> None:
    _each_sensor(console, lambda instance, sensor: instance.start_sensor(sensor))


def _each_sensor(console: Console, act: Callable[[Any, Any], None]) -> None:
    """Stop or start the sensors that ask for runs, so that these come when they are measured."""
    with open_workspace(console.instance, console.service.home.workspace) as workspace:
        location = workspace.create_request_context().get_code_location("synapse_ops")
        for sensor in location.get_repository("__repository__").get_sensors():
            if sensor.name.endswith("_repository_sensor"):
                act(console.instance, sensor)


def ask(site: Site, statement: str, values: Sequence[object] = ()) -> list[Any]:
    """Ask Dagster's storage."""
    url = (site.state_dir / "secrets" / "dagster-storage.url").read_text(encoding="utf-8").strip()
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement, list(values)).fetchall()


def _newest_event(site: Site) -> int:
    return int(ask(site, "SELECT coalesce(max(id), 0) FROM event_logs")[0][0])


def events_since(site: Site, newest: int) -> Rows:
    """Return how many events of each kind and asset were written after one, and how large they are on average."""
    rows = ask(
        site,
        "SELECT coalesce(dagster_event_type, 'log line'), coalesce(asset_key, ''), count(*), avg(octet_length(event)) "
        "FROM event_logs WHERE id > %s GROUP BY 1, 2 ORDER BY sum(octet_length(event)) DESC LIMIT 12",
        [newest],
    )
    return [
        {"kind": kind, "asset": asset, "rows": count, "mean_bytes": round(mean)} for kind, asset, count, mean in rows
    ]


def table_sizes(site: Site) -> Rows:
    rows = ask(
        site,
        "SELECT relname, n_live_tup, pg_total_relation_size(relid) FROM pg_stat_user_tables ORDER BY 3 DESC LIMIT 6",
    )
    return [{"table": name, "rows": count, "mib": round(size / 2**20, 1)} for name, count, size in rows]


class _Report:
    """Prints each table as soon as it is measured, and keeps it for the JSON."""

    def __init__(self, found: dict[str, object]) -> None:
        self._found = found

    def add(self, title: str, rows: Rows) -> None:
        kept: Any = self._found.setdefault(title, [])
        kept += rows
        columns = list(dict.fromkeys(name for row in rows for name in row))
        lines = [columns, *([str(row.get(name, "")) for name in columns] for row in rows)]
        widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
        print(f"\n{title} (load {os.getloadavg()[0]:.1f})")
        for line in lines:
            print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        sys.stdout.flush()


def tell(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--databases", type=int, default=200)
    parser.add_argument("--collections", type=int, default=50)
    parser.add_argument("--runs", type=int, default=200, help="dumps with the shipped limits")
    parser.add_argument("--compare-runs", type=int, default=60, help="dumps with each of the higher limits")
    parser.add_argument("--history", type=int, default=7, help="days of a proven backup of each database")
    parser.add_argument("--minutes", type=float, default=10, help="the measured stretch in which nothing happens")
    parser.add_argument(
        "--queued", type=int, nargs="+", default=QUEUED, help="lengths of the queue that nothing leaves"
    )
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this one; may be repeated")
    return parser.parse_args()


if __name__ == "__main__":
    main()
