"""The programs of the control plane end with the tests, also when those are killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from synapse_ops.systems.host.processes import ProcessMark
from tests.cluster.control_plane import STOP_TIMEOUT_S

pytestmark = pytest.mark.cluster

OWNER = """
import sys, time
from pathlib import Path
from tests.cluster.control_plane import running_control_plane
with running_control_plane(Path(sys.argv[1])) as plane:
    print(*(mark.pid for mark in plane.processes.values()), flush=True)
    time.sleep(600)
"""


def test_nothing_outlives_tests_that_are_killed(tmp_path: Path) -> None:
    """PR_SET_PDEATHSIG: the kernel ends every program with the thread that started it."""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path], cwd=root, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        marks = [mark for pid in pids if (mark := ProcessMark.of(pid)) is not None]
        owner.kill()

    assert len(marks) == 5, pids
    assert all(mark.wait_gone(STOP_TIMEOUT_S) for mark in marks)
