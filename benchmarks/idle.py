"""What Dagster costs while nothing happens: processor, memory, connections, commits and log of an idle stack.

    python -m benchmarks.idle --state-dir DIR --minutes 10

DIR: of a stack that `synapse-ops ui` serves, on this host, with its storage on the embedded server `ops`. Processor
time is that of each process with all its children, so that what others do on the host does not count.
"""

from __future__ import annotations

import argparse
import time
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg

PARTS = {
    "code server": "api grpc",
    "daemon": "dagster._daemon",
    "webserver": "services.dagster.webserver",
    "storage server": "/data/ops",
    "prober": "synapse_ops.services.watch",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    chosen = parser.parse_args()
    state_dir = chosen.state_dir.resolve()
    before, counts = cpu_s(state_dir), counters(state_dir)
    began_s = time.monotonic()
    time.sleep(chosen.minutes * 60)
    elapsed_s = time.monotonic() - began_s
    after, later = cpu_s(state_dir), counters(state_dir)
    for part in PARTS:
        share = (after[part] - before[part]) / elapsed_s
        print(f"{part}: {share:.2%} of a core, {memory_bytes(state_dir, part) / 2**20:.0f} MiB")
    all_but_prober = sum(after[part] - before[part] for part in PARTS if part != "prober")
    print(f"all but the prober: {all_but_prober / elapsed_s:.2%} of a core")
    for name, value in later.items():
        print(f"{name}: {(value - counts[name]) / elapsed_s:.2f} per second")


def processes(state_dir: Path, part: str) -> list[psutil.Process]:
    """Return the processes of one part, each with all below it."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            is_ours = str(state_dir) in line or process.environ().get("SYNAPSE_STATE_DIR") == str(state_dir)
            if PARTS[part] in line and is_ours:
                found |= {one.pid: one for one in (process, *process.children(recursive=True))}
        except psutil.Error:
            continue
    return list(found.values())


def cpu_s(state_dir: Path) -> dict[str, float]:
    """Return the processor time of each part so far; that of children that ended is in their parent's."""
    found = dict.fromkeys(PARTS, 0.0)
    for part in PARTS:
        for one in processes(state_dir, part):
            with suppress(psutil.Error):
                times = one.cpu_times()
                found[part] += times.user + times.system + times.children_user + times.children_system
    return found


def memory_bytes(state_dir: Path, part: str) -> int:
    total = 0
    for one in processes(state_dir, part):
        with suppress(psutil.Error):  # a connection's process that has just ended
            total += one.memory_full_info().pss
    return total


def counters(state_dir: Path) -> dict[str, float]:
    """Return what the storage server and the logs have counted so far."""
    url = (state_dir / "secrets" / "dagster-storage.url").read_text(encoding="utf-8").strip()
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(
            "select xact_commit, sessions, (select count(*) from job_ticks where status = 'SKIPPED'), "
            "(select count(*) from event_logs) from pg_stat_database where datname = current_database()"
        ).fetchone()
    assert row is not None
    logs = sum(path.stat().st_size for path in (state_dir / "dagster" / "logs").glob("*.log"))
    return dict(zip(("commits", "sessions", "skipped ticks", "events"), map(float, row), strict=True)) | {
        "log bytes": float(logs)
    }


if __name__ == "__main__":
    main()
