"""WAL of a real server in a real store: complete, equal, and after whatever ends the receiver."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from synapse_ops.domain.database.wal import Segment
from synapse_ops.domain.database.wal_chain import missing, reach
from synapse_ops.systems.s3.store import StoreAccess
from tests.servers import PostgresServer
from tests.services.wal_receiver.receiving import Receiving, receiving, wait_until


@pytest.fixture
def begin(
    tmp_path: Path, postgres_server: PostgresServer, object_store_access: StoreAccess, bucket_url: str
) -> Iterator[Callable[..., Receiving]]:
    with receiving(
        tmp_path, postgres_server.conninfo(), postgres_server.server.data_dir, object_store_access, bucket_url
    ) as found:
        yield lambda: found


def test_what_was_committed_is_in_the_store_and_equal_after_kill_9(begin: Callable[..., Receiving]) -> None:
    """Killed in the middle of a load, it leaves no gap, and its successor goes on: all are the server's bytes."""
    wal = begin()
    process = wal.start()
    wal.execute("create table if not exists ledger (n bigint, t text)", "truncate ledger")
    first = wal.wait_durable()
    for _ in range(2):
        wal.execute("insert into ledger select n, repeat(md5(n::text), 8) from generate_series(1, 30000) n")
        process.send_signal(signal.SIGKILL)
        process.wait()
        wal.execute("insert into ledger select n, repeat(md5(n::text), 8) from generate_series(1, 3000) n")
        process = wal.start()
    last = wal.wait_durable()
    archive = wal.archive()

    history = archive.history(archive.newest.timeline)
    assert missing(archive, history, first, last) == ()
    found = reach(archive, history, first)
    assert found.stop >= last
    assert found.gap is None
    size = archive.newest.segment_bytes
    for number in range(first.position // size, last.position // size + 1):
        segment = Segment(archive.newest.timeline, number, size)
        data, stored = wal.fetched(segment, archive)
        assert data[:stored] == wal.own_file(segment)[:stored]
        assert data[stored:] == bytes(size - stored)
        assert stored >= min(size, last - segment.start)
    assert found.last_commit_at is not None
    wait_until(lambda: wal.health().get("healthy"), "it is healthy")
