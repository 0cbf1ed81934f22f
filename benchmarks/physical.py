"""Base backups, WAL and restores of the whole cluster, beside what else does the same, in one run.

    python -m benchmarks.physical                                  1 GiB, then 4 GiB for the memory
    python -m benchmarks.physical --size 512MiB --second-size 2GiB --barman /path/to/bin

Starts its own PostgreSQL and SeaweedFS, and removes them. Measured, each with its aim:

    base backup        wall of a bare BASE_BACKUP with manifest through the same uploader; memory and disk of two sizes
    WAL                our CPU for 16 MiB and for a chunk; from commit to durable at 5 commits a second
    a writer           pgbench without a receiver, with pg_receivewal, with ours
    restore            to verified counts, against extraction with zstd and tar plus replay

Peers that are there are printed beside: pg_basebackup and pg_receivewal of the server's own programs, and barman-cloud
where it is named. Debian's pgbackrest 2.45 does not know PostgreSQL 17. Wall times are the fastest of the
rounds, CPU is that of whole processes, memory is PSS: Linux only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg

from benchmarks.dump import (
    MIB,
    Measured,
    Servers,
    load,
    measure,
    run_python,
    running_servers,
    write_spec,
)
from benchmarks.wal import client, compare_writers, environment, execute, measure_commits, measure_wal, receiver, report
from synapse_ops.systems.host.processes import make_private_dir
from synapse_ops.systems.postgres.server import PgServer, make_socket_dir

BASE_TARGET, MEMORY_TARGET_MIB, DISK_TARGET_MIB, RESTORE_TARGET = 1.15, 200, 32, 1.1

OURS = """
import sys
from pathlib import Path
from synapse_ops.operations.database.base_backup import take_base_backup
from synapse_ops.operations.stack import open_stack
take_base_backup(open_stack(Path(sys.argv[1]), Path(sys.argv[2])))
"""
BARE = """
import sys
from pathlib import Path
from synapse_ops.operations.stack import open_stack
from synapse_ops.systems.postgres.base_backup import base_backup
stack = open_stack(Path(sys.argv[1]), Path(sys.argv[2]))
store = stack.database_repository().store
with base_backup(stack.admin_conninfo("postgres"), label="bare") as stream:
    for member in stream.members():
        with store.open_writer(f"bare/{member.name}") as writer:
            while data := member.read():
                writer.write(data)
            writer.complete()
"""
RESTORE = """
import sys
from pathlib import Path
from synapse_ops.operations.backup.restoring import RestoreRequest
from synapse_ops.operations.backup_kinds import BASES
from synapse_ops.operations.database.restore_cluster import newest_place
from synapse_ops.operations.stack import open_stack
spec, state, target = map(Path, sys.argv[1:])
repository = open_stack(spec, state).database_repository()
place = newest_place(repository, "latest", None, ())
request = RestoreRequest(repository, place, str(target), None, target.parent / "work", until="latest")
BASES.apply_restore(request, BASES.plan_restore(request))
"""
# the archive through zstd and tar, WAL decoded into a directory: what a person would do, without any comparison
EXTRACT = """
import subprocess, sys
from pathlib import Path
import zstandard
from synapse_ops.operations.database.wal_archive import read_wal_archive
from synapse_ops.operations.database.restore_cluster import newest_place
from synapse_ops.operations.stack import open_stack
spec, state, target, wal = map(Path, sys.argv[1:])
repository = open_stack(spec, state).database_repository()
store, place = repository.store, newest_place(repository, "latest", None, ())
untar = subprocess.Popen(["tar", "--extract", "--directory", target], stdin=subprocess.PIPE)
with store.open_reader(place.key("base.tar.zst")) as reader:
    zstandard.ZstdDecompressor().copy_stream(reader, untar.stdin)
