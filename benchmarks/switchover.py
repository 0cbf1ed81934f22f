"""`synapse-ops switchover` under load: how long nobody could write, and what clients noticed that retry for 3 s.

    python -m benchmarks.switchover                     3 rounds, 8 clients
    python -m benchmarks.switchover --rounds 20 --clients 2

Starts an embedded stack in a directory of its own, and removes it. Each client commits a row every 5 ms through the
application's address; one that fails opens a new connection and tries the same row again, and counts an error once that
took 3 s. Seconds without writes are the longest time in which none of the clients was acknowledged anything. Exit 1
when an acknowledged row is gone, or a switchover was not done.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import psutil
import psycopg

from benchmarks.failover import ended, temporary_stack, until
from synapse_ops.domain.failover.transitions import State
from synapse_ops.local.layout import find_layout
from synapse_ops.local.servers.api import conninfo_file
from synapse_ops.operations.failover.ledger import Asked, Ledger, Request
from synapse_ops.operations.failover.status import read_status

RETRIES_S = 3.0
PAUSE_S = 0.005
AFTER_S = 1.0  # of load behind the end


class Client:
    """acknowledged: number and monotonic time; errors: rows that were given up after RETRIES_S."""

    def __init__(self, conninfo: str, first: int, stopping: threading.Event) -> None:
        self.conninfo, self.first, self.stopping = conninfo, first, stopping
        self.acknowledged: list[tuple[int, float]] = []
        self.errors, self.retried = 0, 0
        self.connection: psycopg.Connection[tuple[object, ...]] | None = None
        self.thread = threading.Thread(target=self.work)

    def work(self) -> None:
        number = self.first
        while not self.stopping.wait(PAUSE_S):
            number += 1
            began_s = time.monotonic()
            while not self.write(number):
                self.retried += 1
                if time.monotonic() - began_s > RETRIES_S:
                    self.errors += 1
                    break
                self.stopping.wait(0.02)

    def write(self, number: int) -> bool:
        try:
            if self.connection is None or self.connection.closed:
                self.connection = psycopg.connect(self.conninfo, autocommit=True)
            self.connection.execute("insert into switchover_benchmark values (%s) on conflict do nothing", [number])
        except psycopg.Error:
            if self.connection is not None:
                self.connection.close()
            return False
        self.acknowledged.append((number, time.monotonic()))
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=8)
    chosen = parser.parse_args()
    with temporary_stack() as state_dir:
        is_kept = measure(state_dir, chosen.rounds, chosen.clients)
    sys.exit(0 if is_kept else 1)


def measure(state_dir: Path, rounds: int, count: int) -> bool:
    """Print each round and what they come to; return whether all were done and nothing was lost."""
    layout = find_layout(state_dir)
    ledger, conninfo = Ledger.of(layout.root), conninfo_file(layout).read_text().strip()
    with psycopg.connect(conninfo) as connection:
        connection.execute("create table switchover_benchmark (n bigint primary key)")
    stopping = threading.Event()
    clients = [Client(conninfo, number << 40, stopping) for number in range(count)]
    for client in clients:
        client.thread.start()
    without, done = [], 0
    try:
        for number in range(rounds):
            until(lambda: read_status(layout.root, datetime.now(UTC)).is_armed, "armed")
            before, asked_s = len(ledger.incidents()), time.monotonic()
            rows = sum(len(client.acknowledged) for client in clients)
            stopping.wait(AFTER_S)
            rate = (sum(len(client.acknowledged) for client in clients) - rows) / AFTER_S
            ledger.ask(Request(datetime.now(UTC), Asked.SWITCHOVER))
            incident = until(lambda before=before: ended(ledger, before), "the switchover has ended")
            done += incident.state is State.DONE
            stopping.wait(AFTER_S)
            times = sorted(at for client in clients for _, at in client.acknowledged if at > asked_s)
            without.append(max(later - earlier for earlier, later in pairwise(times)))
            if incident.state is State.DONE:
                until(lambda incident=incident: ledger.rejoin(incident.id) is not None, "the old primary is back")
            steps = " ".join(f"{step} {value:.2f}" for step, value in incident.phases_s().items())
            load = psutil.getloadavg()[0]
            print(
                f"{number + 1:3} {incident.state}: {without[-1]:.2f} s without writes at {rate:.0f} commits/s", end=""
            )
            print(f" ({steps}); load {load:.1f} {incident.facts.get('reason', '')}")
    finally:
        stopping.set()
        for client in clients:
            client.thread.join()
    with psycopg.connect(conninfo) as connection:
        there = {number for (number,) in connection.execute("select n from switchover_benchmark").fetchall()}
    acknowledged = {number for client in clients for number, _ in client.acknowledged}
    lost = len(acknowledged - there)
    print(
        f"seconds without writes: p50 {statistics.median(without):.2f}, max {max(without):.2f}; done {done} of {rounds}"
    )
    print(f"errors of {count} clients that retry for {RETRIES_S:g} s: {sum(client.errors for client in clients)}")
    print(f"statements tried again: {sum(client.retried for client in clients)}")
    print(f"acknowledged and not there: {lost} of {len(acknowledged)}")
    return lost == 0 and done == rounds


if __name__ == "__main__":
    main()
