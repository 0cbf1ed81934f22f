"""The WAL receiver's part of `benchmarks.physical`: its CPU, from commit to durable, and what a writer feels of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg

from benchmarks.dump import MIB, PASSWORD, URL, Servers
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.systems.s3.store import ObjectStore

SEGMENT_BYTES = 16 * MIB
CHUNK_TARGET_MS, P50_TARGET_S, P99_TARGET_S, SLOWER_TARGET = 5.0, 0.7, 1.2, 3.0
COMMITS_PER_S = 5


def report(rows: Sequence[tuple[str, float, float, str]]) -> bool:
    """Print measured values with their aims; return whether all were met."""
    for name, value, target, unit in rows:
        print(
            f"  {name}: {value:.2f}{unit}, aim {target:g}{unit}: {'met' if value <= target else 'MISSED'}", flush=True
        )
    return all(value <= target for _, value, target, _ in rows)


@contextmanager
def receiver(servers: Servers, spec: Path) -> Iterator[psutil.Process]:
    """Run our receiver while the block lasts; it is up once it has stored something."""
    state = servers.folder / "state"
    argv = [sys.executable, "-m", "synapse_ops.services.wal_receiver", "--spec", str(spec), "--state-dir", str(state)]
    with (servers.folder / "receiver.log").open("ab") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=Path(__file__).parents[1])
    try:
        deadline = time.monotonic() + 60
        while not (health := said(servers)).get("healthy"):
            if time.monotonic() > deadline or process.poll() is not None:
                sys.exit(
                    f"the receiver did not begin: {health}, {(servers.folder / 'receiver.log').read_text()[-800:]}"
                )
            time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def said(servers: Servers) -> dict[str, object]:
    """Return what the receiver's /health says; empty while it is not there."""
    try:
        url = json.loads((servers.folder / "state" / "wal" / "address.json").read_text())["url"]
        with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
            return dict(json.loads(reply.read()))
    except (OSError, ValueError):
        return {}


def counts(servers: Servers, name: str) -> float:
    """Return one of the receiver's counters."""
    url = json.loads((servers.folder / "state" / "wal" / "address.json").read_text())["url"]
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as reply:
        lines = reply.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"synapse_ops_wal_{name}_total ")))


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def execute(servers: Servers, statement: str, database: str = "text") -> object:
    with psycopg.connect(servers.conninfo(database), autocommit=True) as connection:
        found = connection.execute(statement)  # type: ignore[call-overload]
        row = found.fetchone() if found.description else None
    return row[0] if row else None


def wait_stored(servers: Servers) -> None:
    """Wait until everything that is written is durable."""
    written = Lsn.parse(str(execute(servers, "select pg_current_wal_flush_lsn()::text")))
    query = "select flush_lsn::text from pg_stat_replication where application_name = 'synapse-ops wal'"
    deadline = time.monotonic() + 300
    while Lsn.parse(str(execute(servers, query) or "0/0")) < written:
        if time.monotonic() > deadline:
            sys.exit(f"WAL was not stored: {said(servers)}")
        time.sleep(0.05)


def environment(servers: Servers) -> dict[str, str]:
    access = servers.access
    return {
        **servers.postgres.tools.environment(),
        "PATH": os.environ["PATH"],
        "PGPASSWORD": PASSWORD,
        "AWS_ACCESS_KEY_ID": access.access_key or "",
        "AWS_SECRET_ACCESS_KEY": access.secret_key or "",
        "AWS_DEFAULT_REGION": access.region,
        "AWS_ENDPOINT_URL": access.endpoint or "",
    }


def client(servers: Servers, *extra: str) -> list[str]:
    return ["-h", "127.0.0.1", "-p", str(servers.postgres.port), "-U", "postgres", *extra]


def measure_wal(servers: Servers, process: psutil.Process, segments: int, barman: Path | None) -> bool:
    """Our CPU for WAL under load; barman's for the same segments, one by one."""
    checked = ObjectStore(URL, servers.access).features.keeps_checksums
    wait_stored(servers)
    begun_s, begun = cpu_s(process), Lsn.parse(str(execute(servers, "select pg_current_wal_lsn()::text")))
    execute(servers, "create table if not exists written (id bigint, body text, meta jsonb)")
    rows = """select n, concat_ws(' ', md5(n::text), 'the', md5((n * 7)::text), 'of', 'a', 'row'),
                     jsonb_build_object('key', n, 'tag', md5((n * 3)::text), 'score', n % 1000)
                from generate_series(1, 50000) n"""
    size = 0
    while size < segments * SEGMENT_BYTES:
        execute(servers, f"insert into written {rows}")
        size = Lsn.parse(str(execute(servers, "select pg_current_wal_lsn()::text"))) - begun
    wait_stored(servers)
    cpu_ms = (cpu_s(process) - begun_s) * 1000 / (size / SEGMENT_BYTES)
    if barman is not None:
        files = sorted((servers.postgres.data_dir / "pg_wal").glob("0000000100*"))[:8]
        before = os.times()
        for file in files:
            argv = [barman / "barman-cloud-wal-archive", "--endpoint-url", servers.access.endpoint, "--gzip"]
            command = [*map(str, argv), "s3://benchmark/barman", "main", str(file)]
            subprocess.run(command, env=environment(servers), check=True)
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        print(f"  barman-cloud-wal-archive: {used * 1000 / len(files):.0f} ms of CPU for 16 MiB")
    store = "keeps checksums" if checked else "keeps no checksums: what is stored is read back"
    return report([(f"CPU for 16 MiB of WAL (the store {store})", cpu_ms, 90 if checked else 120, " ms")])


