"""The only place that imports Dagster's private modules; a contract test names each of them.

They are: the workspace (to serve it, and to start runs through the code server as the UI does), the GraphQL schema in
process, the slots of pools, and the tables of events and checks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from synapse_ops.errors import IntegrityError, Refused

if TYPE_CHECKING:
    from dagster import AssetCheckEvaluation, AssetCheckKey, AssetKey, DagsterInstance
    from dagster_shared.error import SerializableErrorInfo

Instance: TypeAlias = "DagsterInstance"  # for operations, which may not import Dagster

_RUN_ID = re.compile(r"[0-9a-zA-Z-]{8,64}")


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

    Without it the UI cannot distinguish an evaluation of the newest materialization from one of an older.
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
    """Return the newest verdict of a check, None when it was never evaluated.

    A run plans its checks before: one that is on its way, or ended without a verdict, does not hide the last.
    """
    from dagster import AssetCheckEvaluation, AssetCheckKey

    history = instance.event_log_storage.get_asset_check_execution_history(
        AssetCheckKey(asset_key, check_name), limit=10
    )
    verdicts = (record.evaluation for record in history)
    return next((verdict for verdict in verdicts if isinstance(verdict, AssetCheckEvaluation)), None)


def check_evaluations_after(
    instance: DagsterInstance, storage_id: int, *, limit: int
) -> list[tuple[int, float, AssetCheckEvaluation]]:
    """Return (storage id, timestamp, evaluation) of check evaluations after a storage id, the oldest first.

    Oldest first matters: newest first and a cursor would drop what a full page left behind.
    """
    from dagster import AssetCheckEvaluation, DagsterEventType, EventRecordsFilter

    wanted = EventRecordsFilter(event_type=DagsterEventType.ASSET_CHECK_EVALUATION, after_cursor=storage_id)
    found = []
    for record in instance.event_log_storage.get_event_records(wanted, limit=limit, ascending=True):
        event = record.event_log_entry.dagster_event
        data = event.event_specific_data if event is not None else None
        if isinstance(data, AssetCheckEvaluation):
            found.append((record.storage_id, record.event_log_entry.timestamp, data))
    return found


def failing_checks(
    instance: DagsterInstance, keys: Collection[AssetCheckKey]
) -> list[tuple[float, AssetCheckEvaluation]]:
    """Return (timestamp, evaluation) of each check whose newest verdict is a failure, by asset and name."""
    from dagster import AssetCheckEvaluation

    found = []
    for key, record in instance.event_log_storage.get_latest_asset_check_execution_by_key(list(keys)).items():
        is_verdict = isinstance(record.evaluation, AssetCheckEvaluation)
        verdict = record.evaluation if is_verdict else last_evaluation(instance, key.asset_key, key.name)
        if verdict is not None and not verdict.passed:
            found.append((record.create_timestamp, verdict))
    return sorted(found, key=lambda row: (row[1].asset_key.path, row[1].check_name))


def newest_event_of(instance: DagsterInstance, keys: Sequence[AssetKey]) -> int:
    """Return the storage id of the newest materialization or observation of any of some assets, 0 for none."""
    import sqlalchemy as db

    statement = db.text(
        "SELECT MAX(id) FROM event_logs WHERE asset_key IN :keys "
        "AND dagster_event_type IN ('ASSET_MATERIALIZATION', 'ASSET_OBSERVATION')"
    ).bindparams(db.bindparam("keys", expanding=True))
    with _event_log(instance).index_connection() as connection:
        return connection.execute(statement, {"keys": [key.to_string() for key in keys]}).scalar() or 0


def newest_storage_id(instance: DagsterInstance) -> int:
    """Return the storage id of the newest event, 0 when there is none."""
    return instance.event_log_storage.get_maximum_record_id() or 0


def failed_ticks_after(instance: DagsterInstance, after_s: float, *, limit: int) -> list[tuple[str, float, str]]:
    """Return (schedule or sensor, time in seconds since the epoch, error) of ticks that failed after `after_s`.

    The error is told with its causes: the daemon says "unable to reach the user code server" of a server that is away
    and of a tick that took too long.
    """
    from dagster._core.scheduler.instigation import TickStatus

    found = []
    for state in instance.all_instigator_state():
        ticks = instance.get_ticks(
            state.instigator_origin_id, state.selector_id, after=after_s, limit=limit, statuses=[TickStatus.FAILURE]
        )
        found += [(state.instigator_name, tick.timestamp, _told(tick.error) or "no message") for tick in ticks]
    return sorted(found, key=lambda row: row[1])[:limit]


def _told(error: SerializableErrorInfo | None) -> str:
    messages = []
    while error is not None:
        messages.append(error.message.strip())
        error = error.cause
    return "\n".join(messages)


def good_ticks(instance: DagsterInstance, since_s: Mapping[str, float]) -> dict[str, float]:
    """Return, of schedules and sensors by name, when each ticked without a failure after a moment of its own.

    since_s: seconds since the epoch. One that is stopped or gone counts as good now: it fails no more.
    """
    from dagster._core.scheduler.instigation import InstigatorStatus, TickStatus

    states = {state.instigator_name: state for state in instance.all_instigator_state()} if since_s else {}
    found = {}
    for name, after_s in since_s.items():
        state = states.get(name)
        if state is None or state.status is InstigatorStatus.STOPPED:
            found[name] = datetime.now(UTC).timestamp()
            continue
        good = [TickStatus.SUCCESS, TickStatus.SKIPPED]
        ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, after=after_s, limit=1, statuses=good)
        if ticks:
            found[name] = ticks[0].timestamp
    return found


def fail_abandoned_runs(instance: DagsterInstance, reason: str) -> Sequence[str]:
    """Mark every run that was begun and not finished as failed and give its pool slots back; return their ids.

    Only for a moment at which no run worker of this instance can be alive. A queued run has none yet: it starts later.
    """
    from dagster import DagsterRunStatus, RunsFilter

    unfinished = [
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


# What of the history may go. Dagster has no call by age for events outside of runs, so one statement does it; it holds
# on SQLite and PostgreSQL, and tests/systems/test_dagster_history.py pins it on both.
_SUPERSEDED = """
run_id = '' AND timestamp < :before AND (
  (asset_key IS NOT NULL AND asset_key NOT IN :kept_keys AND EXISTS (
    SELECT 1 FROM event_logs newer
    WHERE newer.asset_key = event_logs.asset_key AND newer.dagster_event_type = event_logs.dagster_event_type
      AND COALESCE(newer.partition, '') = COALESCE(event_logs.partition, '') AND newer.id > event_logs.id))
  OR (dagster_event_type = 'ASSET_CHECK_EVALUATION' AND EXISTS (
    SELECT 1 FROM asset_check_executions mine JOIN asset_check_executions newer
      ON newer.asset_key = mine.asset_key AND newer.check_name = mine.check_name
      AND COALESCE(newer.partition, '') = COALESCE(mine.partition, '') AND newer.id > mine.id
      AND newer.execution_status IN ('SUCCEEDED', 'FAILED')
    WHERE mine.evaluation_event_storage_id = event_logs.id AND mine.asset_key NOT IN :kept_keys)))
