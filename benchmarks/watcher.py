"""What the watcher of a failover costs while nothing happens: its one-second sessions, here and at both servers.

    python -m benchmarks.watcher --minutes 10

Starts an embedded stack in a directory of its own, and removes it. The watcher measured is a second one, alone in a
process, so that the prober's other questions do not count. Processor time, so that what others do on the host does not
either; memory is sampled, to see whether it grows.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import psycopg

from synapse_ops.local.embedded_stack import start_stack, stop_stack
from synapse_ops.local.failover_place import embedded_place
from synapse_ops.local.layout import find_layout
from synapse_ops.operations.health.server_probes import node_conninfo
from synapse_ops.operations.stack import Stack, open_stack
from synapse_ops.services.prober.failover_watch import APPLICATION_NAME, FailoverWatch

WARM_UP_S = 30.0
SAMPLE_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--watch", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.watch is not None:
        stack = open_stack(find_layout(chosen.watch).spec_file, chosen.watch)
        FailoverWatch(lambda: stack, chosen.watch, embedded_place(chosen.watch)).run()
        return
    folder = Path(tempfile.mkdtemp(prefix="synapse-bench-", dir="/var/tmp"))
    folder.chmod(0o755)
    state_dir = folder / "state"
    try:
        start_stack(state_dir)
        measure(state_dir, chosen.minutes * 60)
    finally:
        stop_stack(state_dir)
        shutil.rmtree(folder, ignore_errors=True)


def measure(state_dir: Path, seconds: float) -> None:
    stack = open_stack(find_layout(state_dir).spec_file, state_dir)
    child = subprocess.Popen([sys.executable, "-m", "benchmarks.watcher", "--watch", str(state_dir)])
    try:
        time.sleep(WARM_UP_S)
        watcher = psutil.Process(child.pid)
        servers = [psutil.Process(pid) for pid in backends(stack, watcher)]
        before, began_s = [cpu_s(watcher), *map(cpu_s, servers)], time.monotonic()
        memory = [watcher.memory_full_info().pss]
        while time.monotonic() - began_s < seconds:
            time.sleep(SAMPLE_S)
            memory.append(watcher.memory_full_info().pss)
        elapsed_s = time.monotonic() - began_s
        used = [now - then for now, then in zip([cpu_s(watcher), *map(cpu_s, servers)], before, strict=True)]
    finally:
        child.terminate()
        child.wait()
    shares = [used[0] / elapsed_s, sum(used[1:]) / elapsed_s]
    print(f"the watcher: {shares[0]:.2%} of a core; its {len(servers)} sessions at the servers: {shares[1]:.2%}")
    first, last = memory[0] / 2**20, memory[-1] / 2**20
    print(f"memory: {first:.1f} MiB, after {elapsed_s:.0f} s {last:.1f} MiB, most {max(memory) / 2**20:.1f} MiB")


def backends(stack: Stack, watcher: psutil.Process) -> set[int]:
    """Return the pids of a watcher's sessions at both servers, which are on this host."""
    found: set[int] = set()
    ports = [one.laddr.port for one in watcher.net_connections()]
    for node in stack.spec.failover.nodes:
        with psycopg.connect(node_conninfo(stack, node)) as connection:
            query = "select pid from pg_stat_activity where application_name = %s and client_port = any(%s)"
            found |= {pid for (pid,) in connection.execute(query, [APPLICATION_NAME, ports])}
    return found


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    main()
