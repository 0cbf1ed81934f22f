"""The engine ends with the tests, also when those are killed, and leaves nothing of its own on the host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from synapse_ops.systems.host.processes import ProcessMark
from tests.engine.engine import ROOT, STOP_TIMEOUT_S, Engine, why_no_engine
from tests.engine.images import PYTHON, rootfs

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

OWNER = """
import sys, time
from pathlib import Path
from tests.engine.engine import running_engine
with running_engine(Path(sys.argv[1])) as engine:
    engine.import_rootfs(Path(sys.argv[2]), "base")
    engine.docker("run", "--detach", "--publish=80:80", "base", "sleep", "600")
    print(engine.first.pid, flush=True)
    time.sleep(600)
"""


def test_nothing_outlives_tests_that_are_killed(tmp_path: Path) -> None:
    """Its processes and its container's are in one process namespace, whose first process the kernel kills."""
    if (why := why_no_engine()) is not None:
        pytest.skip(why)
    argv = [sys.executable, "-c", OWNER, str(tmp_path / "engine"), str(rootfs(PYTHON))]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        first = int(owner.stdout.readline())
        inside = [first, *(child.pid for child in psutil.Process(first).children(recursive=True))]
        marks = [mark for pid in inside if (mark := ProcessMark.of(pid)) is not None]
        commands = {psutil.Process(mark.pid).name() for mark in marks}
        owner.kill()

    assert {"dockerd", "containerd", "sleep"} <= commands
    assert all(mark.wait_gone(STOP_TIMEOUT_S) for mark in marks)
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def test_what_the_engine_makes_is_not_in_the_host_s_network(engine: Engine) -> None:
    """Its bridge, its chains and its published ports are in a network namespace of its own."""
    chains = subprocess.run(["iptables", "--list-rules"], capture_output=True, text=True, check=False, timeout=60)
    inside = subprocess.run(
        ["nsenter", f"--target={engine.first.pid}", "--net", "iptables", "--list-rules"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    bridges = {
        line.split(":")[0].strip() for line in Path(f"/proc/{engine.first.pid}/net/dev").read_text().splitlines()
    }

    assert "-N DOCKER-USER" in inside.stdout
    assert inside.stdout != chains.stdout
    assert "docker0" in bridges
