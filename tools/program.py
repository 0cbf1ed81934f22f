"""A tool that is one program, asked once for each document: its status and its words are the verdict.

It runs in the directory of the whole rendering, with the document's relative path, and never with a secret: of our
environment it gets the search path and the home directory.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from synapse_ops.systems.host.processes import spawn
from tools.tool import ToolOutcome, ToolVerdict

VERSION_TIMEOUT_S = 30.0  # checkov imports for seconds before it says its version
STOP_TIMEOUT_S = 5.0
FINDINGS = 20  # lines of a tool's words that are kept
SYSTEM_PATH = "/usr/sbin:/sbin"  # where Debian puts nft, nginx and ip; not on an ordinary user's path

Commands = Callable[[Path, PurePosixPath], list[list[str]]]
Server = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Program:
    """commands: the arguments of each call, without the program; all must end with 0. install: how to get it.

    paths: globs of the documents that it applies to. complaint: words that mean a finding whatever the status is.
    opens: globs of the documents that it opens whichever it judges; none where it opens only what it judges.
    unjudged_status: the status that says that the program did not judge, with the reason; the document is unproven.
    """

    name: str
    program: str
    paths: tuple[str, ...]
    commands: Commands
    install: str
    prefix: tuple[str, ...] = ()
    opens: tuple[str, ...] = ()
    version_arguments: tuple[str, ...] = ("--version",)
    complaint: str | None = None
    unjudged_status: int | None = None

    def applies(self, path: PurePosixPath, /) -> bool:
        return any(path.match(glob) for glob in self.paths)

    def version(self) -> str | None:
        """Return what the program calls itself; None when it is not installed or does not answer."""
        return version_of(self.program, self.version_arguments)

    def check(
        self, directory: Path, documents: tuple[PurePosixPath, ...], timeout_s: float
    ) -> Mapping[PurePosixPath, ToolOutcome]:
        """Return the outcome for each document; `timeout_s` is for all together."""
        ends_s, version = time.monotonic() + timeout_s, self.version() or "unknown"
        return {path: self._judge(directory, path, ends_s, version) for path in documents}

    def _judge(self, directory: Path, path: PurePosixPath, ends_s: float, version: str) -> ToolOutcome:
        began_s, findings = time.monotonic(), list[str]()
        verdict: ToolVerdict = "passed"
        try:
            for arguments in self.commands(directory, path):
                argv = [*self.prefix, found_program(self.program) or self.program, *arguments]
                done = run_program(argv, directory, ends_s - time.monotonic())
                words = (done.stdout + done.stderr).replace(f"{directory}/", "").strip()
                if done.returncode or (self.complaint is not None and self.complaint in words):
                    findings += words.splitlines() or [f"exit status {done.returncode}"]
                    has_no_opinion = done.returncode == self.unjudged_status and verdict != "failed"
                    verdict = "unjudged" if has_no_opinion else "failed"
        except subprocess.TimeoutExpired:
            findings, verdict = ["it did not end in time"], "timed-out"
        except (OSError, subprocess.CalledProcessError) as error:
            findings, verdict = [f"it cannot be run here: {error}"], "absent"
        spent_s = round(time.monotonic() - began_s, 3)
        return ToolOutcome(self.name, version, verdict, tuple(findings[:FINDINGS]), spent_s)


def found_program(name: str) -> str | None:
    """Return the path of a program; None when it is not installed."""
    return shutil.which(name) or shutil.which(name, path=SYSTEM_PATH)


def version_of(name: str, arguments: tuple[str, ...]) -> str | None:
    """Return the version a program tells; None when it is not installed or ends with another status than 0. One that
    is slow to tell is there, of an unknown version: what it says of a document decides.
    """
    program = found_program(name)
    if program is None:
        return None
    try:
        done = run_program([program, *arguments], Path("/"), VERSION_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return "unknown"
    except OSError:
        return None
    number = re.search(r"\d+\.\d+(\.\d+)?", done.stdout + done.stderr)
    return None if done.returncode else number.group() if number else "unknown"


def run_program(argv: list[str], directory: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end. Raises subprocess.TimeoutExpired when it takes longer; it is killed then."""
    return subprocess.run(
        argv,
        cwd=directory,
        env=tool_environment(),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=max(timeout_s, 0.001),
        check=False,
        stdin=subprocess.DEVNULL,
    )


@contextmanager
def serving(argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run a server until the block ends, its words appended to `log`; it ends when we do, however that happens.

    environment: what it is told besides `tool_environment`. Raises OSError when there is no such program.
    """
    program, *arguments = argv
    command = [found_program(program) or program, *arguments]
    told = tool_environment() | dict(environment or {})
    server = spawn(None, command, log_path=log, env=told, die_with_parent=signal.SIGKILL)
    try:
        yield server
    finally:
        server.terminate()
        try:
            server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def tool_environment() -> dict[str, str]:
    """Return what a tool may know of our environment, which holds secrets."""
    path = f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PATH}"
    return {
        "PATH": path,
        "HOME": os.environ.get("HOME", "/"),
        "LANG": "C.UTF-8",
        "TRIVY_DISABLE_TELEMETRY": "true",
    }
