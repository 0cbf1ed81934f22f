"""The reserve: it takes space only where there is plenty, and gives it back."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from pathlib import Path

import pytest

from synapse_ops.systems.host.disk_reserve import DiskReserve, is_full

MIB = 1024**2


def test_what_is_held_is_really_taken_and_given_back(tmp_path: Path) -> None:
    """A sparse file would hold nothing."""
    reserve = DiskReserve(tmp_path, 4 * MIB)

    assert reserve.hold()
    assert reserve.path.stat().st_blocks * 512 >= 4 * MIB
    assert reserve.hold()
    reserve.release()
    assert not reserve.is_held
    reserve.release()


def test_a_small_disk_is_not_filled_by_its_own_reserve(tmp_path: Path) -> None:
    too_much = shutil.disk_usage(tmp_path).free // 4

    assert not DiskReserve(tmp_path, too_much).hold()
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    """The history makes it; a prober whose disk refuses that goes on without."""
    assert not DiskReserve(tmp_path / "absent", MIB).hold()


@pytest.mark.parametrize(
    ("fault", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (sqlite3.OperationalError("database or disk is full"), False),
    ],
    ids=["disk", "quota", "permission", "words alone"],
)
def test_only_the_code_of_an_error_says_that_a_disk_is_full(fault: Exception, full: bool) -> None:
    assert is_full(fault) is full


def test_sqlite_that_found_no_space_says_so_by_its_code(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "x") as connection:
        connection.execute("pragma max_page_count = 2")
        with pytest.raises(sqlite3.OperationalError) as found:
            connection.execute("create table t as select zeroblob(100000)")

    assert is_full(found.value)
