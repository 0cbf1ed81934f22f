"""The only place that imports Dagster's private modules; a contract test names each of them.

They are: the workspace (to serve it, and to start runs through the code server as the UI does), the GraphQL schema in
process, and the slots of pools.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dagster import AssetCheckEvaluation, AssetKey, DagsterInstance


@contextmanager
def open_workspace(instance: DagsterInstance, workspace_file: Path) -> Iterator[Any]:
    """Yield the workspace of a file, as the webserver and the GraphQL schema want it."""
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster_webserver.version import __version__

    target = WorkspaceFileTarget([str(workspace_file)])
    with WorkspaceProcessContext(instance, target, version=__version__, read_only=False) as context:
        yield context


def execute_graphql(workspace: Any, query: str, variables: Mapping[str, object]) -> dict[str, Any]:
    """Return the reply's `data`; raises RuntimeError for GraphQL errors, which are our own mistakes."""
    from dagster_graphql.cli import execute_query

    reply: dict[str, Any] = execute_query(workspace, query, variables)
    if "errors" in reply:
        raise RuntimeError(str(reply["errors"][0])[:2000])
    data: dict[str, Any] = reply["data"]
    return data


def newest_as_target(instance: DagsterInstance, asset_key: AssetKey) -> Any:
    """Return an asset's newest materialization as what a check's evaluation judges; None when there is none.

    Without it the UI cannot tell an evaluation of the newest materialization from one of an older.
    """
    from dagster._core.definitions.asset_checks.asset_check_evaluation import (
        AssetCheckEvaluationTargetMaterializationData,
    )

    records = instance.fetch_materializations(asset_key, limit=1).records
    if not records:
        return None
    newest = records[0]
    return AssetCheckEvaluationTargetMaterializationData(
        storage_id=newest.storage_id, run_id=newest.run_id, timestamp=newest.timestamp
    )


def last_evaluation(instance: DagsterInstance, asset_key: AssetKey, check_name: str) -> AssetCheckEvaluation | None:
    """Return the newest verdict of a check, None when it was never evaluated."""
    from dagster import AssetCheckKey

    history = instance.event_log_storage.get_asset_check_execution_history(
        AssetCheckKey(asset_key, check_name), limit=10
    )
    return next((record.evaluation for record in history if record.evaluation is not None), None)


def check_evaluations_after(
    instance: DagsterInstance, storage_id: int, *, limit: int
) -> list[tuple[int, float, AssetCheckEvaluation]]:
    """Return (storage id, timestamp, evaluation) of check evaluations after a storage id, the oldest first.

    Oldest first matters: newest first and a cursor would drop what a full page left behind.
    """
    from dagster import AssetCheckEvaluation, DagsterEventType, EventRecordsFilter

    wanted = EventRecordsFilter(event_type=DagsterEventType.ASSET_CHECK_EVALUATION, after_cursor=storage_id)
    found = []
    for record in instance.get_event_records(wanted, limit=limit, ascending=True):
        event = record.event_log_entry.dagster_event
        data = event.event_specific_data if event is not None else None
        if isinstance(data, AssetCheckEvaluation):
            found.append((record.storage_id, record.event_log_entry.timestamp, data))
    return found


def newest_storage_id(instance: DagsterInstance) -> int:
    """Return the storage id of the newest event, 0 when there is none."""
    return instance.event_log_storage.get_maximum_record_id() or 0


def failed_ticks_after(instance: DagsterInstance, after_s: float, *, limit: int) -> list[tuple[str, float, str]]:
    """Return (schedule or sensor, time in seconds since the epoch, error) of ticks that failed after `after_s`."""
    from dagster._core.scheduler.instigation import TickStatus

    found = []
    for state in instance.all_instigator_state():
        ticks = instance.get_ticks(
            state.instigator_origin_id, state.selector_id, after=after_s, limit=limit, statuses=[TickStatus.FAILURE]
        )
        for tick in ticks:
            message = tick.error.message.strip() if tick.error is not None else "no message"
            found.append((state.instigator_name, tick.timestamp, message))
    return sorted(found, key=lambda row: row[1])[:limit]


def fail_abandoned_runs(instance: DagsterInstance, reason: str) -> Sequence[str]:
    """Mark every run that is not finished as failed and give its pool slots back; return their ids.

    Only for a moment at which no run worker of this instance can be alive.
    """
    from dagster import DagsterRunStatus, RunsFilter

    unfinished = [
        DagsterRunStatus.QUEUED,
        DagsterRunStatus.NOT_STARTED,
        DagsterRunStatus.STARTING,
        DagsterRunStatus.STARTED,
        DagsterRunStatus.CANCELING,
    ]
    runs = instance.get_runs(filters=RunsFilter(statuses=unfinished))
    for run in runs:
        instance.report_run_failed(run, reason)
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return [run.run_id for run in runs]
