"""WAL of a server on this host put into a repository as the receiver would, without one: from its own files."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from synapse_ops.domain.backup.layout import Identity
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Segment
from synapse_ops.domain.database.wal_facts import SegmentFacts, TimelineClaim
from synapse_ops.domain.database.wal_records import find_records
from synapse_ops.operations.database.wal_objects import WalBytes
from synapse_ops.operations.database.wal_writer import WalWriter, read_digest_key
from synapse_ops.operations.repository import Repository

SEGMENT_BYTES, PAGE_BYTES = 16 * 1024 * 1024, 8192


class WalUploads:
    """Uploads what was not uploaded yet, each time it is called: whole segments, and the open one as a chunk."""

    def __init__(self, repository: Repository, identity: Identity, conninfo: str, data_dir: Path, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        key = read_digest_key(folder / "key")
        self.writer = WalWriter(repository, identity, digest_key=key, scratch_dir=folder)
        self.identity, self.conninfo, self.wal_dir = identity, conninfo, data_dir / "pg_wal"
        self.done: dict[str, int] = {}
        self.tail = b""

    def __call__(self) -> Lsn:
        """Return the position up to which everything is stored."""
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            row = connection.execute(
                "select pg_current_wal_flush_lsn()::text, pg_walfile_name(pg_current_wal_flush_lsn())"
            ).fetchone()
        assert row is not None
        flushed = Lsn.parse(row[0])
        timeline = int(row[1][:8], 16)
        if not self.done:
            self.writer.claim(
                TimelineClaim(
                    system_identifier=self.identity.system_identifier,
                    timeline=timeline,
                    forked_at=None,
                    history_sha256=None,
                    node="127.0.0.1",
                    server_version_num=170010,
                    segment_bytes=SEGMENT_BYTES,
                    page_bytes=PAGE_BYTES,
                    byte_order="little",
                    claimed_at=datetime.now(UTC),
                )
            )
        for path in sorted(self.wal_dir.glob("0000000?????????????????")):
            segment = Segment.parse(path.name, SEGMENT_BYTES)
            if segment.start >= flushed or self.done.get(path.name) == SEGMENT_BYTES:
                continue
            stop = min(SEGMENT_BYTES, flushed - segment.start)
            begin = 0 if stop == SEGMENT_BYTES else self.done.get(path.name, 0)
            if stop <= begin:
                continue
            data = path.read_bytes()
            written = self.writer.store(
                WalBytes(self.identity, segment, begin, stop), lambda at, size, data=data: data[at : at + size]
            )
            if stop == SEGMENT_BYTES:
                found, self.tail = find_records(
                    data, segment.start, segment_bytes=SEGMENT_BYTES, page_bytes=PAGE_BYTES, tail=self.tail
                )
                self.writer.store_facts(
                    segment,
                    SegmentFacts(
                        segment=segment.name,
                        size_bytes=written.size_bytes,
                        sha256=written.sha256,
                        etag=written.etag,
                        commits=found.commits,
                        min_commit_at=found.min_commit_at,
                        max_commit_at=found.max_commit_at,
                        restore_points=found.restore_points,
                        parameters=found.parameters,
                    ),
                )
            self.done[path.name] = stop
        return flushed


@contextmanager
def uploading(upload: WalUploads) -> Iterator[None]:
    """Upload twice a second while the block lasts."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.3):
            upload()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
