"""requirements/install: what a person has told pip is lent to uv, which reads nothing of pip's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "requirements" / "install"
TIMEOUT_S = 60
# the real pip reads its configuration, and installs nothing
PYTHON = f'#!/bin/sh\ncase "$*" in *install*) exit 0 ;; esac\nexec {sys.executable} "$@"\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose uv writes down its environment, and fails where a file says so."""
    (tmp_path / "requirements").mkdir()
    shutil.copy(SCRIPT, tmp_path / "requirements" / "install")
    for name in ("requirements/run.lock", "requirements/bootstrap.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    uv = f"#!/bin/sh\nenv >{tmp_path}/environment\nexec test ! -e {tmp_path}/uv-fails\n"
    for name, text in (("python", PYTHON), ("uv", uv)):
        program = tmp_path / ".venv" / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    return tmp_path


def install(
    checkout: Path, pip_conf: str, **environment: str
) -> tuple[dict[str, str], subprocess.CompletedProcess[str]]:
    """Run the script; return what uv was given, and how it ended."""
    (checkout / "pip.conf").write_text(pip_conf)
    given = {"PATH": "/usr/bin:/bin", "HOME": str(checkout), "PIP_CONFIG_FILE": str(checkout / "pip.conf")}
    given |= {"PYTHON": sys.executable, **environment}
    argv = ["sh", str(checkout / "requirements" / "install"), "run"]
    done = subprocess.run(argv, env=given, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    lines = (checkout / "environment").read_text().splitlines()
    (checkout / ".venv" / "installed-run").unlink(missing_ok=True)
    return dict(line.split("=", 1) for line in lines if "=" in line), done


def test_uv_is_given_what_pip_was_told(checkout: Path) -> None:
    """A company's authority, index, proxy and trusted host, in pip's configuration alone."""
    conf = "[global]\ncert = /etc/ca one.pem\nindex-url = https://pypi.example/simple\ntrusted-host = pypi.example\n"

    given, done = install(checkout, f"{conf}[install]\nproxy = http://proxy.example:3128\n")

    assert done.returncode == 0, done.stderr
    assert given["SSL_CERT_FILE"] == "/etc/ca one.pem"
    assert given["UV_DEFAULT_INDEX"] == "https://pypi.example/simple"
    assert given["UV_INSECURE_HOST"] == "pypi.example"
    assert given["ALL_PROXY"] == "http://proxy.example:3128"


def test_the_environment_goes_before_pips_files(checkout: Path) -> None:
    """uv's own variable first, then what pip takes from the environment; a directory of authorities is one, too."""
    conf = "[global]\ncert = /etc/of-pip.pem\n"

    own, _ = install(checkout, conf, SSL_CERT_FILE="/etc/own.pem", PIP_CERT="/etc/env.pem")
    of_pip, _ = install(checkout, conf, PIP_CERT="/etc/env.pem")
    folder, _ = install(checkout, conf, PIP_CERT=str(checkout))

    assert own["SSL_CERT_FILE"] == "/etc/own.pem"
    assert of_pip["SSL_CERT_FILE"] == "/etc/env.pem"
    assert folder["SSL_CERT_DIR"] == str(checkout)
    assert "SSL_CERT_FILE" not in folder


def test_a_failed_install_says_which_variables_to_set(checkout: Path) -> None:
    """With their meaning: the message is all that an operator behind a proxy has."""
    (checkout / "uv-fails").touch()

    _, done = install(checkout, "")

    assert done.returncode == 1
    assert "SSL_CERT_FILE" in done.stderr
