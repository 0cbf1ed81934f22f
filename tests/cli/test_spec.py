"""`synapse-ops spec`: exit codes, what goes where, and the JSON promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "synapse_ops", "spec", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    file = tmp_path / "infrastructure.yaml"
    file.write_text("name: synapse\nkubernetes: {replicas: 4}\n")
    return file


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    file = tmp_path / "infrastructure.yaml"
    file.write_text("nmae: synapse\ndatabase: {admin: 'postgresql://u:hunter2@h/'}\n")
    return file


def test_a_valid_spec_exits_0_and_tells_what_has_no_effect(good: Path) -> None:
    """The digest and the notes go to stdout."""
    result = run("check", good)

    assert (result.returncode, result.stderr) == (0, "")
    assert f"{good} is valid, sha256 " in result.stdout
    assert f"kubernetes.replicas ({good}:2) is ignored because autoscaling" in result.stdout


def test_an_invalid_spec_exits_2_with_every_fault_on_stderr(bad: Path) -> None:
    """Nothing goes to stdout, no traceback, no secret."""
    result = run("check", bad)

    assert (result.returncode, result.stdout) == (2, "")
    assert f'detail: {bad}:1:1: nmae: found the unknown key "nmae"' in result.stderr
    assert f"detail: {bad}:2:12: database.admin: found a literal secret (not shown)" in result.stderr
    assert "hunter2" not in result.stderr
    assert "Traceback" not in result.stderr


def test_faults_as_json_keep_their_keys(bad: Path) -> None:
    """One document on stdout, one entry per fault, exit 2."""
    result = run("check", bad, "--json")

    document = json.loads(result.stdout)
    assert result.returncode == 2
    assert document["valid"] is False
    assert {key for fault in document["faults"] for key in fault} == {
        "file", "line", "column", "field", "found", "allowed", "suggestion",
    }  # fmt: skip
    assert document["faults"][0]["suggestion"] == "name"
    assert "hunter2" not in result.stdout


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_path_that_cannot_be_read_exits_2(tmp_path: Path, name: str) -> None:
    """As text on stderr, and as one fault in JSON."""
    path = tmp_path / name

    assert run("check", path).returncode == run("show", path).returncode == 2
    assert json.loads(run("check", path, "--json").stdout)["faults"][0]["line"] is None


def test_show_prints_a_spec_with_every_default_and_origin(good: Path, tmp_path: Path) -> None:
    """What it prints is a valid spec with the same digest."""
    shown = run("show", good)
    copy = tmp_path / "shown.yaml"
    copy.write_text(shown.stdout)

    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["name:", "synapse", "#", f"{good}:1"] in lines
    assert ["port:", "8000", "#", "default"] in lines
    assert f"{good}:2; ignored because autoscaling keeps between 2 and 10 pods" in shown.stdout
    assert run("check", copy).stdout.split()[-1:] != []
    assert json.loads(run("show", copy, "--json").stdout)["digest"] in shown.stdout


def test_show_as_json_has_one_entry_per_value(good: Path) -> None:
    """Each says field, value, origin and why it is ignored; a secret is its reference."""
    document = json.loads(run("show", good, "--json").stdout)

    values = {entry["field"]: entry for entry in document["values"]}
    assert values["name"] == {"field": "name", "value": "synapse", "origin": f"{good}:1", "ignored": None}
    assert values["database.admin"]["value"] == "env:SYNAPSE_ADMIN_DSN"
    assert "autoscaling" in values["kubernetes.replicas"]["ignored"]
    assert set(document) == {"path", "digest", "block_digests", "notes", "values"}


def test_the_schema_is_json_on_stdout() -> None:
    """It can be written to a file for an editor as it is."""
    result = run("schema")

    assert json.loads(result.stdout)["properties"]["server"]
    assert (result.returncode, result.stderr) == (0, "")
