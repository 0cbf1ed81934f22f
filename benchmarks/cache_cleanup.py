"""What a cache cleanup costs a Redis of a million keys, and what its other clients notice.

    python benchmarks/cache_cleanup.py [KEYS]

Prints the processor time of the server for the plan, how long each script held it, and the ping of another process
meanwhile. Wall-clock figures mean something on a quiet host only.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import redis

from synapse_ops.local.servers.redis import find_redis
from synapse_ops.operations.cleanup.cache import apply_cache_plan, make_cache_plan
from synapse_ops.spec import Spec
from synapse_ops.systems.host.processes import free_ports

PING = """
import redis, sys, time
client, taken = redis.Redis(port=int(sys.argv[1])), []
print("ready", flush=True)
while not client.exists("stop"):
    begun = time.perf_counter()
    client.ping()
    taken.append(time.perf_counter() - begun)
    time.sleep(0.0005)
taken.sort()
p50, p99 = (taken[len(taken) * part // 100] * 1e3 for part in (50, 99))
print(f"pings {len(taken)}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
"""
IDLE_S = 2


def main(keys: int) -> None:
    [port] = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--port", str(port), "--save", "", "--dir", folder, "--maxmemory-policy", "allkeys-lru"]
        server = subprocess.Popen([str(find_redis()), *arguments], stdout=subprocess.DEVNULL)
        try:
            measure(
                redis.Redis(port=port, retry=redis.retry.Retry(redis.backoff.ConstantBackoff(0.1), 50)), keys, folder
            )
        finally:
            server.terminate()
            server.wait()


def measure(client: redis.Redis, keys: int, folder: str) -> None:
    port = client.connection_pool.connection_kwargs["port"]
    for start in range(0, keys, 10_000):
        client.mset({f"cache:{number}": "x" * 20 for number in range(start, min(start + 10_000, keys))})
    time.sleep(IDLE_S + 1)
    whole = Spec()
    cache = whole.cleanup.cache.model_copy(update={"retention": timedelta(seconds=IDLE_S)})
    spec = whole.model_copy(
        update={
            "redis": whole.redis.model_copy(update={"host": "127.0.0.1", "port": port}),
            "cleanup": whole.cleanup.model_copy(update={"cache": cache}),
        }
    )
    other = subprocess.Popen([sys.executable, "-c", PING, str(port)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    other.stdout.readline()
    client.config_resetstat()
    before, begun = client.info("cpu"), time.perf_counter()
    plan = make_cache_plan(spec, Path(folder), datetime.now(UTC))
    plan_s, after = time.perf_counter() - begun, client.info("cpu")
    cpu_s = sum(after[name] - before[name] for name in ("used_cpu_user", "used_cpu_sys"))
    script_us = client.info("commandstats")["cmdstat_evalsha"]["usec_per_call"]
    begun = time.perf_counter()
    outcome = apply_cache_plan(plan.digest, spec, Path(folder), datetime.now(UTC))
    print(f"plan of {plan.totals['deleted']:,} keys: {plan_s:.2f} s, server {cpu_s:.2f} s of processor, pings included")
    print(f"apply: {time.perf_counter() - begun:.2f} s, {outcome.done}, {outcome.skipped} left alone")
    print(f"script of the plan: {script_us:.0f} us on average")
    client.set("stop", 1)
    print(other.communicate()[0].strip())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