def measure_commits(servers: Servers, process: psutil.Process, number: int) -> bool:
    """From a commit to its WAL being durable, as the server hears it, at a steady slow rate; CPU for a chunk."""
    wait_stored(servers)
    execute(servers, "create table if not exists steady (n int)")
    begun_s, chunks = cpu_s(process), counts(servers, "chunks")
    waiting: list[tuple[Lsn, float]] = []
    took_s: list[float] = []
    query = "select flush_lsn::text from pg_stat_replication where application_name = 'synapse-ops wal'"
    with psycopg.connect(servers.conninfo("text"), autocommit=True) as connection:
        next_s = time.monotonic()
        done = 0
        while len(took_s) < number:
            now = time.monotonic()
            if done < number and now >= next_s:
                connection.execute("insert into steady values (%s)", [done])
                row = connection.execute("select pg_current_wal_insert_lsn()::text").fetchone()
                waiting.append((Lsn.parse(row[0] if row else "0/0"), now))
                done, next_s = done + 1, next_s + 1 / COMMITS_PER_S
            row = connection.execute(query).fetchone()
            durable, now = Lsn.parse(row[0] if row and row[0] else "0/0"), time.monotonic()
            took_s += [now - at for lsn, at in waiting if lsn <= durable]
            waiting = [one for one in waiting if one[0] > durable]
            time.sleep(0.005)
    made = counts(servers, "chunks") - chunks
    took_s.sort()
    p50, p99 = took_s[len(took_s) // 2], took_s[int(len(took_s) * 0.99)]
    print(f"  {number} commits, {made:.0f} chunks, slowest {took_s[-1]:.2f} s")
    return report(
        [
            ("commit to durable, p50", p50, P50_TARGET_S, " s"),
            ("commit to durable, p99", p99, P99_TARGET_S, " s"),
            (
                "CPU for a chunk, the idle loop included",
                (cpu_s(process) - begun_s) * 1000 / made,
                CHUNK_TARGET_MS,
                " ms",
            ),
        ]
    )


def tps(servers: Servers, seconds: int) -> float:
    argv = [servers.postgres.tools.path("pgbench"), *client(servers), "-n", "-N", "-c", "2", "-T", str(seconds), "text"]
    done = subprocess.run(list(map(str, argv)), env=environment(servers), capture_output=True, text=True, check=True)
    return float(next(line.split()[2] for line in done.stdout.splitlines() if line.startswith("tps = ")))


def compare_writers(servers: Servers, spec: Path, seconds: int, rounds: int) -> bool:
    """A writer's rate without a receiver, with pg_receivewal, with ours; and what each receiver costs."""
    tools = servers.postgres.tools
    argv = [tools.path("pgbench"), *client(servers), "-i", "-q", "-s", "10", "text"]
    subprocess.run(list(map(str, argv)), env=environment(servers), capture_output=True, check=True)
    none, theirs, ours = [], [], []
    for _ in range(rounds):
        none.append(tps(servers, seconds))
        directory = servers.folder / "received"
        directory.mkdir(exist_ok=True)
        argv = [tools.path("pg_receivewal"), *client(servers), "-D", directory, "--no-sync"]
        process = subprocess.Popen(list(map(str, argv)), env=environment(servers), stderr=subprocess.DEVNULL)
        theirs.append(tps(servers, seconds))
        process.terminate()
        process.wait()
        shutil.rmtree(directory)
        with receiver(servers, spec):
            wait_stored(servers)
            ours.append(tps(servers, seconds))
    print(f"  tps without {_rates(none)}, with pg_receivewal {_rates(theirs)}, with ours {_rates(ours)}")
    slower = {name: (1 - max(rows) / max(none)) * 100 for name, rows in (("pg_receivewal", theirs), ("ours", ours))}
    return report(
        [
            (
                "a writer slower than with pg_receivewal",
                slower["ours"] - slower["pg_receivewal"],
                SLOWER_TARGET,
                " points",
            )
        ]
    )


def _rates(rows: Sequence[float]) -> str:
    return "/".join(f"{row:.0f}" for row in rows)
