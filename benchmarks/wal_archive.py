"""Planning over a month of WAL: `python -m benchmarks.wal_archive`.

100,000 segments with their indexes, 10,000 chunks and 30 base backups are put into a SeaweedFS started for the purpose.
Printed: seconds of reading the archive, of planning a restore to the newest moment and to one in the middle, of an
expiry plan, and of `info` on the repository. The aim of each is 5 s.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.catalog import store_access
from synapse_ops.domain.backup.layout import KIND_BASE
from synapse_ops.domain.backup.retention import RetentionPolicy
from synapse_ops.domain.database.wal import Segment
from synapse_ops.domain.database.wal_keys import GROUP, chunk_key, parse_wal_key
from synapse_ops.operations.backup.expire import make_expiry_plan
from synapse_ops.operations.backup_kinds import read_wal
from synapse_ops.operations.database.restore_cluster import newest_place
from synapse_ops.operations.database.wal_archive import read_wal_archive
from synapse_ops.operations.database.wal_objects import WalBytes, encode
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.store import ObjectStore, WrittenObject
from tests.operations.database import test_wal_expiry as stored
from tests.stored_backups import IDENTITY

URL = "s3://benchmark-wal/database/"
WRITERS = 16
CHUNKS = 128  # of a segment
AIM_S = 5.0


class Behind:
    """Puts from threads; a receipt is that of what is put. unread: number of the first segment that is put."""

    def __init__(self, store: ObjectStore, pool: ThreadPoolExecutor, unread: int) -> None:
        self._store, self._pool, self._unread = store, pool, unread
        self.puts: list[Future[WrittenObject]] = []

    def put_bytes(self, key: str, data: bytes) -> WrittenObject:
        found = parse_wal_key(key)
        is_read = (
            found is None or found.kind != "segment" or Segment.parse(found.segment, 16 << 20).number >= self._unread
        )
        if is_read:
            self.puts.append(self._pool.submit(self._store.put_bytes, key, data))
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return WrittenObject(key, len(data), md5, hashlib.sha256(data).hexdigest())


def fill(store: ObjectStore, segments: int, chunks: int, now: datetime, *, puts_all: bool = True) -> None:
    """Write what a month leaves: `chunks` are the segments behind the whole ones, which are all there is of them."""
    stored.PER_DAY = segments // stored.DAYS
    with ThreadPoolExecutor(WRITERS) as pool:
        stop = stored.begins(0)
        behind = Behind(store, pool, 0 if puts_all else stop.number // GROUP * GROUP)
        stored.store_wal(behind, stored.begins(stored.DAYS), stop, now)
        size = stop.size_bytes // CHUNKS
        for number in range(stop.number, stop.number + chunks // CHUNKS):
            segment = Segment(1, number, stop.size_bytes)
            is_newest = number == stop.number + chunks // CHUNKS - 1
            for start in range(0, stop.size_bytes, size):
                sink = io.BytesIO(b"")
                if is_newest:  # it is read
                    encode(WalBytes(IDENTITY, segment, start, start + size), lambda _, count: bytes(count), sink, ())
                key = chunk_key(IDENTITY, segment, start, start + size, encrypted=False)
                behind.put_bytes(key, sink.getvalue() or b"WAL")
        for age in range(1, 46, 3):
            stored.store_base(behind, now, age)
        for put in behind.puts:
            put.result()


def main() -> int:
    """Return 1 when an aim was missed."""
    options = _options()
    now = datetime.now(UTC).replace(microsecond=0)
    with store_access(None) as access, tempfile.TemporaryDirectory() as folder:
        store = ObjectStore(URL, access)
        store.create_bucket()
        fill(store, options.segments, options.chunks, now, puts_all=not options.without_indexed)
        repository = Repository(store, cache_dir=Path(folder))
        middle = f"time:{(now - timedelta(days=15)).isoformat()}"
        policy = RetentionPolicy(window=timedelta(days=30))
        environment = {
            "PATH": "/usr/bin:/bin",
            "AWS_ENDPOINT_URL": str(access.endpoint),
            "AWS_ACCESS_KEY_ID": str(access.access_key),
            "AWS_SECRET_ACCESS_KEY": str(access.secret_key),
        }
        info = [sys.executable, "-m", "synapse_ops", "info", "--repository", URL, "--state-dir", folder]
        works = {
            "reading the archive": lambda: read_wal_archive(repository, IDENTITY),
            "planning a restore to latest": lambda: newest_place(repository, "latest", None, ()),
            "planning a restore to a moment": lambda: newest_place(repository, middle, None, ()),
            "expiry plan": lambda: make_expiry_plan(repository, policy, now, kind=KIND_BASE, wal=read_wal),
            "info": lambda: subprocess.run(info, env=environment, check=True, capture_output=True),
        }
        is_met = True
        for name, work in works.items():
            seconds, busy = [], []
            for _ in range(options.repeat):
                began_s, began_cpu_s = time.perf_counter(), _cpu_s()
                work()
                seconds.append(time.perf_counter() - began_s)
                busy.append(_cpu_s() - began_cpu_s)
            median, cpu_s = statistics.median(seconds), statistics.median(busy)
            is_met = is_met and median <= AIM_S
            said = "met" if median <= AIM_S else "MISSED"
            print(f"{name}: {median:.2f} s, {cpu_s:.2f} s of our CPU, aim {AIM_S:g} s: {said}", flush=True)
    return 0 if is_met else 1


def _cpu_s() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=100_000)
    parser.add_argument("--chunks", type=int, default=10_000)
    parser.add_argument(
        "--without-indexed", action="store_true", help="do not put segments that an index names: nothing reads them"
    )
    parser.add_argument("--repeat", type=int, default=3, help="the median of so many is printed")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
