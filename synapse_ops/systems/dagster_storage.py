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
    from dagster import DagsterInstance


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