"""
_NEWEST_HOLDERS = """
SELECT DISTINCT run_id FROM event_logs WHERE run_id <> '' AND (asset_key IN :kept_keys OR id IN (
  SELECT MAX(id) FROM event_logs WHERE asset_key IS NOT NULL GROUP BY asset_key, partition, dagster_event_type))
UNION SELECT run_id FROM asset_check_executions WHERE run_id <> '' AND id IN (
  SELECT MAX(id) FROM asset_check_executions WHERE execution_status IN ('SUCCEEDED', 'FAILED')
  GROUP BY asset_key, check_name, partition)
"""
_EVENT_PAGE = 1000


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run that has ended; `ended_at` is aware UTC."""

    run_id: str
    job: str
    status: str
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class OldEvent:
    """An event outside of any run that a newer one of its kind has superseded. about: its asset, and its partition."""

    event_id: int
    kind: str
    about: str


@dataclass(frozen=True, slots=True)
class OldTicks:
    """A schedule or sensor with ticks before a moment; `before_s` is in seconds since the epoch, exclusive."""

    name: str
    origin_id: str
    selector_id: str
    before_s: float


def finished_runs_before(instance: DagsterInstance, before: datetime) -> Iterator[FinishedRun]:
    """Yield the runs that ended before a moment, the oldest first, page by page."""
    from dagster import DagsterRunStatus, RunsFilter

    finished = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
    wanted = RunsFilter(statuses=finished, created_before=before)
    cursor: str | None = None
    while records := instance.get_run_records(wanted, limit=500, cursor=cursor, ascending=True):
        for record in records:
            ended_s = record.end_time or record.update_timestamp.timestamp()
            if ended_s < before.timestamp():
                run = record.dagster_run
                ended_at = datetime.fromtimestamp(ended_s, UTC)
                yield FinishedRun(run.run_id, run.job_name, run.status.value, ended_at)
        cursor = records[-1].dagster_run.run_id


