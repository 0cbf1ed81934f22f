"""What surrounds an operation that a run calls: its correlation id, progress in its log, our errors as failures.

And what a sensor asks before it wants a run again.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import dagster as dg

from synapse_ops.defs.runbook_links import runbook
from synapse_ops.domain.runbooks import RUN_PAGE
from synapse_ops.errors import SynapseOpsError
from synapse_ops.redaction import redact

if TYPE_CHECKING:
    from synapse_ops.domain.progress import Progress, ReportProgress

_PROGRESS_INTERVAL_S = 5.0  # a line of progress costs a row in Dagster's storage


@contextmanager
def operation_of(run_id: str, instance: dg.DagsterInstance) -> Iterator[None]:
    """Run an operation as part of a run: its log lines and `started.json` carry the run's id.

    Our own errors become failures that say message, detail and hint, and that the framework never retries. Every
    failure links to its runbook, a bug's too.
    """
    from synapse_ops.systems.host.errors import host_error
    from synapse_ops.systems.log_output import bind_correlation_id, configure_logging

    configure_logging()
    bind_correlation_id(run_id)
    try:
        yield
    except SynapseOpsError as error:
        raise failure_of(error) from error
    except dg.Failure:
        raise
    except Exception as bug:
        known = host_error(bug) if isinstance(bug, OSError) else None
        if known is not None:
            raise failure_of(known) from bug
        said = f"internal error: {type(bug).__name__}: {redact(str(bug))}"
        raise dg.Failure(said, metadata=runbook(RUN_PAGE), allow_retries=False) from bug


def recorded(key: dg.AssetKey, metadata: Mapping[str, Any], *, version: str = "") -> dg.AssetMaterialization:
    """Return the event by which a job reports what it did to an asset that nobody materializes by a button."""
    return dg.AssetMaterialization(key, metadata=metadata, tags={"dagster/data_version": version} if version else None)


def failure_of(error: SynapseOpsError) -> dg.Failure:
    """Return the failure that shows an operator what the CLI would have printed."""
    told = {"code": error.code, "detail": error.detail, "hint": error.hint}
    metadata = {name: text for name, text in told.items() if text} | runbook(RUN_PAGE)
    return dg.Failure(error.render(), metadata=metadata, allow_retries=False)


NICENESS = 3


def yield_processor() -> None:
    """Let what a person waits for go first on a small host: in a run's own process, go on at a lower priority.

    Programs and throwaway servers that it starts inherit this. On an idle host it costs nothing. No lower: at a load of
    20 a run at 10 would get a ninth of what others get, and meet its limits.
    """
    if multiprocessing.parent_process() is not None:  # else the caller's own process, as in tests
        os.nice(NICENESS)


def newest_run(instance: dg.DagsterInstance, job: str, tags: Mapping[str, str]) -> dg.RunRecord | None:
    """Return the newest run of a job with these tags, whatever became of it."""
    wanted = dg.RunsFilter(job_name=job, tags=dict(tags))
    return next(iter(instance.get_run_records(wanted, limit=1)), None)


def may_be_asked_again(newest: dg.RunRecord | None, pause_s: float) -> bool:
    """Return whether a sensor asks again for what is still to be done: no run is on its way, or ended just now."""
    if newest is None:
        return True
    return newest.dagster_run.is_finished and time.time() - (newest.end_time or 0.0) >= pause_s


def tag_run(instance: dg.DagsterInstance, run_id: str, tags: Mapping[str, str]) -> None:
    """Add labels to a run; they never decide anything. A run that storage does not know is left alone."""
    if instance.get_run_by_id(run_id) is not None:
        instance.add_run_tags(run_id, dict(tags))


def progress_into(log: Any) -> "ReportProgress":
    """Return a reporter that writes a line for each new stage, and one every few seconds within a stage."""
    stage, at_s = "", 0.0

    def report(progress: "Progress") -> None:
        nonlocal stage, at_s
        now_s = time.monotonic()
        if progress.stage == stage and now_s - at_s < _PROGRESS_INTERVAL_S:
            return
        stage, at_s = progress.stage, now_s
        of = f" of {progress.total:,}" if progress.total else ""
        log.info(f"{progress.stage}: {progress.done:,}{of} {progress.unit}")

    return report