untar.stdin.close()
assert untar.wait() == 0
row = read_wal_archive(repository, place.identity).newest
for number in sorted({*row.segments, *row.chunks}):
    name = row.segment(number).name
    rows = list(store.list_objects(f"{place.identity}/wal/{row.timeline:08X}/{name}"))
    with (wal / name).open("wb") as file:
        for one in sorted(one.key for one in rows if one.key.endswith(".zst")):
            start = 0 if ".chunks/" not in one else int(one.rsplit("/", 1)[1][:8], 16)
            file.seek(start)
            data = zstandard.ZstdDecompressor().stream_reader(store.read_bytes(one), read_across_frames=True).read()
            file.write(data)
        file.truncate(16 << 20)
"""


def walls(runs: Sequence[Measured]) -> str:
    return " ".join(f"{run.wall_s:6.2f}" for run in runs) + " s"


def run_program(servers: Servers, *argv: object) -> Measured:
    """Measure another program from its start to its end."""
    return measure(
        lambda: subprocess.Popen(
            list(map(str, argv)), env=environment(servers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    )


def compare_base(servers: Servers, spec: Path, rounds: int, barman: Path | None) -> bool:
    """Base backups: a bare one, ours, and the peers', in turn."""
    state, tools = str(servers.folder / "state"), servers.postgres.tools
    bare, ours, plain, others = [], [], [], []
    for _ in range(rounds):
        bare.append(run_python(servers, BARE, str(spec), state))
        ours.append(run_python(servers, OURS, str(spec), state))
        directory = servers.folder / "plain"
        argv = [
            tools.path("pg_basebackup"),
            *client(servers),
            "--checkpoint=fast",
            "-Ft",
            "-X",
            "none",
            "-D",
            directory,
        ]
        plain.append(run_program(servers, *argv, "--compress=server-zstd:1", "--no-sync"))
        shutil.rmtree(directory)
        if barman is not None:
            argv = [barman / "barman-cloud-backup", *client(servers), "--endpoint-url", servers.access.endpoint]
            others.append(
                run_program(servers, *argv, "--immediate-checkpoint", "--gzip", "s3://benchmark/barman", "main")
            )
    print(f"  bare BASE_BACKUP, same uploader  {walls(bare)}")
    print(f"  base_backup                      {walls(ours)}")
    print(f"  pg_basebackup to a file          {walls(plain)}")
    if others:
        print(f"  barman-cloud-backup              {walls(others)}   {max(run.peak_mib for run in others):.0f} MiB")
    ratio = min(run.wall_s for run in ours) / min(run.wall_s for run in bare)
    return report(
        [
            ("wall, of the bare one's", ratio, BASE_TARGET, ""),
            ("PSS", max(run.peak_mib for run in ours), MEMORY_TARGET_MIB, " MiB"),
            ("written to disk", max(run.disk_mib for run in ours), DISK_TARGET_MIB, " MiB"),
        ]
    )


def compare_restores(servers: Servers, spec: Path, rounds: int) -> bool:
    """Restore to counts, against extraction and replay by hand of the same backup and WAL."""
    state, folder = str(servers.folder / "state"), servers.folder / "servers" / "restored"
    make_private_dir(folder, servers.postgres.identity)
    expected = execute(servers, "select count(*) from documents")
    ours, plain = [], []
    for number in range(rounds):
        begun = time.monotonic()
        target = folder / f"ours-{number}"
        run_python(servers, RESTORE, str(spec), state, str(target))
        count_rows(servers, target, expected, "")
        ours.append(time.monotonic() - begun)
        shutil.rmtree(target)
        begun = time.monotonic()
        target, wal = folder / f"plain-{number}", folder / f"wal-{number}"
        target.mkdir(mode=0o700)
        wal.mkdir()
        run_python(servers, EXTRACT, str(spec), state, str(target), str(wal))
        for name in ("standby.signal", "postgresql.auto.conf", "tablespace_map"):
            (target / name).unlink(missing_ok=True)
        (target / "recovery.signal").touch()
        count_rows(servers, target, expected, f"cp {wal}/%f %p")
        plain.append(time.monotonic() - begun)
        shutil.rmtree(target)
        shutil.rmtree(wal)
    print(f"  restore to verified counts   {' '.join(f'{one:6.2f}' for one in ours)} s")
    print(f"  zstd, tar and replay         {' '.join(f'{one:6.2f}' for one in plain)} s")
    return report([("restore, of plain extraction and replay", min(ours) / min(plain), RESTORE_TARGET, "")])


