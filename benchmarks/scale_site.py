"""A real embedded stack with many tiny databases and collections, and with days of backups that are written, not taken.

The databases are copies of one of 100 rows. The history lies in the repository (store_backup and store_proof of the
tests: the documents that a dump and a proof write) and in Dagster's storage (the events that they report).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import psycopg

from synapse_ops.cli.options import Place
from synapse_ops.defs.backup.kinds import DATABASES
from synapse_ops.defs.event_metadata import backup_metadata, proof_metadata
from synapse_ops.local.embedded_stack import reset_stack, running_stack
from synapse_ops.operations.stack import Stack
from synapse_ops.systems.qdrant.server import open_qdrant
from tests.stored_backups import store_backup, store_proof

ROWS = 100
WRITERS = 16
STEP = 50  # of progress
VECTOR_SIZE = 4
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Site:
    """state_dir, spec_path: of a stack that runs. databases: those of its spec."""

    state_dir: Path
    spec_path: Path
    databases: tuple[str, ...]

    def stack(self) -> Stack:
        return Place(spec_path=self.spec_path, state_dir=self.state_dir).stack()


@contextmanager
def running_site(databases: int, collections: int, tell: Tell) -> Iterator[Site]:
    """Run a stack in a directory of its own, which is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="synapse-bench-", dir="/var/tmp"))  # /tmp may be in memory
    try:
        with running_stack(folder / "state") as running:
            tell("the embedded stack runs")
            state_dir = (folder / "state").resolve()  # of root it is a link, and processes are known by their folder
            spec, first = running.spec_path, Site(state_dir, running.spec_path, ())
            names = [f"tiny_{number:04}" for number in range(databases)]
            make_databases(first.stack(), names, tell)
            write_databases(spec, names)
            make_collections(first.stack(), collections, tell)
            yield Site(state_dir, spec, tuple(names))
    finally:
        reset_stack(folder / "state")
        shutil.rmtree(folder, ignore_errors=True)


def write_databases(spec: Path, names: list[str]) -> None:
    """Put these databases into a spec that lists one."""
    text = spec.read_text(encoding="utf-8")
    before = "databases: [synapse]"
    if before not in text:
        raise SystemExit(f"{spec} does not list its one database as expected")
    spec.write_text(text.replace(before, f"databases: [{', '.join(names)}]"), encoding="utf-8")


def make_databases(stack: Stack, names: list[str], tell: Tell) -> None:
    first, *others = names
    with psycopg.connect(stack.admin_conninfo("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {first}")
        with psycopg.connect(stack.admin_conninfo(first), autocommit=True) as filling:
            filling.execute("CREATE TABLE documents (id int PRIMARY KEY, body text)")
            filling.execute(f"INSERT INTO documents SELECT n, md5(n::text) FROM generate_series(1, {ROWS}) n")
        for number, name in enumerate(others, 2):
            # a copy of files: WAL of 7 MiB for each would go to the store first
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {first} STRATEGY file_copy")
            if number % STEP == 0:
                tell(f"{number} of {len(names)} databases made")


def make_collections(stack: Stack, collections: int, tell: Tell) -> None:
    with open_qdrant(stack.spec.qdrant) as server:
        for number in range(collections):
            name = f"tiny_{number:04}"
            server.call("PUT", f"/collections/{name}", {"vectors": {"size": VECTOR_SIZE, "distance": "Cosine"}})
            points = [{"id": n, "vector": [1.0, n, 0.5, 0.25], "payload": {"n": n}} for n in range(10)]
            server.call("PUT", f"/collections/{name}/points", {"points": points}, params={"wait": "true"})
    tell(f"{collections} collections made")


def write_history(site: Site, instance: dg.DagsterInstance, days: int, tell: Tell) -> None:
    """Write a proven backup a day of each database into the repository, and the events that report them."""
    if not days:
        return
    repository = DATABASES.kind.repository(site.stack())
    store = repository.store
    since = datetime.now(UTC).replace(microsecond=0) - timedelta(days=days)

    def write(job: tuple[int, str]) -> list[dg.AssetMaterialization]:
        day, name = job
        at = since + timedelta(days=day, seconds=site.databases.index(name))
        backup = store_backup(store, at, database=name)
        proof = store_proof(store, backup, at + timedelta(minutes=10))
        url = store.full_url(backup.place.prefix)
        return [
            dg.AssetMaterialization(
                DATABASES.backup_key,
                partition=name,
                metadata=backup_metadata(backup.record, url),
                tags={"dagster/data_version": backup.record.backup_id},
            ),
            dg.AssetMaterialization(DATABASES.proof_key, partition=name, metadata=proof_metadata(proof, url)),
        ]

    jobs = [(day, name) for day in range(days) for name in site.databases]
    with ThreadPoolExecutor(WRITERS) as pool:
        for number, events in enumerate(pool.map(write, jobs), 1):
            for event in events:
                instance.report_runless_asset_event(event)
            if number % (STEP * 10) == 0:
                tell(f"{number} of {len(jobs)} backups of the past written")
