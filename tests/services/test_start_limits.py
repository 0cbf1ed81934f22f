"""A start is given minutes, because a busy host is no reason to give up a demo, a proof or a run."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

import synapse_ops
from synapse_ops.local.servers.program import ProgramServer
from synapse_ops.local.servers.s3 import SeaweedServer
from synapse_ops.services.dagster.console import Console, start_console
from synapse_ops.services.dagster.home import shipped_file
from synapse_ops.services.dagster.service import running
from synapse_ops.systems.postgres.server import PgServer

LEAST_S = 180.0
OF_A_START = re.compile(r"_?(\w+_)?(START|INIT|READY|CLONE|VERSION|CHECK|REPLY)(_\w+)?_TIMEOUT_S")


def numbers(package: Path) -> Iterator[tuple[str, float]]:
    """Yield each constant of the package whose name says that it limits a start, with its value in seconds."""
    for path in package.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                for target in node.targets:
                    if isinstance(target, ast.Name) and OF_A_START.fullmatch(target.id):
                        yield f"{path.relative_to(package)}: {target.id}", float(str(node.value.value))


def test_no_constant_limits_a_start_to_less_than_three_minutes() -> None:
    """Two of two demos died at a load of 20 on two cores, because a run had 60 s to start."""
    found = dict(numbers(Path(synapse_ops.__file__).parent))

    assert "systems/host/processes.py: START_TIMEOUT_S" in found
    assert {name: limit_s for name, limit_s in found.items() if limit_s < LEAST_S} == {}


def test_every_server_is_given_three_minutes_to_become_ready_unless_the_caller_says_otherwise() -> None:
    """The defaults of what waits for a start."""
    waits = [PgServer.start, PgServer.wait_ready, SeaweedServer.wait_ready, ProgramServer.wait_ready]
    waits += [running, start_console, Console.wait_until_ready]

    assert {wait.__qualname__: _default_of(wait) for wait in waits if _default_of(wait) < LEAST_S} == {}


def _default_of(function: object) -> float:
    return float(inspect.signature(function).parameters["timeout_s"].default)  # type: ignore[arg-type]


def test_a_dagster_run_is_given_three_minutes_to_start() -> None:
    """Run monitoring fails a run that is STARTING for longer."""
    monitoring = yaml.safe_load(shipped_file("dagster.yaml").read_text(encoding="utf-8"))["run_monitoring"]

    assert monitoring["enabled"] is True
    assert monitoring["start_timeout_seconds"] >= LEAST_S
