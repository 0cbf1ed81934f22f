"""The image of Synapse Ops, built by deploy/Dockerfile as it is: what is in it, what is not, and as whom it runs."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.engine.engine import ROOT, Engine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

IMAGE = "synapse-ops:latest"
LOCK = ROOT / "requirements" / "deploy.lock"
BUILD_TOOLS = ("pip", "pip3", "uv", "wheel", "gcc", "cc", "c++", "ld", "make", "hatchling", "git", "curl", "wget")
DISTRIBUTIONS = """
import json
from importlib.metadata import distributions
print(json.dumps({each.name: each.version for each in distributions()}))
"""


def run(engine: Engine, *command: str) -> str:
    """Run a command in the image as the rendered files do: nothing can be written, and no right is left."""
    options = ("--rm", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges")
    return engine.docker("run", *options, "--network=none", f"--entrypoint={command[0]}", IMAGE, *command[1:])


def test_it_runs_as_a_numeric_user_without_rights_on_the_host_and_can_write_only_to_what_is_mounted(
    engine: Engine,
) -> None:
    """Kubernetes' runAsNonRoot refuses a name, and a container with a read-only root must still start."""
    configured = json.loads(engine.docker("inspect", "--format={{json .Config.User}}", IMAGE))
    found = run(engine, "sh", "-c", "find / -xdev -writable -not -type l 2>/dev/null; :")  # of what may be entered

    assert configured == "10001:10001"
    assert run(engine, "id", "--user").strip() == "10001"
    assert found.split() == ["/tmp"]
    assert "synapse-ops" in run(engine, "synapse-ops", "--version")


def test_no_build_tool_is_in_it(engine: Engine) -> None:
    """Neither those of the first stage, nor the installer that the base image comes with."""
    names = " -o ".join(f"-name '{name}'" for name in BUILD_TOOLS)
    found = run(engine, "sh", "-c", f"find / -xdev \\( {names} \\) -not -type d -perm /111 2>/dev/null; :")
    modules = run(engine, "sh", "-c", "for python in $(which -a python python3); do $python -m pip --version; done; :")

    assert found == ""
    assert modules == ""


def test_it_holds_exactly_the_lock(engine: Engine) -> None:
    """Distribution for distribution, with its version; and Synapse Ops itself."""
    found = json.loads(run(engine, "python", "-c", DISTRIBUTIONS))
    held = {str(canonicalize_name(name)): version for name, version in found.items()}
    del held["synapse-ops"]

    assert held == _locked(held_by=run(engine, "python", "-c", "import sys; print(sys.version.split()[0])").strip())


def test_its_bill_of_materials_names_every_distribution_and_every_package_of_debian(
    engine: Engine, tmp_path: Path
) -> None:
    """`make image` writes it with the same script."""
    file = tmp_path / "sbom.json"
    subprocess.run(
        ["sh", ROOT / "deploy" / "sbom", IMAGE, file], env=engine.environment, check=True, timeout=300, cwd=tmp_path
    )

    listed = json.loads(file.read_text())
    named = [each["purl"].partition("@")[0] for each in listed["components"] if "purl" in each]
    python = {canonicalize_name(name) for name in json.loads(run(engine, "python", "-c", DISTRIBUTIONS))}
    debian = set(run(engine, "dpkg-query", "--show", "--showformat=${Package}\\n").split())

    assert listed["bomFormat"] == "CycloneDX"
    assert python <= {canonicalize_name(name.removeprefix("pkg:pypi/")) for name in named}
    assert debian <= {name.removeprefix("pkg:deb/debian/").replace("%2B", "+") for name in named}


def _locked(held_by: str) -> dict[str, str]:
    """Return what the lock names for a Linux with this version of Python."""
    found = {}
    for line in re.findall(r"^([a-z0-9].*?) ?\\$", LOCK.read_text(), re.MULTILINE):
        need = Requirement(line)
        if need.marker is None or need.marker.evaluate({"python_full_version": held_by}):
            found[str(canonicalize_name(need.name))] = str(need.specifier).removeprefix("==")
    return found
