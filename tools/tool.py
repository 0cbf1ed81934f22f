"""What an outside tool is, and what it may say of a rendered document.

Only `passed` is a pass. A tool that is not installed, has no rule for the document, was stopped, or left no report has
proven nothing; each of these is a verdict of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

# absent: it is not installed, or cannot be started. unjudged: it has no rule for what the document holds, or cannot
# apply it here. timed-out: it was stopped at its limit. broken: it ended without a report that can be read.
ToolVerdict = Literal["passed", "failed", "absent", "unjudged", "timed-out", "broken"]


@dataclass(frozen=True, slots=True)
class Waiver:
    """A finding of a tool that is accepted, and the written reason."""

    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """What one tool found in one document. findings: empty when it passed. waived: found, and accepted."""

    tool: str
    version: str
    verdict: ToolVerdict
    findings: tuple[str, ...]
    duration_s: float
    waived: tuple[Waiver, ...] = ()


class Tool(Protocol):
    """An outside tool. version: None where it is not installed. install: how to get it.

    opens: globs of the documents that it opens whichever it judges; none where it opens only what it judges.
    `check` runs in a directory that holds the whole rendering. A tool that fails is an outcome, not an exception.
    """

    @property
    def name(self) -> str: ...
    @property
    def install(self) -> str: ...
    @property
    def opens(self) -> tuple[str, ...]: ...
    def applies(self, path: PurePosixPath, /) -> bool: ...
    def version(self) -> str | None: ...
    def check(
        self, directory: Path, documents: tuple[PurePosixPath, ...], timeout_s: float
    ) -> Mapping[PurePosixPath, ToolOutcome]: ...
