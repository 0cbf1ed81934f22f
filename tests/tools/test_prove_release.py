"""A refusal, a missing verdict and a pass of the outside tools are three different ends of `make prove-release`."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pytest

from synapse_ops.errors import ConfigError
from synapse_ops.manifests.bundle import Bundle, bundle_of, render_bundle
from tests.manifests.specs import spec_of
from tools import TOOLS
from tools.prove_release import Passed, as_text, chosen_tools, prove_release
from tools.tool import ToolOutcome, ToolVerdict

DOCKERFILE = "docker/Dockerfile"
EXAMPLE = "examples/synapse/infrastructure.yaml"
ROOT = Path(__file__).parents[2]
CALL_TIMEOUT_S = 120
BUNDLE = render_bundle(spec_of("default"))


@dataclass(frozen=True)
class WordFinder:
    """A tool of these tests: refuses each document below docker/ that holds a word. It reads the real files.

    verdict: said of every document instead. judges: whether it says anything.
    """

    name: str = "word-finder"
    install: str = "nothing to install"
    opens: tuple[str, ...] = ()
    word: str = "never-in-a-document"
    is_installed: bool = True
    judges: bool = True
    verdict: ToolVerdict | None = None

    def applies(self, path: PurePosixPath, /) -> bool:
        return path.parts[0] == "docker"

    def version(self) -> str | None:
        return "1.0" if self.is_installed else None

    def check(
        self, directory: Path, documents: tuple[PurePosixPath, ...], timeout_s: float
    ) -> Mapping[PurePosixPath, ToolOutcome]:
        del timeout_s
        found = {}
        for path in documents if self.judges else ():
            bad = self.word in (directory / path).read_text()
            verdict: ToolVerdict = self.verdict or ("failed" if bad else "passed")
            findings = () if verdict == "passed" else (f"holds {self.word}",)
            found[path] = ToolOutcome(self.name, "1.0", verdict, findings, 0.01)
        return found


FINDER = WordFinder()


def test_every_document_is_judged_by_every_tool_that_applies() -> None:
    """The report has one outcome for each pair, and no other."""
    report = prove_release(BUNDLE, (FINDER,))

    expected = {(path, FINDER.name) for path in BUNDLE.by_path if path.startswith("docker/")}
    assert set(report.outcomes) == expected
    assert {outcome.verdict for outcome in report.outcomes.values()} == {"passed"}
    assert report.exit_code == 0


def test_a_refusal_is_13_and_names_document_tool_and_finding() -> None:
    """Also beside a tool that passes everything."""
    report = prove_release(BUNDLE, (replace(FINDER, name="another"), replace(FINDER, word="FROM")))

    assert report.exit_code == 13
    lines = as_text(report).splitlines()
    assert f"REFUSED: {DOCKERFILE}: word-finder: holds FROM" in lines
    [row] = [line for line in lines if line.startswith(f"{DOCKERFILE} ")]
    assert row.split(maxsplit=1)[1] == "passed: another; REFUSED: word-finder"


@pytest.mark.parametrize(
    ("tool", "verdict", "beside_another"),
    [
        (replace(FINDER, is_installed=False), "absent", 0),
        (replace(FINDER, verdict="unjudged"), "unjudged", 0),
        (replace(FINDER, verdict="timed-out"), "timed-out", 14),
        (replace(FINDER, verdict="broken"), "broken", 14),
        (replace(FINDER, judges=False), "broken", 14),
    ],
    ids=["absent", "without a rule", "stopped", "without a report", "silent"],
)
def test_a_tool_that_judged_nothing_has_passed_nothing(tool: WordFinder, verdict: str, beside_another: int) -> None:
    """14 when it is alone. Beside a tool that passes, one that is absent or has no rule stops nothing."""
    report = prove_release(BUNDLE, (tool,))

    assert {outcome.verdict for outcome in report.outcomes.values()} == {verdict}
    assert report.exit_code == 14
    assert prove_release(BUNDLE, (replace(tool, name="another"), FINDER)).exit_code == beside_another
    assert "0 passed" in as_text(report).splitlines()[-1]


def test_a_document_that_passed_is_asked_again_only_when_its_bytes_or_those_it_is_read_with_change() -> None:
    """A refusal is never remembered, and a pass of other bytes says nothing."""
    asked: list[str] = []

    @dataclass(frozen=True)
    class Asked(WordFinder):
        def check(
            self, directory: Path, documents: tuple[PurePosixPath, ...], timeout_s: float
        ) -> Mapping[PurePosixPath, ToolOutcome]:
            asked.extend(map(str, documents))
            return super().check(directory, documents, timeout_s)

    def asked_of(bundle: Bundle, tool: WordFinder) -> list[str]:
        asked.clear()
        report = prove_release(bundle, (tool,), passed=passed)
        assert set(report.outcomes) == {(path, tool.name) for path in every}
        return list(asked)

    passed: Passed = {}
    every = [path for path in BUNDLE.by_path if path.startswith("docker/")]
    refused = [str(one.path) for one in BUNDLE.documents if b"FROM" in one.data and str(one.path) in every]
    longer = [replace(one, data=one.data + b"#") if str(one.path) == DOCKERFILE else one for one in BUNDLE.documents]
    reading = Asked(name="reads-two", opens=(DOCKERFILE,))

    assert [asked_of(BUNDLE, Asked()), asked_of(BUNDLE, Asked())] == [every, []]
    assert asked_of(bundle_of(tuple(longer)), Asked()) == [DOCKERFILE]
    assert [asked_of(BUNDLE, reading), asked_of(BUNDLE, reading)] == [every, []]
    assert asked_of(bundle_of(tuple(longer)), reading) == every
    of_word = Asked(name="refuses", word="FROM")
    assert [asked_of(BUNDLE, of_word), asked_of(BUNDLE, of_word)] == [every, refused]


def test_a_misspelt_tool_is_refused_with_the_choices() -> None:
    """A run of no tool at all would prove nothing and end well."""
    with pytest.raises(ConfigError) as found:
        chosen_tools((FINDER,), ["hadolintt"])

    assert "word-finder" in found.value.detail


def test_names_of_tools_are_distinct() -> None:
    """Two tools of one name would overwrite one another's outcome."""
    names = [tool.name for tool in TOOLS]

    assert len(names) == len(set(names))


