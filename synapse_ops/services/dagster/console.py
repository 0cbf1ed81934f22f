"""Starts real Dagster runs and reads what became of them, from a program: the demo's hands and eyes.

Runs go through the code server, exactly as from the UI, so that they show there with lineage, logs and partitions.
The GraphQL schema is executed in this process, over the same storage: no port, no session, nothing to guard.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from synapse_ops.errors import ConfigError, DeadlineExceeded, Refused
from synapse_ops.services.dagster.service import DagsterService, dagster_instance, running
from synapse_ops.systems.dagster_storage import execute_graphql, open_workspace
from synapse_ops.systems.host.processes import START_TIMEOUT_S

_LOCATION = "synapse_ops"
_REPOSITORY = "__repository__"
_POLL_S = 0.1
_FINISHED = {"SUCCESS", "FAILURE", "CANCELED"}

_LAUNCH = """
mutation Launch($parameters: ExecutionParams!) {
  launchPipelineExecution(executionParams: $parameters) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on PipelineNotFoundError { message }
    ... on InvalidSubsetError { message }
    ... on PresetNotFoundError { message }
    ... on ConflictingExecutionParamsError { message }
    ... on UnauthorizedError { message }
    ... on NoModeProvidedError { message }
  }
}
"""
_STATE = """
query State($name: String!) {
  workspaceLocationEntryOrError(name: $name) {
    ... on WorkspaceLocationEntry {
      loadStatus
      locationOrLoadError { __typename ... on PythonError { message } }
    }
  }
}
"""


@dataclass(frozen=True)
class RunResult:
    """How a run ended. status: Dagster's word, SUCCESS, FAILURE or CANCELED. failure: the error's text, "" for none."""

    run_id: str
    status: str
    failure: str
    duration_s: float

    @property
    def succeeded(self) -> bool:
        return self.status == "SUCCESS"


@dataclass(frozen=True)
class RecordedEvent:
    """The latest materialization of an asset: when (aware UTC), in which run ("": reported without), what it says."""

    at: datetime
    run_id: str
    metadata: Mapping[str, Any]


class Console:
    """One running Dagster service, driven from this process."""

    def __init__(self, service: DagsterService, instance: Any, workspace: Any) -> None:
        self.service = service
        self.instance = instance
        self._workspace = workspace

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when the code location is loaded. Raises ConfigError with its error when it does not load."""
        deadline = time.monotonic() + timeout_s
        while True:
            entry = execute_graphql(self._workspace, _STATE, {"name": _LOCATION})["workspaceLocationEntryOrError"]
            location = entry.get("locationOrLoadError") or {}
            if entry.get("loadStatus") == "LOADED" and location.get("__typename") != "PythonError":
                return
            if time.monotonic() > deadline:
                raise ConfigError("the code location does not load", detail=str(location.get("message", ""))[:4000])
            time.sleep(_POLL_S)
            self.reload()

    def reload(self) -> None:
        """Ask the code server again what it has: after it was restarted for a new spec."""
        self._workspace.reload_code_location(_LOCATION)

    def start_job(
        self,
        job_name: str,
        *,
        run_config: Mapping[str, Any] | None = None,
        partition: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Start a run and return its id. Raises Refused with Dagster's reasons when it does not accept the run."""
        all_tags = {**(tags or {}), **({"dagster/partition": partition} if partition is not None else {})}
        parameters = {
            "selector": {
                "repositoryLocationName": _LOCATION,
                "repositoryName": _REPOSITORY,
                "jobName": job_name,
            },
            "runConfigData": run_config or {},
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in all_tags.items()]},
        }
        reply = execute_graphql(self._workspace, _LAUNCH, {"parameters": parameters})["launchPipelineExecution"]
        if reply["__typename"] != "LaunchRunSuccess":
            reasons = [error["message"] for error in reply.get("errors", [])] or [reply.get("message", "")]
            raise Refused(f'Dagster does not start job "{job_name}": {reply["__typename"]}', detail="\n".join(reasons))
        return str(reply["run"]["runId"])

    def wait_for_run(self, run_id: str, *, timeout_s: float) -> RunResult:
        """Return how a run ended. Raises DeadlineExceeded when it has not; the run goes on."""
        deadline = time.monotonic() + timeout_s
        while True:
            record = self.instance.get_run_record_by_id(run_id)
            status = record.dagster_run.status.value if record is not None else "NOT_STARTED"
            if record is not None and status in _FINISHED:
                failure = "" if status == "SUCCESS" else self._failure_of(run_id)
                return RunResult(run_id, status, failure, (record.end_time or 0.0) - (record.start_time or 0.0))
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"run {run_id} did not end within {timeout_s:g} s: it is {status}")
            time.sleep(_POLL_S)

    def asset_metadata(self, key: str, partition: str | None = None) -> RecordedEvent | None:
        """Return the latest materialization of an asset ("spec/tls"), of one partition where given; None for none."""
        from dagster import AssetKey, AssetRecordsFilter

        wanted = AssetRecordsFilter(
            asset_key=AssetKey(key.split("/")), asset_partitions=None if partition is None else [partition]
        )
        records = self.instance.fetch_materializations(wanted, limit=1).records
        if not records or records[0].asset_materialization is None:
            return None
        found = records[0].asset_materialization
        return RecordedEvent(
            datetime.fromtimestamp(records[0].timestamp, UTC),
            records[0].run_id,
            {name: getattr(entry, "value", entry) for name, entry in found.metadata.items()},
        )

    def _failure_of(self, run_id: str) -> str:
        """Return what a failed run says: the operation's own message, detail and hint, not the framework's."""
        from dagster import DagsterEventType

        for kind in (DagsterEventType.STEP_FAILURE, DagsterEventType.RUN_FAILURE):
            for entry in self.instance.all_logs(run_id, of_type=kind):
                data = entry.dagster_event.event_specific_data if entry.dagster_event else None
                error = getattr(data, "error", None)
                while error is not None and error.cause is not None and error.cls_name != "Failure":
                    error = error.cause
                if error is not None:
                    text = str(error.message).strip()
                    return text.partition(": ")[2] if error.cls_name == "Failure" else text  # without the class
                if entry.dagster_event and entry.dagster_event.message:
                    return str(entry.dagster_event.message)
        return ""


@contextmanager
def start_console(
    state_dir: Path, spec_path: Path, *, webserver: bool, port: int | None = None, timeout_s: float = START_TIMEOUT_S
) -> Iterator[Console]:
    """Run code server and daemon (and the guarded webserver) while the block runs, and yield the console.

    Everything is gone when the block ends; runs in progress then are marked failed.
    """
    service = DagsterService(state_dir, spec_path, serve_ui=webserver, port=port)
    with (
        running(service, timeout_s=timeout_s),
        dagster_instance(service.environment) as instance,
        open_workspace(instance, service.home.workspace) as workspace,
    ):
        console = Console(service, instance, workspace)
        console.wait_until_ready(timeout_s)
        yield console