def is_finished(instance: DagsterInstance, run_id: str) -> bool | None:
    """Say whether a run has ended; None when there is no such run."""
    run = instance.get_run_by_id(run_id)
    return None if run is None else bool(run.is_finished)


def runs_with_newest_events(instance: DagsterInstance, kept_keys: Sequence[str]) -> frozenset[str]:
    """Return the runs that hold the newest event of an asset, a partition or a check, or any event of `kept_keys`."""
    import sqlalchemy as db

    statement = db.text(_NEWEST_HOLDERS).bindparams(db.bindparam("kept_keys", expanding=True))
    with _event_log(instance).index_connection() as connection:
        rows = connection.execute(statement, {"kept_keys": _stored_keys(kept_keys)}).fetchall()
    return frozenset(row[0] for row in rows)


def materialized_values(instance: DagsterInstance, run_id: str, name: str) -> frozenset[str]:
    """Return the values of one metadata field in the materializations and observations of a run."""
    from dagster import DagsterEventType

    found = set()
    for kind in (DagsterEventType.ASSET_MATERIALIZATION, DagsterEventType.ASSET_OBSERVATION):
        for entry in instance.all_logs(run_id, of_type=kind):
            data = entry.asset_materialization or entry.asset_observation
            if data is not None and name in data.metadata:
                found.add(str(data.metadata[name].value))
    return frozenset(found)


def superseded_events(instance: DagsterInstance, before: datetime, kept_keys: Sequence[str]) -> Iterator[OldEvent]:
    """Yield the events outside of runs that are older than `before` and not the newest of their kind, by id."""
    columns = "event_logs.id, dagster_event_type, asset_key, partition"
    last = 0
    while True:
        query = f"SELECT {columns} FROM event_logs WHERE event_logs.id > :last AND {_SUPERSEDED}"  # noqa: S608 - ours
        query += " ORDER BY event_logs.id LIMIT :page"
        with _event_log(instance).index_connection() as connection:
            parameters = {"last": last, "page": _EVENT_PAGE}
            rows = connection.execute(*_superseded(query, before, kept_keys, parameters)).fetchall()
        for event_id, kind, asset_key, partition in rows:
            about = "/".join(json.loads(asset_key)) if asset_key else "a check"
            yield OldEvent(event_id, str(kind), f"{about} [{partition}]" if partition else about)
        if len(rows) < _EVENT_PAGE:
            return
        last = rows[-1][0]


