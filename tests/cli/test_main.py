"""The command line as an operator meets it: exit codes, where output goes, and what is never shown."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_ops import errors
from synapse_ops.cli import main as cli_main
from synapse_ops.errors import SynapseOpsError

CALL_TIMEOUT_S = 120


def call(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "synapse_ops", *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=CALL_TIMEOUT_S,
        check=False,
    )


@pytest.fixture
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SYNAPSE_SPEC", "SYNAPSE_STATE_DIR", "SYNAPSE_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)


def all_errors(root: type[SynapseOpsError] = SynapseOpsError) -> Iterator[type[SynapseOpsError]]:
    yield root
    for child in root.__subclasses__():
        yield from all_errors(child)


def test_every_error_class_of_the_tree_is_drawn_in_its_docstring() -> None:
    """The tree in the module docstring is what operators and alerts read; a class missing there is undocumented."""
    drawn = errors.__doc__ or ""

    names = [kind.__name__ for kind in all_errors() if kind.__module__ == errors.__name__]
    missing = [name for name in names if name not in drawn]

    assert missing == []


def test_exit_codes_stay_below_126() -> None:
    """PostgreSQL's archive_command treats higher codes as a reason to stop (PostgreSQL docs, archive_command)."""
    assert {kind.exit_code for kind in all_errors()} <= set(range(1, 126))


@pytest.mark.usefixtures("empty_environment")
def test_a_missing_spec_is_one_message_with_the_way_out(tmp_path: Path) -> None:
    """Exit code 2, nothing on stdout, no traceback, and the options that would help are named."""
    result = call("backup", "list", cwd=tmp_path)

    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: no spec given")
    assert "--repository" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("empty_environment")
def test_with_json_an_error_is_json_on_stderr(tmp_path: Path) -> None:
    """A program that asked for JSON parses the error too, and stdout stays empty."""
    result = call("backup", "list", "--json", cwd=tmp_path)

    body = json.loads(result.stderr.splitlines()[-1])
    assert body["exit_code"] == result.returncode == 2
    assert set(body["error"]) == {"code", "message", "detail", "hint"}
    assert body["error"]["code"] == "ConfigError"


@pytest.mark.parametrize("arguments", [("expire", "--apply"), ("bakcup",), ("info", "--state-dir", "file")])
def test_with_json_a_usage_error_is_json_too(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """docs/cli.md promises one JSON object for every error; a mistyped option is one."""
    (tmp_path / "file").touch()
    result = call(arguments[0], "--json", *arguments[1:], cwd=tmp_path)

    body = json.loads(result.stderr)
    assert (body["exit_code"], result.returncode, result.stdout) == (2, 2, "")
    assert body["error"]["code"] == "ConfigError"
    assert "--help" in body["error"]["hint"]


@pytest.mark.parametrize("size", ["x", "-1", "4Q", ""])
def test_a_demo_of_no_size_is_refused_before_a_server_starts(size: str, tmp_path: Path) -> None:
    """A mistyped --size is the caller's fault: exit code 2 with what is allowed, and no state directory."""
    result = call("demo", "--size", size, cwd=tmp_path)

    assert result.returncode == 2, result.stderr
    assert "32MiB" in result.stderr or "512MiB" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_command_is_refused_with_exit_code_2(tmp_path: Path) -> None:
    """Usage errors and wrong settings share one code."""
    assert call("bakcup", cwd=tmp_path).returncode == 2


def test_a_fault_of_our_own_is_one_line_and_a_file_with_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1; the traceback, whatever it shows, is in a file that its owner alone can read."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setitem(cli_main.COMMANDS, "broken", ("options", "A module that holds no command."))

    with pytest.raises(SystemExit) as stopped:
        cli_main.main(["broken"])

    said = capsys.readouterr().err
    [log] = tmp_path.iterdir()
    assert stopped.value.code == 1
    assert "AttributeError" in said.splitlines()[0]
    assert "Traceback" not in said
    assert str(log) in said
    assert log.read_text().startswith("Traceback (most recent call last):")
    assert "AttributeError: module 'synapse_ops.cli.options' has no attribute 'command'" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("command", sorted(cli_main.COMMANDS))
def test_every_command_has_help_that_ends_in_an_example(command: str, tmp_path: Path) -> None:
    """Help is what is read at 3 in the morning: each command shows a line that can be copied."""
    result = call(command, "--help", cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    beyond_usage = result.stdout.partition("\n")[2]
    assert f"synapse-ops {command}" in beyond_usage


@pytest.mark.usefixtures("empty_environment")
def test_a_reset_that_nobody_can_confirm_is_refused_with_the_option_that_does(tmp_path: Path) -> None:
    """In a script, without a terminal, nothing is removed; exit code 2, not the 130 of an interrupt."""
    data = tmp_path / ".synapse" / "data"
    data.mkdir(parents=True)

    result = call("local", "reset", cwd=tmp_path)

    assert result.returncode == 2
    assert "hint: Confirm with --yes." in result.stderr
    assert data.is_dir()


@pytest.mark.usefixtures("empty_environment")
@pytest.mark.parametrize("content", [b"\x7fELF\x00\x01\xff", b"", None], ids=["binary", "empty", "absent"])
def test_certificate_authorities_that_are_none_are_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    """A wrong --ca-file is a wrong argument, exit 2; it once looked as if the store did not answer."""
    authorities = tmp_path / "authorities.pem"
    if content is not None:
        authorities.write_bytes(content)
    place = ("--repository", "s3://backups/database/", "--endpoint", "https://127.0.0.1:1")

    result = call("info", *place, "--ca-file", str(authorities), cwd=tmp_path)

    assert (result.returncode, result.stdout) == (2, "")
    assert f"error: cannot use {authorities} as certificate authorities" in result.stderr
    assert "-----BEGIN CERTIFICATE-----" in result.stderr


@pytest.mark.usefixtures("empty_environment")
def test_commits_are_not_steered_beside_another_manager(tmp_path: Path) -> None:
    """ALTER SYSTEM would override for ever what the other manager writes into its own file."""
    (tmp_path / "infrastructure.yaml").write_text("failover: {manager: external}\ndatabase: {admin: 'env:NONE'}\n")

    result = call("wal", "sync", "off", cwd=tmp_path)

    assert (result.returncode, result.stdout) == (10, "")
    assert "failover.manager is external" in result.stderr
