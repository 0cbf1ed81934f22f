"""Cleanup on real file systems at their edges: full, mounted below a root, names of the longest kind, no files."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.operations.cleanup.test_files import Place, aged, names, place, write

__all__ = ["place"]

KIB = 1024
MOUNT_TIMEOUT_S = 30

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")


@contextmanager
def mounted(path: Path, *options: str) -> Iterator[Path]:
    """Mount a file system on a directory while the block runs."""
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", *options, str(path)], check=True, timeout=MOUNT_TIMEOUT_S)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=MOUNT_TIMEOUT_S)


@needs_root
def test_a_disk_that_is_full_while_a_log_is_compressed_costs_no_line_and_leaves_no_copy(place: Place) -> None:
    """The copy does not fit: the original stays, the entry says why, the others go on; with room it is compressed."""
    with mounted(place.logs, "-t", "tmpfs", "-o", f"size={800 * KIB}", "tmpfs"):
        noise = os.urandom(300 * KIB)  # gzip does not make it smaller
        write(place.logs / "noise.log", 2, noise)
        write(place.logs / "old.log", 31, b"x" * 4 * KIB)
        filler = place.logs / "filler"
        filler.write_bytes(b"\0" * 400 * KIB)

        outcome = place.apply(place.plan())

        assert (outcome.done, outcome.skipped) == ({"delete": 1}, 1)
        assert "space" in outcome.rows[0]["skipped_because"].lower()
        assert names(place.logs) == {"noise.log", "filler"}
        assert (place.logs / "noise.log").read_bytes() == noise

        filler.unlink()
        assert place.apply(place.plan()).done == {"compress": 1}
        assert names(place.logs) == {"noise.log.gz"}


@needs_root
def test_what_is_mounted_below_a_root_is_not_below_it(place: Place) -> None:
    """A bind mount, the same file system or another, leads out of the root: nothing in it is listed or removed."""
    kept = write(place.outside / "old.log", 40)
    with (
        mounted(place.logs / "bound", "--bind", str(place.outside)),
        mounted(place.logs / "other", "-t", "tmpfs", "tmpfs"),
    ):
        other = write(place.logs / "other" / "old.log", 40)
        mine = write(place.logs / "mine" / "old.log", 40)

        outcome = place.apply(place.plan())

        assert outcome.done == {"delete": 1}
        assert (kept.exists(), other.exists(), mine.exists()) == (True, True, False)


@needs_root
def test_what_was_mounted_over_a_directory_since_the_plan_keeps_its_files(place: Place) -> None:
    """The plan saw a directory; by now another file system covers it, with a file of the same name and age."""
    write(place.logs / "day" / "old.log", 40)
    plan = place.plan()
    kept = write(place.outside / "old.log", 40)
    with mounted(place.logs / "day", "--bind", str(place.outside)):
        outcome = place.apply(plan)

        assert (outcome.done, outcome.skipped) == ({}, 1)
        assert kept.exists()


def test_the_longest_names_and_those_that_look_like_options_go_like_others(place: Place) -> None:
    """255 bytes have no room for .gz: such a log is not compressed, and still goes when it is old."""
    longest, option = "n" * 251 + ".log", "-rf"
    write(place.logs / "old" / longest, 31)
    write(place.logs / "old" / option, 31)
    write(place.logs / "young" / longest, 2)
    write(place.logs / "young" / option, 2)

    outcome = place.apply(place.plan())

    assert outcome.done == {"delete": 2, "compress": 1}
    assert names(place.logs) == {"old", "young", f"young/{longest}", "young/-rf.gz"}


def test_what_is_no_file_stays_and_is_not_opened(place: Place) -> None:
    """Opening a FIFO would wait for its writer for ever; a socket and a device are somebody's."""
    os.mkfifo(place.temp / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.temp / "socket"))
        strange = {"fifo", "socket"}
        if os.geteuid() == 0:
            os.mknod(place.temp / "null", 0o20666, os.makedev(1, 3))
            strange.add("null")
        for name in strange:
            aged(place.temp / name, 365)
        write(place.temp / "file", 365)

        outcome = place.apply(place.plan("temp"))

    assert outcome.done == {"delete": 1}
    assert names(place.temp) == strange
