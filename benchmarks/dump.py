"""The dump against `pg_dump > file && aws s3 cp file`: wall, memory, disk; and the fingerprint against the dump.

    python -m benchmarks.dump                      2 GiB of each kind of data
    python -m benchmarks.dump --size 256MiB --rounds 3 --aws /path/to/aws

Starts its own PostgreSQL and SeaweedFS, and removes them. Two kinds of data: compressible (pgbench's blank filler) and
text-like (words, jsonb, numerics). Each round runs the peer, the backup and the fingerprint alone; ratios are of
the fastest of each. Memory is PSS of the operation and pg_dump together, disk is what both wrote to any
file system (/proc/PID/io): Linux only. Without `aws`, boto3's upload_file stands in for it, and that is said.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg

from synapse_ops.local.servers.s3 import LISTENERS, SeaweedServer, find_weed
from synapse_ops.systems.host.processes import free_ports, make_private_dir, reachable_by, server_identity
from synapse_ops.systems.postgres.programs import find_pg_tools
from synapse_ops.systems.postgres.server import PgServer, make_socket_dir
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess

MIB = 1024 * 1024
SAMPLE_S = 0.05
PASSWORD = secrets.token_hex(8)
URL = "s3://benchmark/database/"
TARGETS = {"compressible": 0.35, "text": 0.75}
MEMORY_TARGET_MIB, DISK_TARGET_MIB, FINGERPRINT_TARGET = 300, 32, 0.6

_COMPRESSIBLE = """
CREATE TABLE accounts (aid int, bid int, abalance int, filler char(84));
INSERT INTO accounts SELECT n, n / 100000, 0, '' FROM generate_series(1, {rows}) n;
ALTER TABLE accounts ADD PRIMARY KEY (aid)"""
_TEXT = """
CREATE TABLE documents (id bigint, body text, meta jsonb, price numeric);
INSERT INTO documents
SELECT n, concat_ws(' ', md5(n::text), 'the', md5((n * 7)::text), 'of', md5((n * 13)::text)),
       jsonb_build_object('key', n, 'tag', md5((n * 3)::text), 'score', n % 1000), (n % 100000) / 100.0
  FROM generate_series(1, {rows}::bigint) n;
ALTER TABLE documents ADD PRIMARY KEY (id)"""
DATA = {"compressible": (164, _COMPRESSIBLE), "text": (296, _TEXT)}  # bytes of a row with its index entry


@dataclass(frozen=True)
class Measured:
    """wall_s of one run; peak_mib: PSS; disk_mib: bytes written to file systems."""

    wall_s: float
    peak_mib: float = 0.0
    disk_mib: float = 0.0


@dataclass(frozen=True)
class Servers:
    postgres: PgServer
    access: StoreAccess
    folder: Path

    def conninfo(self, database: str) -> str:
        return self.postgres.conninfo(database, "postgres", password=PASSWORD, host="127.0.0.1")


@contextmanager
def running_servers(**settings: object) -> Iterator[Servers]:
    """A PostgreSQL and a SeaweedFS of their own, stopped and removed at the end. settings: more of PostgreSQL's."""
    folder = Path(tempfile.mkdtemp(prefix="synapse-bench-", dir="/var/tmp"))  # /tmp may be in memory
    folder.chmod(0o755)
    identity = server_identity()
    make_private_dir(folder / "servers", identity)
    weed = find_weed()
    weed_identity = identity if reachable_by(identity, weed) else None
    data, s3 = folder / "servers" / "pg", folder / "servers" / "s3"
    [port] = free_ports(1)
    postgres = PgServer(
        tools=find_pg_tools(17),
        identity=identity,
        data_dir=data,
        socket_dir=make_socket_dir(data, identity),
        port=port,
        log_path=folder / "servers" / "pg.log",
        listen=("127.0.0.1",),
        settings={
            "fsync": False,
            "shared_buffers": "512MB",
            "max_wal_size": "4GB",
            "wal_level": "minimal",
            "max_wal_senders": 0,
            **settings,
        },
        hba=(
            "local all all trust",
            "host all all 127.0.0.1/32 scram-sha-256",
            "host replication all 127.0.0.1/32 scram-sha-256",
        ),
    )
    store = SeaweedServer(
        weed=weed,
        identity=weed_identity,
        data_dir=s3,
        socket_dir=make_socket_dir(s3, weed_identity),
        log_path=folder / "servers" / "s3.log",
        ports=dict(zip(LISTENERS, free_ports(len(LISTENERS)), strict=True)),
        access_key="benchmark",
        secret_key=PASSWORD,
    )
    try:
        postgres.init("postgres", PASSWORD, durable=False)
        postgres.start(60)
        store.begin_start()
        store.wait_ready()
        ObjectStore(URL, store.access).create_bucket()
        yield Servers(postgres, store.access, folder)
    finally:
        store.stop(5)
        postgres.stop("immediate")
        for path in (postgres.socket_dir, store.socket_dir, folder):
            shutil.rmtree(path, ignore_errors=True)