def called(*arguments: str, path: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.prove_release", *arguments],
        cwd=cwd,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=CALL_TIMEOUT_S,
        check=False,
    )


@pytest.fixture
def hadolint(tmp_path: Path) -> Path:
    """Return a program of that name, whose status a test writes."""
    program = tmp_path / "bin" / "hadolint"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo 2.0; exit; }\necho "words of the tool"\nexit "${STATUS}"\n'
    )
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(("status", "exit_code"), [(0, 0), (1, 13)])
def test_the_command_ends_as_the_tool_says(tmp_path: Path, hadolint: Path, status: int, exit_code: int) -> None:
    hadolint.write_text(hadolint.read_text().replace("${STATUS}", str(status)))

    done = called("--spec", EXAMPLE, "--tool", "hadolint", path=f"{hadolint.parent}:/usr/bin:/bin")

    assert done.returncode == exit_code, done.stderr
    assert ("REFUSED: docker/Dockerfile: hadolint: words of the tool" in done.stdout) == (exit_code == 13)


def test_the_command_without_a_tool_fails_and_says_how_to_get_one(tmp_path: Path) -> None:
    """Of one that is not installed nothing is proven, and `make prove-release` must not end well by that."""
    done = called("--spec", EXAMPLE, "--tool", "hadolint", path=str(tmp_path))

    assert done.returncode == 14, done.stderr
    assert "hadolint: not installed: sh requirements/manifest-tools" in done.stdout


def test_the_command_refuses_a_spec_with_a_fault(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("name: acme\nserver: {port: 90000}\n")

    done = called("--spec", "spec.yaml", path=os.defpath, cwd=tmp_path)

    assert done.returncode == 2
    assert "port" in done.stderr


def test_the_wheel_holds_the_package_and_no_tool(tmp_path: Path) -> None:
    """What judges our documents by outside programs is of no use where the package runs."""
    argv = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]

    subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, timeout=CALL_TIMEOUT_S)

    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "synapse_ops/operations/release/render.py" in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"synapse_ops"}
