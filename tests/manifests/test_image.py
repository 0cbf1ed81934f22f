"""The image of this tool is started as the rendered files start it, and is built from what the repository has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from synapse_ops.manifests.bundle import render_bundle
from tests.manifests.specs import spec_of

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
SERVICE = yaml.load(render_bundle(spec_of("default")).by_path["docker/compose.yaml"].text, yaml.CSafeLoader)[
    "services"
]["synapse-ops"]


def words_after(instruction: str) -> list[str]:
    """Return the only exec form of an instruction."""
    [found] = re.findall(rf"^{instruction} (\[.*\])$", DOCKERFILE, re.MULTILINE)
    words: list[str] = json.loads(found)
    return words


def test_the_image_starts_and_is_checked_as_in_compose() -> None:
    """One command line, one user, one health check, one port: `docker run` is what compose does."""
    checks = re.search(r"^HEALTHCHECK (.*) \\\n  CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert checks is not None

    assert words_after("CMD") == SERVICE["entrypoint"] + SERVICE["command"]
    assert "\nENTRYPOINT" not in DOCKERFILE  # dagster-k8s and Dagster's Helm chart start `dagster` by arguments alone
    assert f"\nUSER {SERVICE['user']}\n" in DOCKERFILE
    assert ["CMD", *json.loads(checks[2])] == SERVICE["healthcheck"]["test"]
    times = {key: SERVICE["healthcheck"][name] for key, name in TIMES.items()}
    assert checks[1] == " ".join(f"--{key}={value}" for key, value in times.items())
    assert "\nEXPOSE 9109\n" in DOCKERFILE


TIMES = {"interval": "interval", "timeout": "timeout", "start-period": "start_period", "retries": "retries"}


def test_the_state_directory_of_the_image_belongs_to_its_user() -> None:
    """A new volume takes the owner of the directory it is mounted on: else the prober could keep no history."""
    user, group = SERVICE["user"].split(":")
    [volume] = [mount for mount in SERVICE["volumes"] if mount["type"] == "volume"]

    assert f"install --directory --owner={user} --group={group} --mode=0750 {volume['target']}\n" in DOCKERFILE


def test_the_log_directory_of_the_application_s_image_belongs_to_its_user() -> None:
    """API and worker write logs to a volume that is new at first, as the same user."""
    documents = render_bundle(spec_of("default")).by_path
    services = yaml.load(documents["docker/compose.yaml"].text, yaml.CSafeLoader)["services"]

    for name in ("api", "worker"):
        user, group = services[name]["user"].split(":")
        [volume] = services[name]["volumes"]
        made = f"RUN install --directory --owner={user} --group={group} {volume['target']}\n"
        assert made in documents["docker/Dockerfile"].text


def test_no_image_keeps_an_installer() -> None:
    """Neither pip of the first stage, in the environment that is copied, nor that of the base image."""
    rendered = render_bundle(spec_of("default")).by_path["docker/Dockerfile"].text

    for text, environment in ((DOCKERFILE, "/opt/synapse-ops"), (rendered, "/opt/app")):
        build, final = re.split(r"^FROM .*\n", text, flags=re.MULTILINE)[1:]
        assert f"python -m venv --without-pip {environment} " in build
        assert f"COPY --from=build {environment} {environment}\n" in final
        assert "python -m pip uninstall --yes pip setuptools wheel" in final[: final.index("ENV PATH=")]


def test_the_context_holds_what_the_build_needs_and_nothing_else() -> None:
    """Each path that is copied, and each file that the wheel includes, is let into the context; all else is not."""
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {
        source for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for source in line.split()
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["project"]["readme"], *wheel["packages"], *wheel["force-include"]}

    assert ignored[1] == "*"
    assert let_in == copied
    assert needed <= copied
    assert all((ROOT / path).exists() for path in copied)


@pytest.mark.tools
def test_hadolint_has_nothing_to_say_of_the_image() -> None:
    """Its form is judged by the linter, its steps by make test-compose, which builds it."""
    program = shutil.which("hadolint")
    assert program is not None, "sh requirements/manifest-tools installs hadolint"

    judged = subprocess.run(
        [program, "--failure-threshold", "info", str(ROOT / "deploy" / "Dockerfile")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert (judged.returncode, judged.stdout) == (0, "")