def load(servers: Servers, kind: str, size_bytes: int) -> int:
    """Fill a database of the kind's name until it holds about `size_bytes`; return what it holds."""
    row_bytes, statements = DATA[kind]
    with psycopg.connect(servers.conninfo("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {kind}")
    with psycopg.connect(servers.conninfo(kind), autocommit=True) as connection:
        connection.execute(statements.format(rows=size_bytes // row_bytes))
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    return int(row[0]) if row else 0


def measure(action: Callable[[], subprocess.Popen[bytes]]) -> Measured:
    """Run a child program to its end, sampling it and its own children."""
    begun = time.monotonic()
    process = action()
    peak, written, done = 0, {}, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_S):
            total = 0
            with suppress(psutil.Error):
                root = psutil.Process(process.pid)
                for one in [root, *root.children(recursive=True)]:
                    with suppress(psutil.Error, OSError):
                        rollup = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
                        total += next(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) * 1024
                        written[one.pid] = one.io_counters().write_bytes
            peak = max(peak, total)

    sampler = threading.Thread(target=sample)
    sampler.start()
    status = process.wait()
    wall_s = time.monotonic() - begun
    done.set()
    sampler.join()
    if status:
        sys.exit(f"a measured program ended with status {status}")
    return Measured(wall_s, peak / MIB, sum(written.values()) / MIB)


def run_peer(servers: Servers, kind: str, aws: str | None) -> Measured:
    """pg_dump into a file, then the file into the store, as a script of two lines does it."""
    path = servers.folder / f"{kind}.sql"
    tools = servers.postgres.tools
    environment = {**tools.environment(), "PGPASSWORD": PASSWORD}
    port = servers.postgres.port
    begun = time.monotonic()
    command = [str(tools.path("pg_dump")), "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-f", str(path), kind]
    subprocess.run(command, env=environment, check=True)
    access = servers.access
    if aws:
        keys = {
            "AWS_ACCESS_KEY_ID": access.access_key or "",
            "AWS_SECRET_ACCESS_KEY": access.secret_key or "",
            "AWS_DEFAULT_REGION": access.region,
        }
        target = f"s3://benchmark/peer/{kind}.sql"
        copy = [aws, "--endpoint-url", str(access.endpoint), "s3", "cp", "--only-show-errors", str(path), target]
        subprocess.run(copy, env={**os.environ, **keys}, check=True)
    else:
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=access.endpoint,
            aws_access_key_id=access.access_key,
            aws_secret_access_key=access.secret_key,
            region_name=access.region,
        )
        client.upload_file(str(path), "benchmark", f"peer/{kind}.sql")
    wall_s = time.monotonic() - begun
    size_mib = path.stat().st_size / MIB
    path.unlink()
    return Measured(wall_s, disk_mib=size_mib)


def run_python(servers: Servers, code: str, *arguments: str) -> Measured:
    """Measure a Python process of its own."""
    argv = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "SYNAPSE_LOG_LEVEL": "error"}
    here = Path(__file__).parents[1]
    return measure(lambda: subprocess.Popen(argv, env=environment, cwd=here, stdout=subprocess.DEVNULL))


