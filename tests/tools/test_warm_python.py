"""A fork of a warm Python is to its caller what a fresh process is: else what a tool says in it would prove nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.tools.warm_python import CRASHED, shim

PROGRAM = """
import json, os, sys
print(json.dumps([sys.argv[1:], os.getcwd(), os.environ["WORD"], getattr(json, "mark", 0)]))
json.mark = 1
print("aside", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


def call(program: Path, word: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *arguments],
        cwd=program.parent,
        env={"WORD": word},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_warm_program_has_its_own_arguments_words_and_status_and_no_memory(tmp_path: Path) -> None:
    """What one run changes in a module, the next does not see."""
    with shim(tmp_path, "teller", sys.executable, "json", "-c", PROGRAM):
        one, other = call(tmp_path / "teller", "red", "3", "a b"), call(tmp_path / "teller", "blue", "0")

    assert (one.returncode, one.stdout, one.stderr) == (3, f'[["3", "a b"], "{tmp_path}", "red", 0]\n', "aside\n")
    assert (other.returncode, other.stdout) == (0, f'[["0"], "{tmp_path}", "blue", 0]\n')


def test_a_warm_program_that_crashes_has_not_ended_well(tmp_path: Path) -> None:
    """Its caller sees a status that is no verdict of any tool."""
    with shim(tmp_path, "crasher", sys.executable, "json", "-c", "import os; os.kill(os.getpid(), 9)"):
        assert call(tmp_path / "crasher", "").returncode == CRASHED


def test_a_warm_program_that_raises_says_so(tmp_path: Path) -> None:
    """As Python does: the traceback, and status 1."""
    with shim(tmp_path, "raiser", sys.executable, "json", "-c", "raise ValueError('odd')"):
        done = call(tmp_path / "raiser", "")

    assert done.returncode == 1
    assert "ValueError: odd" in done.stderr
