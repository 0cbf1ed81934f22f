"""The progress of long work; the CLI draws a bar from it, Dagster logs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of long work.

    stage: a few words in the present tense, "dumping synapse".
    done, total: counts of `unit`, done since the start of the stage; total is None when it is not known beforehand,
    and may be an estimate (done can exceed it).
    """

    stage: str
    done: int
    total: int | None = None
    unit: str = "bytes"


ReportProgress = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """Ignore progress."""
