"""Long work on a terminal: one bar with rate and time left; a line per stage where stderr is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from synapse_ops.domain.printable_text import printable
from synapse_ops.domain.progress import Progress, ReportProgress


@contextmanager
def progress_bar() -> Iterator[ReportProgress]:
    """Yield a function to report progress to; draws on stderr, so stdout stays data."""
    if sys.stderr.isatty():
        with _rich_bar() as report:
            yield report
    else:
        yield _stage_lines()


@contextmanager
def _rich_bar() -> Iterator[ReportProgress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    in_bytes = [DownloadColumn(), TransferSpeedColumn()]
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *in_bytes,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def report(step: Progress) -> None:
            if step.stage not in tasks:
                tasks[step.stage] = bar.add_task(printable(step.stage), total=step.total)
            total = max(step.total, step.done) if step.total is not None else None  # an estimate may be passed
            bar.update(tasks[step.stage], completed=step.done, total=total)

        yield report


def _stage_lines() -> ReportProgress:
    log = structlog.get_logger()
    seen: set[str] = set()

    def report(step: Progress) -> None:
        if step.stage not in seen:
            seen.add(step.stage)
            log.info(step.stage)

    return report
