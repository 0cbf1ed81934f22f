"""The spool where its disk ends: what it says has arrived can be read, and the rest is taken when there is room."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.errors import HostFailed
from synapse_ops.services.wal_receiver.spool import Spool

SEGMENT_BYTES = 16 * 1024**2
START = Lsn(SEGMENT_BYTES)
WAL = bytes(range(256)) * 64


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """The kernel takes a part of the write that crosses the limit, as it does at the end of a disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_of_which_the_disk_took_a_part_has_not_arrived(tmp_path: Path) -> None:
    """Else a hole of the file would be stored as WAL, or the receiver would end when it is read."""
    spool = Spool(tmp_path, SEGMENT_BYTES)
    spool.append(1, START, WAL, SEGMENT_BYTES)
    [one] = spool.segments()

    with no_file_longer_than(len(WAL) + 1000), pytest.raises(HostFailed):
        spool.append(1, START + len(WAL), WAL, SEGMENT_BYTES)
    before = one.received
    spool.append(1, START + len(WAL), WAL, SEGMENT_BYTES)

    assert before == len(WAL)
    assert one.received == 2 * len(WAL)
    assert one.read_at(0, one.received) == WAL * 2
