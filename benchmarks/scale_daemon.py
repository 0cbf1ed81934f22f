"""What ticks take, an idle stretch, and a queue that nothing leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from dagster import DagsterRunStatus, RunsFilter

from benchmarks.idle import PARTS, counters, cpu_s, memory_bytes
from benchmarks.scale_runs import wait_until_done
from benchmarks.scale_site import Site
from benchmarks.scale_storage import Rows, ask, events_since, newest_event, tell
from synapse_ops.defs.policies import POOL_POSTGRES_IO
from synapse_ops.services.dagster.console import Console
from synapse_ops.systems.dagster_storage import open_workspace

QUEUE_STRETCH_S = 30.0
DAY_S = 86_400


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
    before, counts, newest, began_s = cpu_s(site.state_dir), counters(site.state_dir), newest_event(site), time.time()
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
