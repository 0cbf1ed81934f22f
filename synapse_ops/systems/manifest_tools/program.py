"""A tool that is one program, asked once for each document: its status and its words are the verdict.

It runs in the directory of the whole rendering, with the document's relative path, and never with a secret.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from synapse_ops.domain.attestation import ToolOutcome, ToolVerdict

VERSION_TIMEOUT_S = 10.0
FINDINGS = 20  # lines of a tool's words that are kept

Commands = Callable[[Path, PurePosixPath], list[list[str]]]


@dataclass(frozen=True)
class Program:
    """commands: the arguments of each call, without the program; all must end with 0. install: how to get it.

    paths: globs of the documents that it applies to. complaint: words that mean a finding whatever the status is.
    """

    name: str
    program: str
    paths: tuple[str, ...]
    commands: Commands
    install: str
    prefix: tuple[str, ...] = ()
    version_argument: str = "--version"
    complaint: str | None = None

    def applies(self, path: PurePosixPath, /) -> bool:
        return any(path.match(glob) for glob in self.paths)

    def version(self) -> str | None:
        """Return what the program calls itself; None when it is not installed or does not answer."""
        program = self._found()
        if program is None:
            return None
        try:
            done = _run([program, self.version_argument], Path("/"), VERSION_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired):
            return None
        number = re.search(r"\d+\.\d+(\.\d+)?", done.stdout + done.stderr)
        return number.group() if number else "unknown"

    def check(
        self, directory: Path, documents: tuple[PurePosixPath, ...], timeout_s: float
    ) -> Mapping[PurePosixPath, ToolOutcome]:
        """Return the outcome for each document; `timeout_s` is for all together."""
        ends_s, version = time.monotonic() + timeout_s, self.version() or "unknown"
        return {path: self._judge(directory, path, ends_s, version) for path in documents}

    def _judge(self, directory: Path, path: PurePosixPath, ends_s: float, version: str) -> ToolOutcome:
        began_s, findings = time.monotonic(), list[str]()
        try:
            for arguments in self.commands(directory, path):
                argv = [*self.prefix, self._found() or self.program, *arguments]
                done = _run(argv, directory, max(ends_s - time.monotonic(), 0.001))
                words = (done.stdout + done.stderr).replace(f"{directory}/", "").strip()
                if done.returncode or (self.complaint is not None and self.complaint in words):
                    findings += words.splitlines() or [f"exit status {done.returncode}"]
            verdict: ToolVerdict = "failed" if findings else "passed"
        except subprocess.TimeoutExpired:
            findings, verdict = ["it did not end in time"], "timed-out"
        spent_s = round(time.monotonic() - began_s, 3)
        return ToolOutcome(self.name, version, verdict, tuple(findings[:FINDINGS]), spent_s)

    def _found(self) -> str | None:
        return shutil.which(self.program) or shutil.which(self.program, path="/usr/sbin:/sbin")


def _run(argv: list[str], directory: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, cwd=directory, capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL
    )