BACKUP = """
import sys
from pathlib import Path
from synapse_ops.operations.database.dump import dump_database
from synapse_ops.operations.stack import open_stack
dump_database(open_stack(Path(sys.argv[1]), Path(sys.argv[2])), sys.argv[3])
"""
FINGERPRINT = """
import sys
from pathlib import Path
from synapse_ops.systems.postgres.fingerprint import read_fingerprint
read_fingerprint(Path(sys.argv[1]).read_text())
"""


def write_spec(servers: Servers, kind: str) -> Path:
    """Write a spec of this database and store, its secrets in files beside it."""
    folder = servers.folder
    keys = f"aws_access_key_id = {servers.access.access_key}\naws_secret_access_key = {servers.access.secret_key}\n"
    for name, text in {"admin": servers.conninfo(kind), "keys": f"[default]\n{keys}"}.items():
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(text)
    spec = folder / "infrastructure.yaml"
    spec.write_text(
        f"name: benchmark\n"
        f"database: {{port: {servers.postgres.port}, name: {kind}, admin: 'file:{folder}/admin'}}\n"
        f"backup: {{database: {{destination: '{URL}'}}}}\n"
        f"object_store: {{endpoint: '{servers.access.endpoint}', credentials: 'file:{folder}/keys'}}\n"
    )
    return spec


def compare_kind(servers: Servers, kind: str, size_bytes: int, rounds: int, aws: str | None) -> bool:
    """Run the rounds for one kind of data, print them, and return whether every target was met."""
    held = load(servers, kind, size_bytes)
    spec = write_spec(servers, kind)
    peers, backups, prints = [], [], []
    for _ in range(rounds):
        peers.append(run_peer(servers, kind, aws))
        backups.append(run_python(servers, BACKUP, str(spec), str(servers.folder / "state"), kind))
        prints.append(run_python(servers, FINGERPRINT, str(servers.folder / "admin")))
    peer, backup = (min(runs, key=lambda run: run.wall_s) for runs in (peers, backups))
    fingerprint_s = min(run.wall_s for run in prints)
    peak, disk = max(run.peak_mib for run in backups), max(run.disk_mib for run in backups)
    ratio, fingerprint_ratio = backup.wall_s / peer.wall_s, fingerprint_s / backup.wall_s
    print(f"\n{kind}: {held / MIB:.0f} MiB, {rounds} rounds")
    print(f"  pg_dump > file && copy   {_walls(peers)}   {peer.disk_mib:.0f} MiB on disk")
    print(f"  backup                   {_walls(backups)}")
    print(f"  fingerprint alone        {_walls(prints)}")
    results = [
        ("wall, of the peer's", ratio, TARGETS[kind], ""),
        ("fingerprint alone, of the backup's wall", fingerprint_ratio, FINGERPRINT_TARGET, ""),
        ("PSS of operation and pg_dump", peak, MEMORY_TARGET_MIB, " MiB"),
        ("written to disk", disk, DISK_TARGET_MIB, " MiB"),
    ]
    for name, value, target, unit in results:
        verdict = "met" if value <= target else "MISSED"
        print(f"  {name}: {value:.2f}{unit}, target {target}{unit}: {verdict}")
    return all(value <= target for _, value, target, _ in results)


def _walls(runs: list[Measured]) -> str:
    return " ".join(f"{run.wall_s:6.1f}" for run in runs) + " s"


def main() -> None:
    """Run the benchmark and exit 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="2GiB", help="of each database: 256MiB, 2GiB (default)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--aws", default=shutil.which("aws"), help="the aws program; default: from PATH")
    parser.add_argument("--kind", choices=sorted(DATA), action="append", help="only this kind of data")
    arguments = parser.parse_args()
    number, unit = arguments.size[:-3], arguments.size[-3:]
    size_bytes = int(float(number) * {"MiB": MIB, "GiB": 1024 * MIB}[unit])
    print(f"copy with {arguments.aws or 'boto3 upload_file (no aws program found)'}; {os.cpu_count()} cores")
    with running_servers() as servers:
        kinds = arguments.kind or list(DATA)
        met = [compare_kind(servers, kind, size_bytes, arguments.rounds, arguments.aws) for kind in kinds]
    sys.exit(0 if all(met) else 1)


if __name__ == "__main__":
    main()