def delete_superseded_events(
    instance: DagsterInstance, event_ids: Sequence[int], before: datetime, kept_keys: Sequence[str]
) -> frozenset[int]:
    """Delete those of some events that are still superseded, with their tags and check rows; return what is left.

    At most 1,000 ids at a time. What was deleted before is not left, so the call is safe to repeat.
    """
    import sqlalchemy as db

    ids = {"ids": list(event_ids)}
    of_ids: Any = db.bindparam("ids", expanding=True)
    with _event_log(instance).index_transaction() as connection:
        statement, parameters = _superseded(
            f"DELETE FROM event_logs WHERE id IN :ids AND {_SUPERSEDED}",  # noqa: S608 - our own text
            before,
            kept_keys,
            ids,
        )
        connection.execute(statement.bindparams(of_ids), parameters)
        for table, column in (
            ("asset_event_tags", "event_id"),
            ("asset_check_executions", "evaluation_event_storage_id"),
        ):
            alone = f"NOT EXISTS (SELECT 1 FROM event_logs WHERE event_logs.id = {table}.{column})"  # noqa: S608
            orphans = f"DELETE FROM {table} WHERE {column} IN :ids AND {alone}"  # noqa: S608
            connection.execute(db.text(orphans).bindparams(of_ids), ids)
        left = connection.execute(db.text("SELECT id FROM event_logs WHERE id IN :ids").bindparams(of_ids), ids)
        return frozenset(row[0] for row in left.fetchall())


def _superseded(query: str, before: datetime, kept_keys: Sequence[str], more: Mapping[str, Any]) -> tuple[Any, Any]:
    import sqlalchemy as db

    moment = db.bindparam("before", type_=db.types.TIMESTAMP())
    statement = db.text(query).bindparams(moment, db.bindparam("kept_keys", expanding=True))
    naive = before.astimezone(UTC).replace(tzinfo=None)  # as Dagster stores it
    return statement, {"before": naive, "kept_keys": _stored_keys(kept_keys), **more}


def _stored_keys(keys: Sequence[str]) -> list[str]:
    from dagster import AssetKey

    return [AssetKey(key.split("/")).to_string() for key in keys]


def _event_log(instance: DagsterInstance) -> Any:
    """Return the storage as one that speaks SQL. Raises Refused for one that does not."""
    from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        raise Refused(f"cannot clean up the history in {type(storage).__name__}: it is not an SQL database")
    return storage


def ticks_before(instance: DagsterInstance, before: datetime) -> Iterator[OldTicks]:
    """Yield each schedule and sensor that has ticks older than a moment, besides its newest tick, which stays."""
    for state in sorted(instance.all_instigator_state(), key=lambda one: one.instigator_name):
        origin, selector = state.instigator_origin_id, state.selector_id
        newest = instance.get_ticks(origin, selector, limit=1)
        if not newest:
            continue
        limit_s = min(before.timestamp(), newest[0].timestamp)
        past = instance.get_ticks(origin, selector, before=limit_s, limit=1)
        if past:
            yield OldTicks(state.instigator_name, origin, selector, min(limit_s, past[0].timestamp + 0.001))


def purge_ticks(instance: DagsterInstance, ticks: OldTicks) -> None:
    instance.purge_ticks(ticks.origin_id, ticks.selector_id, before=ticks.before_s)


def delete_run(instance: DagsterInstance, run_id: str) -> None:
    """Delete a run with its events and its output; safe to repeat. The caller has made sure that it has ended."""
    delete_compute_logs(instance, run_id)
    instance.delete_run(run_id)


def has_compute_logs(instance: DagsterInstance, run_id: str) -> bool:
    """Say whether the output of a run is kept; a manager that does not know is asked to delete in any case."""
    from dagster._core.storage.compute_log_manager import ComputeIOType

    manager = instance.compute_log_manager
    prefix = [_checked(run_id), "compute_logs"]
    try:
        return any(manager.get_log_keys_for_log_key_prefix(prefix, kind) for kind in ComputeIOType)
    except FileNotFoundError:
        return False
    except NotImplementedError:
        return True


def delete_compute_logs(instance: DagsterInstance, run_id: str) -> None:
    instance.compute_log_manager.delete_logs(prefix=[_checked(run_id)])


def _checked(run_id: str) -> str:
    """Return a run's id that cannot be a path: deleting output removes a directory of that name."""
    if _RUN_ID.fullmatch(run_id) is None:
        raise IntegrityError(f'"{run_id}" is not the id of a run')
    return run_id
