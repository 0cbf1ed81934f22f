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
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.scale_daemon import hold_sensors, measure_idle, measure_queue, measure_ticks, release_sensors
from benchmarks.scale_definitions import measure_load, measure_verdicts
from benchmarks.scale_pages import measure_pages
from benchmarks.scale_runs import lane_limit, measure_dumps, measure_proofs
from benchmarks.scale_site import Site, running_site, write_history
from benchmarks.scale_storage import Rows, table_sizes, tell
from synapse_ops.defs.backup.kinds import DATABASES
from synapse_ops.services.dagster.console import start_console
from synapse_ops.systems.log_output import configure_logging

STAGES = ("load", "dumps", "proofs", "ticks", "idle", "pages", "queue", "break")
WITHOUT_SERVERS = {"load", "break"}
LOADS = ((1, 1), (50, 10), (200, 50))
FURTHER = (400, 800, 1600, 3200)
LIMITS = (2, 4)  # of the pool and the lane, after the shipped ones
ROUNDS = 15
QUEUED = (200, 800)


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


def console_of(site: Site, *, webserver: bool = False) -> Any:
    return start_console(site.state_dir, site.spec_path, webserver=webserver)


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
