"""Reading a catalog of many backups, against a bare listing of the same store: `python -m benchmarks.catalog`.

A synthetic repository (10 objects per backup) is put concurrently into a SeaweedFS started for the purpose, or into
the store that `--repository` and AWS_* name. Printed: seconds and ratios of a bare listing, a cold and a warm reading
with its retention plan, and the memory per backup. Targets: cold <= 3.0x, warm <= 1.2x, memory <= 1 KiB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from synapse_ops.domain.backup.layout import pin_name, reading_name
from synapse_ops.domain.backup.retention import RetentionPolicy
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup.expire import make_expiry_plan
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.stored_backups import store_backup, store_proof

OBJECTS_PER_BACKUP = 10
STORE_READY_TIMEOUT_S = 60.0
WRITERS = 16


def main() -> None:
    options = _options()
    with store_access(options.repository) as access, tempfile.TemporaryDirectory() as folder:
        store = ObjectStore(options.repository or "s3://benchmark-catalog/database/", access)
        store.create_bucket()
        if not options.keep_objects:
            _timed("put", lambda: _fill(store, options.backups))
        repository = Repository(store, cache_dir=Path(folder))
        bare = [_timed("bare listing", lambda: sum(1 for _ in store.list_objects()))[0] for _ in range(options.repeat)]
        cold: dict[str, list[float]] = {"list": [], "plan": []}
        warm: dict[str, list[float]] = {"list": [], "plan": []}
        for name, work in works(repository).items():
            for _ in range(options.repeat):
                (Path(folder) / "catalog.sqlite").unlink(missing_ok=True)
                cold[name].append(_timed(f"cold {name}", work)[0])
                warm[name].append(_timed(f"warm {name}", work)[0])
        print(json.dumps(_figures(repository, bare, cold, warm), indent=2))


def works(repository: Repository) -> dict[str, Callable[[], object]]:
    """Return the two readings that the targets are about: a catalog, and a retention plan with its document."""
    policy = RetentionPolicy(window=timedelta(days=30))
    return {
        "list": lambda: read_catalog(repository),
        "plan": lambda: make_expiry_plan(repository, policy, datetime.now(UTC)),
    }


def _figures(
    repository: Repository, bare: list[float], cold: dict[str, list[float]], warm: dict[str, list[float]]
) -> dict[str, object]:
    listing = statistics.median(bare)
    catalog = read_catalog(repository)
    figures: dict[str, object] = {
        "backups": len(catalog.backups),
        "objects": catalog.object_count,
        "bare_listing_s": round(listing, 2),
    }
    for name, work in works(repository).items():
        for state, seconds in (("cold", cold[name]), ("warm", warm[name])):
            figures[f"{state}_{name}_s"] = round(statistics.median(seconds), 2)
            figures[f"{state}_{name}_ratio"] = round(statistics.median(seconds) / listing, 2)
        figures[f"{name}_peak_bytes_per_backup"] = _peak_bytes(work) // max(1, len(catalog.backups))
    return figures


def _fill(store: ObjectStore, backups: int) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)

    def put(number: int) -> None:
        started_at = start + timedelta(minutes=30 * number)
        backup = store_backup(store, started_at, database=f"database_{number % 5}", number=number)
        store_proof(store, backup, started_at + timedelta(minutes=10))
        store.put_bytes(backup.place.key(pin_name("benchmark")), b"{}\n")
        store.put_bytes(backup.place.key(reading_name("benchmark")), b"{}\n")

    with ThreadPoolExecutor(WRITERS) as pool:
        for done, _ in enumerate(pool.map(put, range(backups)), 1):
            if done % 500 == 0:
                print(f"put {done} of {backups} backups", file=sys.stderr)


def _timed(name: str, work: Callable[[], object]) -> tuple[float, object]:
    began, began_cpu = time.perf_counter(), time.process_time()
    result = work()
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    print(f"{name}: {seconds:.2f} s, {cpu:.2f} s of our CPU", file=sys.stderr)
    return seconds, result


def _peak_bytes(work: Callable[[], object]) -> int:
    """Return the most bytes that a reading took at once, as Python's allocator counts them."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak - before


@contextmanager
def store_access(repository: str | None) -> Iterator[StoreAccess]:
    if repository:
        yield StoreAccess.from_environment()
        return
    with tempfile.TemporaryDirectory() as folder:
        description = Path(folder) / "object-store.json"
        guard = subprocess.Popen(
            [sys.executable, "tests/store_guard.py", str(description), str(os.getpid())],
            cwd=Path(__file__).parents[1],
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + STORE_READY_TIMEOUT_S
            while not description.exists():
                if guard.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("SeaweedFS did not start")
                time.sleep(0.05)
            yield StoreAccess(**json.loads(description.read_text())[0])
        finally:
            guard.terminate()
            guard.wait(30)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backups", type=int, default=10_000, help=f"each has {OBJECTS_PER_BACKUP} objects")
    parser.add_argument("--repeat", type=int, default=3, help="the median of so many is printed")
    parser.add_argument("--repository", help="s3://bucket/prefix/ of a store to use instead of a SeaweedFS of its own")
    parser.add_argument("--keep-objects", action="store_true", help="measure what is already there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
