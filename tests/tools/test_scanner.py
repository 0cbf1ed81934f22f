"""What a scan means: only a report that was read, of a document that a rule was applied to, is a pass."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from tools import TOOLS
from tools.scanner import Complaint, Scan, Scanner
from tools.waivers import CHOSEN, WAIVERS, Accepted

ONE, OTHER = PurePosixPath("docker/Dockerfile"), PurePosixPath("kubernetes/41-api.yaml")
Ask = Callable[[str], Scanner]


def read(report: Any, _asked: tuple[PurePosixPath, ...]) -> Scan:
    complaints = tuple(Complaint(PurePosixPath(path), rule, "as it is") for path, rule in report["broken"])
    return Scan(frozenset(map(PurePosixPath, report["judged"])), complaints)


def scanner(script: str) -> Scanner:
    """Return a scanner whose program is this Python with a script."""
    waivers = {
        ("finder", "W1"): Accepted("it is wanted so"),
        ("finder", "W2"): Accepted("it is chosen", lambda text: "chosen" in text),
    }
    return Scanner("finder", sys.executable, ("*",), lambda *_: ["-c", script], read, "nothing", waivers=waivers)


def says(judged: list[PurePosixPath], broken: list[tuple[PurePosixPath, str]]) -> str:
    report = {"judged": list(map(str, judged)), "broken": [(str(path), rule) for path, rule in broken]}
    return f"print({json.dumps(report)!r})"


def verdicts(release: Path, script: str, timeout_s: float = 30) -> dict[PurePosixPath, str]:
    found = scanner(script).check(release, (ONE, OTHER), timeout_s)
    return {path: outcome.verdict for path, outcome in found.items()}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    for path, text in ((ONE, "plain"), (OTHER, "chosen")):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text(text)
    return tmp_path


def test_a_document_without_a_rule_has_not_passed(release: Path) -> None:
    assert verdicts(release, says([ONE], [])) == {ONE: "passed", OTHER: "unjudged"}


def test_a_broken_rule_is_a_failure_of_its_document_alone(release: Path) -> None:
    assert verdicts(release, says([ONE, OTHER], [(OTHER, "R1")])) == {ONE: "passed", OTHER: "failed"}


def test_a_waived_rule_passes_and_its_reason_is_kept(release: Path) -> None:
    found = scanner(says([ONE, OTHER], [(ONE, "W1")])).check(release, (ONE, OTHER), 30)

    assert found[ONE].verdict == "passed"
    assert [(waiver.rule, waiver.reason) for waiver in found[ONE].waived] == [("W1", "it is wanted so")]


def test_a_waiver_covers_no_other_rule(release: Path) -> None:
    assert verdicts(release, says([ONE, OTHER], [(ONE, "W1"), (ONE, "R1")]))[ONE] == "failed"


def test_a_waiver_of_what_a_document_says_covers_no_other_document(release: Path) -> None:
    found = verdicts(release, says([ONE, OTHER], [(ONE, "W2"), (OTHER, "W2")]))

    assert found == {ONE: "failed", OTHER: "passed"}


@pytest.mark.parametrize("script", ["", "print('{')", "print('[]')", "print('null')", "raise SystemExit(2)"])
def test_a_scan_without_a_report_that_can_be_read_passes_nothing(release: Path, script: str) -> None:
    """It is not called a time-out: raising the limit would not help."""
    assert set(verdicts(release, script).values()) == {"broken"}


def test_a_scanner_that_is_gone_is_absent_for_every_document(release: Path) -> None:
    """Uninstalled between its version and its scan, or a script whose interpreter is missing."""
    gone = replace(scanner(""), program=str(release / "gone"))

    found = gone.check(release, (ONE, OTHER), 30)

    assert {outcome.verdict for outcome in found.values()} == {"absent"}
    assert "No such file" in found[ONE].findings[0]


def test_a_scan_that_hangs_passes_nothing(release: Path) -> None:
    assert set(verdicts(release, "import time; time.sleep(600)", 0.5).values()) == {"timed-out"}


def test_a_tool_sees_no_secret_of_our_environment(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", "hunter2")
    script = f"import os\nif 'REDIS_PASSWORD' in os.environ: raise SystemExit(2)\n{says([ONE, OTHER], [])}"

    assert set(verdicts(release, script).values()) == {"passed"}


def test_every_waiver_is_of_a_known_tool_and_gives_a_reason() -> None:
    waivers = {**WAIVERS, **CHOSEN}
    assert {tool for tool, _ in waivers} <= {tool.name for tool in TOOLS}
    assert all(len(accepted.reason.split()) >= 8 for accepted in waivers.values())
