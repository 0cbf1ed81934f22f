"""The failover drill on real servers: what it measures, and that it leaves nothing, also when it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from synapse_ops.domain.recovery.drill_score import Of, Scenario
from synapse_ops.local.failover_drill import drill_failover
from synapse_ops.local.layout import find_layout
from synapse_ops.operations.stack import Stack
from synapse_ops.spec import load_spec
from synapse_ops.systems.host.processes import processes_in
from tests.servers import servers_dir

pytestmark = pytest.mark.scenario

LIMIT_S = 180.0
DRILL = """
import sys
from pathlib import Path
from synapse_ops.local.failover_drill import drill_failover
from synapse_ops.operations.stack import Stack
from synapse_ops.spec import load_spec
drill_failover(Stack(load_spec(Path(sys.argv[1])), Path(sys.argv[2])), lambda one: print(one.stage, flush=True))
"""


@contextmanager
def begun_drill(spec: Path, state_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """A drill in another process that has begun to write."""
    argv = [sys.executable, "-c", DRILL, str(spec), str(state_dir)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert any(line.startswith("writing") for line in child.stdout)
            yield child
        finally:
            child.kill()


def test_a_drill_after_a_killed_one_measures_each_step_and_leaves_nothing() -> None:
    """kill -9 in the middle: the copy's servers end, the next drill sweeps what is left and passes."""
    state_dir = servers_dir("drill")
    spec = state_dir / "infrastructure.yaml"
    spec.write_text("name: synapse\nfailover: {max_lag_bytes: 4Mi}\n")
    copy = state_dir / "drills" / "failover"
    with begun_drill(spec, state_dir) as child:
        data = find_layout(copy).data
        assert processes_in(data / "db-primary")
        os.kill(child.pid, signal.SIGKILL)
    end_s = time.monotonic() + LIMIT_S
    while any(processes_in(folder) for folder in data.iterdir()):
        assert time.monotonic() < end_s
        time.sleep(0.1)

    score = drill_failover(Stack(load_spec(spec), state_dir))

    assert (score.scenario, score.of, score.reason) == (Scenario.FAILOVER_DRILL, Of.COPY, "")
    names = [name for name, _ in score.phases]
    assert names[0] == "detected"
    assert sorted(names[1:]) == ["confirmed", "fenced", "first write", "promoted", "rejoined", "verified"]
    assert score.rto_s is not None
    assert 1.0 < score.rto_s < LIMIT_S  # hard evidence has a window of a second
    assert score.lost_writes is not None
    assert (score.lost_writes > 0) == (score.rpo_s != 0.0)
    assert score.size_bytes > 0
    assert not copy.exists()
    assert not copy.is_symlink()