def count_rows(servers: Servers, data_dir: Path, expected: object, restore_command: str) -> None:
    """Start a copy, wait until it is open, count, and stop it."""
    source = servers.postgres
    if source.identity is not None and restore_command:
        run = [
            "chown",
            "-R",
            f"{source.identity.uid}:{source.identity.gid}",
            str(data_dir),
            restore_command.split()[1][:-3],
        ]
        subprocess.run(run, check=True)
    recovery = {"restore_command": restore_command, "hot_standby": False} if restore_command else {}
    server = PgServer(
        tools=source.tools,
        identity=source.identity,
        data_dir=data_dir,
        socket_dir=make_socket_dir(data_dir, source.identity),
        port=source.port,
        log_path=data_dir.with_name(f"{data_dir.name}.log"),
        settings={"fsync": False, "shared_buffers": "128MB", **recovery},
    )
    try:
        server.start(600)
        server.wait_recovered(600)
        with psycopg.connect(server.conninfo("text", "postgres")) as connection:
            row = connection.execute("select count(*) from documents").fetchone()
        if row is None or row[0] != expected:
            sys.exit(f"the copy holds {row} rows, expected {expected}")
    finally:
        server.stop("immediate")


def parsed_size(text: str) -> int:
    return int(float(text[:-3]) * {"MiB": MIB, "GiB": 1024 * MIB}[text[-3:]])


def main() -> None:
    """Run all parts and exit 1 when an aim was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1GiB", help="of the cluster: 512MiB, 1GiB (default)")
    parser.add_argument("--second-size", default="4GiB", help="for memory alone; 0MiB leaves it out")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--commits", type=int, default=600)
    parser.add_argument("--seconds", type=int, default=20, help="of each run of pgbench")
    parser.add_argument("--barman", type=Path, help="the folder of barman-cloud-backup")
    given = parser.parse_args()
    met = []
    with running_servers(wal_level="replica", max_wal_senders=10) as servers:
        print(f"{os.cpu_count()} cores; PostgreSQL {servers.postgres.tools.version}, SeaweedFS", flush=True)
        held = load(servers, "text", parsed_size(given.size))
        spec = write_spec(servers, "text")
        with receiver(servers, spec) as process:
            print(f"\nbase backup of {held / MIB:.0f} MiB")
            met.append(compare_base(servers, spec, given.rounds, given.barman))
            print("\nWAL")
            met.append(measure_wal(servers, process, 24, given.barman))
            met.append(measure_commits(servers, process, given.commits))
            run_python(servers, OURS, str(spec), str(servers.folder / "state"))
            print("\nrestore")
            met.append(compare_restores(servers, spec, given.rounds))
        print("\na writer", flush=True)
        met.append(compare_writers(servers, spec, given.seconds, given.rounds))
        if parsed_size(given.second_size):
            with receiver(servers, spec):
                total, number = "select sum(pg_database_size(oid))::bigint from pg_database", 0
                while (size := int(str(execute(servers, total, "postgres")))) < parsed_size(given.second_size):
                    execute(servers, f"create database more_{number} template text", "postgres")
                    number += 1
                large = run_python(servers, OURS, str(spec), str(servers.folder / "state"))
                print(f"\nbase backup of {size / MIB:.0f} MiB: {large.wall_s:.1f} s")
                met.append(report([("PSS", large.peak_mib, MEMORY_TARGET_MIB, " MiB")]))
    sys.exit(0 if all(met) else 1)


if __name__ == "__main__":
    main()
