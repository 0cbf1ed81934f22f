"""A state directory on bad days: full to the last byte, not writable, impossible. None of that is a bug of ours."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_ops.cli import failures
from synapse_ops.cli.main import main
from synapse_ops.errors import ConfigError, HostFailed

KIB = 1024
MOUNT_TIMEOUT_S = 30
DAY_S = 86400


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory whose file system has no byte left: with a spec, an old temporary file, an empty state directory."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={512 * KIB}", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True, timeout=MOUNT_TIMEOUT_S).returncode:
        pytest.skip("this host does not let us mount a file system")
    try:
        (disk / "temp").mkdir()
        old = disk / "temp" / "old.tmp"
        old.write_bytes(b"x" * 100 * KIB)
        os.utime(old, (time.time() - 30 * DAY_S,) * 2)
        (disk / "infrastructure.yaml").write_text(
            f"watch: {{servers: [disk]}}\ncleanup: {{temp_roots: ['{disk}/temp']}}\n"
        )
        (disk / "state").mkdir()
        with (disk / "filler").open("wb", buffering=0) as filler:
            os.posix_fallocate(filler.fileno(), 0, os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize)
        assert os.statvfs(disk).f_bavail == 0
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True, timeout=MOUNT_TIMEOUT_S)


def test_cleanup_frees_a_disk_without_a_byte_left(full_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command that frees space needs none: plan, apply, and the same plan is used up then."""
    options = ("--state-dir", str(full_disk / "state"), "--spec", str(full_disk / "infrastructure.yaml"))

    assert run("cleanup", "--plan", "--only", "temp", "--json", *options) == 0
    [plan] = json.loads(capsys.readouterr().out)["plans"]
    assert run("cleanup", "--apply", plan["digest"], "--json", *options) == 0

    assert json.loads(capsys.readouterr().out)["applied"][0]["freed_bytes"] == 100 * KIB
    assert not (full_disk / "temp" / "old.tmp").exists()
    assert run("cleanup", "--apply", plan["digest"], *options) == 10
    shutil.rmtree(Path(plan["path"]).parents[1])  # the spare folder, in memory


@pytest.mark.parametrize(("command", "code"), [(("ui",), 15), (("local", "up"), 10), (("health",), 17)])
def test_a_full_disk_is_told_with_what_to_do(
    full_disk: Path, command: tuple[str, ...], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command says which file system is full; `health` judges it as the prober would."""
    spec = () if command == ("local", "up") else ("--spec", str(full_disk / "infrastructure.yaml"))

    assert run(*command, "--state-dir", str(full_disk / "state"), *spec) == code

    shown = "".join(capsys.readouterr())
    assert str(full_disk) in shown
    assert "hint: " in shown
    assert "internal error" not in shown


@pytest.mark.parametrize("command", [("cleanup", "--plan", "--only", "logs"), ("ui",), ("local", "up")])
@pytest.mark.parametrize("state_dir", ["/dev/null/state", "x" * 300, "loop/state"])
def test_an_impossible_state_directory_is_a_fault_of_the_arguments(
    tmp_path: Path,
    command: tuple[str, ...],
    state_dir: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit 2 and the path, whatever makes it impossible."""
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("infrastructure.yaml").write_text("name: tests\n")
    spec = () if command == ("local", "up") else ("--spec", "infrastructure.yaml")

    assert run(*command, "--state-dir", state_dir, *spec) == 2

    shown = capsys.readouterr().err
    assert state_dir.split("/")[-1] in shown
    assert "internal error" not in shown


def test_a_bug_on_a_full_disk_is_still_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log file with the traceback cannot be written then; and a full disk itself is no bug."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(failures.tempfile, "mkstemp", refuse)

    assert "could not be written: No space left" in failures.error_of_bug(KeyError("x")).detail
    assert isinstance(failures.error_of_bug(OSError(errno.ENOSPC, "No space left on device", "/x")), HostFailed)
    assert isinstance(failures.error_of_bug(PermissionError(errno.EACCES, "Permission denied", "/x")), ConfigError)
