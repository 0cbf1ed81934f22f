"""What a commit costs that waits for the repository: its time with the waiting off and on, by turns, on one server.

    python -m benchmarks.synchronous [--commits 500] [--rounds 5]

One writer, one row each, PostgreSQL with fsync, the store on the same host. Aim: p50 at most 25 times as long.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from datetime import UTC, datetime

import psycopg

from benchmarks.dump import URL, Servers, running_servers, write_spec
from benchmarks.wal import counts, receiver
from synapse_ops.domain.database.synchronous import unprotected
from synapse_ops.operations.database.synchronous import read_report, turn_off, turn_on
from synapse_ops.operations.stack import Stack, open_stack

MOST_RATIO = 25.0


def commits_ms(servers: Servers, number: int) -> list[float]:
    """Return how long each of so many commits took, in ms."""
    took = []
    with psycopg.connect(servers.conninfo("text"), autocommit=True) as connection:
        for n in range(number):
            began_s = time.perf_counter()
            connection.execute("insert into waited values (%s)", [n])
            took.append((time.perf_counter() - began_s) * 1000)
    return took


def wait_protected(stack: Stack) -> None:
    deadline_s = time.monotonic() + 60
    while fault := unprotected(read_report(stack).found):
        if time.monotonic() > deadline_s:
            sys.exit(fault)
        time.sleep(0.1)


def main() -> None:
    """Print both distributions, their ratio, and how many objects a second the waiting makes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commits", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with running_servers(fsync=True, wal_level="replica", max_wal_senders=10) as servers:
        with psycopg.connect(servers.conninfo("postgres"), autocommit=True) as connection:
            connection.execute("create database text")
        with psycopg.connect(servers.conninfo("text"), autocommit=True) as connection:
            connection.execute("create table waited (n int)")
        spec = write_spec(servers, "text")
        spec.write_text(spec.read_text().replace(f"'{URL}'", f"'{URL}', wal: {{synchronous: true}}"))
        stack = open_stack(spec, servers.folder / "state")
        with receiver(servers, spec):
            without, waiting, puts = [], [], []
            for _ in range(given.rounds):
                turn_off(stack, datetime.now(UTC))
                without += commits_ms(servers, given.commits)
                turn_on(stack)
                wait_protected(stack)
                before, began_s = counts(servers, "chunks"), time.monotonic()
                waiting += commits_ms(servers, given.commits)
                puts.append((counts(servers, "chunks") - before) / (time.monotonic() - began_s))
    for name, took in (("primary's disk", without), ("repository", waiting)):
        hundredths = statistics.quantiles(took, n=100)
        print(f"  commits that wait for the {name}: p50 {hundredths[49]:.2f} ms, p99 {hundredths[98]:.2f} ms")
    ratio = statistics.median(waiting) / statistics.median(without)
    print(f"  {ratio:.1f} times as long, aim {MOST_RATIO:g}; {statistics.median(puts):.0f} objects a second")
    sys.exit(ratio > MOST_RATIO)


if __name__ == "__main__":
    main()
