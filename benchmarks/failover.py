"""From kill -9 of the whole primary to the first acknowledged write through the application's address.

    python -m benchmarks.failover                       20 rounds
    python -m benchmarks.failover --fault freeze        SIGSTOP instead: soft evidence, five seconds more
    python -m benchmarks.failover --fault postmaster    the postmaster alone
    python -m benchmarks.failover --rounds 10 --every-s 60      the soak: `make soak`
    python -m benchmarks.failover --patroni 5           and then the same under Patroni with etcd, five times

Starts an embedded stack in a directory of its own, and removes it. One writer commits a row about every 5 ms and
retries as an application does; what it was acknowledged and is not there afterwards is lost. Commits by the old primary
after the new one's first are counted by the port that took them. Exit 1 when there are such commits, or more
acknowledged rows are gone than the ledger of failover counted as lost.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil
import psycopg

from benchmarks.failover_patroni import measure_patroni
from synapse_ops.domain.failover.incident import Incident
from synapse_ops.local.embedded_stack import start_stack, stop_stack
from synapse_ops.local.failover_place import primary_processes
from synapse_ops.local.layout import find_layout
from synapse_ops.local.servers.api import conninfo_file
from synapse_ops.operations.failover.ledger import Ledger
from synapse_ops.operations.failover.status import read_status

DEADLINE_S = 120.0
FAULTS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "postmaster": signal.SIGKILL}


class Writer:
    """acknowledged: number, monotonic time, port of the node that took it."""

    def __init__(self, conninfo: str) -> None:
        self.conninfo = conninfo
        self.acknowledged: list[tuple[int, float, int]] = []
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.work)

    def work(self) -> None:
        number = 0
        while not self.stopping.is_set():
            with suppress(psycopg.Error), psycopg.connect(self.conninfo, autocommit=True) as connection:
                connection.execute("create table if not exists failover_benchmark (n bigint)")
                while not self.stopping.is_set():
                    number += 1
                    row = connection.execute(
                        "insert into failover_benchmark values (%s) returning inet_server_port()", [number]
                    ).fetchone()
                    assert row is not None
                    self.acknowledged.append((number, time.monotonic(), row[0]))
                    self.stopping.wait(0.005)
            self.stopping.wait(0.02)

    def missing(self) -> int:
        with psycopg.connect(self.conninfo) as connection:
            there = {number for (number,) in connection.execute("select n from failover_benchmark").fetchall()}
        return len({number for number, _, _ in self.acknowledged} - there)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--fault", choices=sorted(FAULTS), default="kill")
    parser.add_argument("--every-s", type=float, default=0, help="seconds from one fault to the next, at least")
    parser.add_argument("--patroni", type=int, default=0, help="rounds under Patroni; `sh requirements/patroni` first")
    chosen = parser.parse_args()
    with temporary_stack() as state_dir:
        is_kept = measure(state_dir, chosen.rounds, chosen.fault, chosen.every_s)
    if chosen.patroni:
        measure_patroni(chosen.patroni, Writer)
    sys.exit(0 if is_kept else 1)


@contextmanager
def temporary_stack() -> Iterator[Path]:
    """Yield the state directory of an embedded stack that runs, and remove it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="synapse-bench-", dir="/var/tmp"))
    folder.chmod(0o755)
    state_dir = folder / "state"
    try:
        start_stack(state_dir)
        yield state_dir
    finally:
        stop_stack(state_dir)
        shutil.rmtree(find_layout(state_dir).root, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def measure(state_dir: Path, rounds: int, fault: str, every_s: float) -> bool:
    """Print each round and what they come to; return whether nothing was written twice or lost uncounted."""
    layout = find_layout(state_dir)
    ledger = Ledger.of(layout.root)
    writer = Writer(conninfo_file(layout).read_text().strip())
    writer.thread.start()
    seconds, late, lost, killed_s = [], 0, 0, 0.0
    try:
        for number in range(rounds):
            until(lambda: read_status(layout.root, datetime.now(UTC)).is_armed, "armed")
            until(lambda: bool(writer.acknowledged), "rows are written")
            if number:
                writer.stopping.wait(killed_s + every_s - time.monotonic())
            before, count = len(ledger.incidents()), len(writer.acknowledged)
            until(lambda count=count: len(writer.acknowledged) > count + 100, "rows are written")
            name, marks = primary_processes(state_dir)
            old_port = writer.acknowledged[-1][2]
            killed_s = time.monotonic()
            for mark in marks[:1] if fault == "postmaster" else marks:
                mark.signal(FAULTS[fault])
            incident = until(lambda before=before: ended(ledger, before), "the incident has ended")
            until(lambda port=old_port: writer.acknowledged[-1][2] != port, "writes go on")
            first_s = next(at for _, at, port in writer.acknowledged if at > killed_s and port != old_port)
            late += sum(at > first_s and port == old_port for _, at, port in writer.acknowledged)
            lost += incident.facts.get("lost_commits", 0)
            seconds.append(first_s - killed_s)
            until(lambda incident=incident: ledger.rejoin(incident.id) is not None, "the old primary is back")
            back = ledger.rejoin(incident.id) or {}
            steps = " ".join(f"{step} {value:.2f}" for step, value in incident.phases_s().items())
            load = psutil.getloadavg()[0]
            print(
                f"{number + 1:3} {name}: {seconds[-1]:.2f} s ({steps}); back {back.get('seconds')} s; load {load:.1f}"
            )
    finally:
        writer.stopping.set()
        writer.thread.join()
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    print(f"{fault}: p50 {statistics.median(ordered):.2f} s, p95 {p95:.2f} s, max {ordered[-1]:.2f} s")
    print(f"commits by the old primary after the new one's first: {late}")
    missing = writer.missing()
    print(f"acknowledged and not there: {missing} of {len(writer.acknowledged)}; by the ledger lost: {lost}")
    return late == 0 and missing <= lost


def ended(ledger: Ledger, before: int) -> Incident | None:
    new = ledger.incidents()[before:]
    return new[0] if new and not new[0].is_open else None


def until(ask, what: str):  # type: ignore[no-untyped-def]
    end_s = time.monotonic() + DEADLINE_S
    while not (found := ask()):
        if time.monotonic() > end_s:
            raise TimeoutError(what)
        time.sleep(0.02)
    return found


if __name__ == "__main__":
    main()
