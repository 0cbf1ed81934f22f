"""A tool that scans documents by rules and reports in JSON: each finding names its rule, and a rule may be waived.

A document that a scan that ended well has no rule for is not judged: it stays unproven, it has not passed.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tools.program import FINDINGS, found_program, run_program, version_of
from tools.tool import ToolOutcome, ToolVerdict, Waiver
from tools.waivers import CHOSEN, WAIVERS, Accepted


class Complaint(NamedTuple):
    """A rule that a document breaks, in the tool's words."""

    path: PurePosixPath
    rule: str
    what: str


class Scan(NamedTuple):
    """judged: the documents that at least one rule was applied to."""

    judged: frozenset[PurePosixPath]
    complaints: tuple[Complaint, ...]


class _NoScan(NamedTuple):
    """Why a scan left no report that can be trusted."""

    verdict: ToolVerdict
    reason: str


@dataclass(frozen=True)
class Scanner:
    """command: the arguments of one scan, without the program. read: its report, as parsed JSON, and what was asked.

    one_by_one: each document has a scan of its own. Status 0 or 1 means that the scan ended well. install: how to get
    it. opens: globs of the documents that it opens whichever it judges. waivers: by (tool, rule).
    """

    name: str
    program: str
    paths: tuple[str, ...]
    command: Callable[[Path, tuple[PurePosixPath, ...]], list[str]]
    read: Callable[[Any, tuple[PurePosixPath, ...]], Scan]
    install: str
    version_arguments: tuple[str, ...] = ("--version",)
    one_by_one: bool = False
    opens: tuple[str, ...] = ()
    waivers: Mapping[tuple[str, str], Accepted] = field(default_factory=lambda: {**WAIVERS, **CHOSEN})

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
        outcomes: dict[PurePosixPath, ToolOutcome] = {}
        for asked in [(path,) for path in documents] if self.one_by_one else [documents]:
            began_s = time.monotonic()
            scan = self._scan(directory, asked, ends_s)
            share_s = round((time.monotonic() - began_s) / len(asked), 3)
            for path in asked:
                text = (directory / path).read_text(encoding="utf-8")
                outcomes[path] = self._outcome(path, text, scan, version, share_s)
        return outcomes

    def _scan(self, directory: Path, asked: tuple[PurePosixPath, ...], ends_s: float) -> Scan | _NoScan:
        """Return what was found, or why there is no report that can be trusted."""
        argv = [found_program(self.program) or self.program, *self.command(directory, asked)]
        try:
            done = run_program(argv, directory, ends_s - time.monotonic())
        except subprocess.TimeoutExpired:
            return _NoScan("timed-out", "it did not end in time")
        except OSError as error:
            return _NoScan("absent", f"it cannot be run here: {error}")
        if done.returncode not in (0, 1):
            return _NoScan("broken", f"it ended with status {done.returncode}: {done.stderr.strip()[-200:]}")
        try:
            return self.read(json.loads(done.stdout), asked)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return _NoScan("broken", f"its report cannot be read: {type(error).__name__} {error}")

    def _outcome(
        self, path: PurePosixPath, text: str, scan: Scan | _NoScan, version: str, spent_s: float
    ) -> ToolOutcome:
        if isinstance(scan, _NoScan):
            return ToolOutcome(self.name, version, scan.verdict, (scan.reason,), spent_s)
        found = [complaint for complaint in scan.complaints if complaint.path == path]
        if not found and path not in scan.judged:
            reason = "it has no rule for what this document holds"
            return ToolOutcome(self.name, version, "unjudged", (reason,), spent_s)
        waived = {one.rule: accepted.reason for one in found if (accepted := self._accepted(one, text)) is not None}
        findings = [f"{one.rule}: {one.what}" for one in found if one.rule not in waived]
        verdict: ToolVerdict = "failed" if findings else "passed"
        reasons = tuple(Waiver(rule=rule, reason=waived[rule]) for rule in sorted(waived))
        return ToolOutcome(self.name, version, verdict, tuple(findings[:FINDINGS]), spent_s, reasons)

    def _accepted(self, complaint: Complaint, text: str) -> Accepted | None:
        accepted = self.waivers.get((self.name, complaint.rule))
        return accepted if accepted is not None and accepted.holds(text) else None
