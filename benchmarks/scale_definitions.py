"""What definitions and verdicts take for many databases, without any server."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from benchmarks.scale_site import ROWS, write_databases
from benchmarks.scale_storage import Rows, tell
from synapse_ops.defs.backup.kinds import DATABASES
from synapse_ops.defs.backup.restore_check import CHECK_NAME, evaluation_of, judge_repository
from synapse_ops.domain.backup.catalog import CatalogEntry
from synapse_ops.domain.backup.proof_record import Verdict
from synapse_ops.local.stack_spec import EXAMPLE
from synapse_ops.operations.backup.catalog import Catalog
from tests.stored_backups import place_of

REPEAT = 3
HISTORY_DAYS = 30  # of each database in `break`
_LOAD = """
import json, time
began = time.process_time()
import synapse_ops.definitions as ours
imported = time.process_time()
repository = ours.definitions().get_repository_def()
repository.get_all_jobs()
made = time.process_time()
status = open("/proc/self/status").read().split()  # ru_maxrss counts the process that started this one, too
peak = int(status[status.index("VmHWM:") + 1])
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster_shared.serdes import serialize_value
size = len(serialize_value(RepositorySnap.from_def(repository)))
print(json.dumps({"import_cpu_s": imported - began, "definitions_cpu_s": made - imported, "rss_mib": peak / 1024,
                  "answer_kib": size / 1024, "assets": len(repository.asset_graph.get_all_asset_keys())}))
"""


def measure_load(sizes: Sequence[tuple[int, int]]) -> Rows:
    """Return what importing and evaluating the definitions takes; collections are partitions that Dagster stores."""
    rows: Rows = []
    for databases, collections in sizes:
        with tempfile.TemporaryDirectory() as folder:
            spec = Path(folder) / "infrastructure.yaml"
            spec.write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
            write_databases(spec, [f"tiny_{number:04}" for number in range(databases)])
            variables = {"SYNAPSE_SPEC": str(spec), "SYNAPSE_STATE_DIR": folder, "SYNAPSE_EMBEDDED": "1"}
            environment = {**os.environ, **variables}
            environment.pop("PYTHONDONTWRITEBYTECODE", None)
            runs = [_load_once(environment) for _ in range(REPEAT)]
        medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        first = rows[0] if rows else None
        row: dict[str, object] = {"databases": databases, "collections": collections}
        row |= {name: round(value, 2) for name, value in medians.items()}
        for name in ("definitions_cpu_s", "rss_mib", "answer_kib"):
            row[f"{name.partition('_')[0]}_ratio"] = round(medians[name] / float(str((first or row)[name])), 2)
        rows.append(row)
        tell(f"{databases} databases: definitions in {medians['definitions_cpu_s']:.2f} s")
    return rows


def _load_once(environment: Mapping[str, str]) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", _LOAD], env=environment, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_verdicts(sizes: Sequence[int]) -> Rows:
    """Return what judging this many databases takes, and what the check's evaluation weighs; each proof writes one."""
    from dagster_shared.serdes import serialize_value

    rows: Rows = []
    now = datetime.now(UTC).replace(microsecond=0)
    for databases in sizes:
        names = [f"tiny_{number:04}" for number in range(databases)]
        catalog = _catalog(names, now)
        key = dg.AssetCheckKey(DATABASES.backup_key, CHECK_NAME)
        began_s = time.perf_counter()
        judgement = judge_repository(key, catalog, names, timedelta(days=30), now)
        took_s = time.perf_counter() - began_s
        with dg.DagsterInstance.ephemeral() as instance:
            size = len(serialize_value(evaluation_of(judgement, kind=DATABASES, instance=instance)))
        rows.append(
            {
                "databases": databases,
                "backups": len(catalog.backups),
                "judge_s": round(took_s, 2),
                "evaluation_kib": round(size / 1024),
                "mib_for_a_proof_of_each": round(2 * databases * size / 2**20),  # two checks are judged after each
            }
        )
        tell(f"{databases} databases judged in {took_s:.2f} s")
    return rows


def _catalog(names: Sequence[str], now: datetime) -> Catalog:
    backups = [_entry(name, day, now) for day in range(HISTORY_DAYS) for name in names]
    return Catalog(tuple(backups), (), 0, 9 * len(backups), now)


def _entry(name: str, day: int, now: datetime) -> CatalogEntry:
    """Return the row of a proven backup that was taken `day` days ago."""
    at = now - timedelta(days=day, hours=1)
    digest = hashlib.sha256(f"{name} {day}".encode())
    proven_at = at + timedelta(minutes=10)
    return CatalogEntry(
        place=place_of(at, database=name, number=int.from_bytes(digest.digest()[:3], "big")),
        size_bytes=10_000,
        listing_digest=digest.digest(),
        finished_at=at,
        database_time=at,
        source_size_bytes=7_000_000,
        item_count=ROWS,
        duration_s=1.0,
        is_encrypted=False,
        not_in_backup=(),
        proven_at=proven_at,
        last_verdict=Verdict.PROVEN,
        last_proof_at=proven_at,
        restore_s=1.0,
        not_attempted_at=None,
        doubt="",
        pins=(),
        held_at=None,
        unreadable_reason="",
        outcome="restored and equal in every row",
    )
