"""A history of a year: exactly what the plan named goes, and what a person or a sensor still needs stays."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from synapse_ops.errors import PlanChanged
from synapse_ops.operations.cleanup.plan_file import StoredPlan
from synapse_ops.operations.cleanup.run_history import apply_history_plan, make_history_plan
from synapse_ops.operations.stack import Stack, open_stack
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.defs.test_alarms import begin_tick
from tests.stored_backups import store_backup

pytestmark = pytest.mark.scenario

NOW = datetime.now(UTC)
A_YEAR_LATER = NOW + timedelta(days=365)  # the clock moves, not the events: every one of them is a year old by then


@pytest.fixture
def stack(tmp_path: Path, bucket_url: str, object_store_access: StoreAccess, monkeypatch: pytest.MonkeyPatch) -> Stack:
    monkeypatch.setenv("TEST_STORE_ACCESS_KEY_ID", object_store_access.access_key or "")
    monkeypatch.setenv("TEST_STORE_SECRET_ACCESS_KEY", object_store_access.secret_key or "")
    spec = tmp_path / "infrastructure.yaml"
    spec.write_text(
        f"object_store: {{endpoint: '{object_store_access.endpoint}', credentials: 'env:TEST_STORE'}}\n"
        f"backup:\n"
        f"  database: {{destination: '{bucket_url}'}}\n"
        f"  vectors: {{destination: '{bucket_url[:-1]}-vectors/'}}\n"
    )
    return open_stack(spec, tmp_path)


@dataclass(frozen=True)
class Year:
    """What happened in it, by what must become of it."""

    superseded_run: str
    newest_run: str
    run_of_a_backup_that_stands: str
    run_of_a_backup_that_is_gone: str
    newest_dump_run: str
    run_in_progress: str


@dg.op
def _nothing() -> None: ...


@dg.job
def _waits() -> None:
    _nothing()


def run_of(instance: dg.DagsterInstance, key: str, **metadata: str) -> str:
    """Materialize an asset in a run of its own; return the run's id."""

    @dg.asset(name=key)
    def made() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(metadata=metadata)

    return dg.materialize([made], instance=instance).run_id


def fill(instance: dg.DagsterInstance, stack: Stack) -> Year:
    """Write a history: runs, events outside of runs, checks, failover records, ticks."""
    standing = store_backup(stack.database_repository().store, NOW - timedelta(days=1)).place.backup_id  # type: ignore[arg-type]
    assert isinstance(stack.database_repository().store, ObjectStore)
    year = Year(
        superseded_run=run_of(instance, "report"),
        newest_run=run_of(instance, "report"),
        run_of_a_backup_that_stands=run_of(instance, "database_dump", backup_id=standing),
        run_of_a_backup_that_is_gone=run_of(instance, "database_dump", backup_id="20240101T000000Z-000000"),
        newest_dump_run=run_of(instance, "database_dump", backup_id="20240102T000000Z-000000"),
        run_in_progress=instance.create_run_for_job(_waits).run_id,
    )
    for number in range(3):
        for partition in ("x", "y"):
            event = dg.AssetMaterialization("observed", partition=partition, metadata={"number": number})
            instance.report_runless_asset_event(event)
        instance.report_runless_asset_event(dg.AssetMaterialization("failover_record", metadata={"number": number}))
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(asset_key=dg.AssetKey("observed"), check_name="holds", passed=True, metadata={})
        )
        begin_tick(instance, "a_sensor", NOW.timestamp() + number)
    return year


def doomed(plan: StoredPlan) -> list[dict[str, Any]]:
    """Return the entries of a plan's file that remove something."""
    _, *entries, _ = (json.loads(line) for line in plan.path.read_text(encoding="utf-8").splitlines())
    return [body for body in entries if body["action"] == "delete"]


def runs(instance: dg.DagsterInstance) -> set[str]:
    return {run.run_id for run in instance.get_runs()}


def events(instance: dg.DagsterInstance, key: str) -> list[tuple[str | None, object]]:
    found = instance.fetch_materializations(dg.AssetKey(key), limit=100).records
    return sorted((one.partition_key, one.asset_materialization.metadata["number"].value) for one in found)  # type: ignore[type-var, union-attr]


def test_exactly_what_the_plan_names_goes_and_all_that_is_still_needed_stays(
    stored_instance: dg.DagsterInstance, stack: Stack
) -> None:
    """Runs in progress, holders of a newest event, runs of backups that stand, failover records: these outlast ages."""
    instance = stored_instance
    year = fill(instance, stack)
    before = runs(instance)

    plan = make_history_plan(stack, instance, A_YEAR_LATER)

    assert runs(instance) == before, "a plan only looks"
    assert make_history_plan(stack, instance, A_YEAR_LATER).digest == plan.digest
    named = {body["run_id"] for body in doomed(plan) if body["rule"] == "old-run"}
    assert named == {year.superseded_run, year.run_of_a_backup_that_is_gone}

    outcome = apply_history_plan(plan.digest, stack, instance, A_YEAR_LATER)

    assert (outcome.done, outcome.skipped) == ({"delete": len(doomed(plan))}, 0)
    assert before - runs(instance) == named
    assert events(instance, "observed") == [("x", 2), ("y", 2)]
    assert [number for _, number in events(instance, "failover_record")] == [0, 1, 2]
    [tick] = instance.get_ticks(*_origin(instance), limit=10)
    assert tick.timestamp == NOW.timestamp() + 2
    assert instance.get_latest_materialization_event(dg.AssetKey("database_dump")) is not None


def test_a_second_apply_does_nothing_and_a_new_plan_names_nothing(
    stored_instance: dg.DagsterInstance, stack: Stack
) -> None:
    """A used digest is refused; what is left a plan keeps."""
    fill(stored_instance, stack)
    plan = make_history_plan(stack, stored_instance, A_YEAR_LATER)
    apply_history_plan(plan.digest, stack, stored_instance, A_YEAR_LATER)
    after = runs(stored_instance)

    with pytest.raises(PlanChanged, match="was applied"):
        apply_history_plan(plan.digest, stack, stored_instance, A_YEAR_LATER)

    again = make_history_plan(stack, stored_instance, A_YEAR_LATER)
    assert doomed(again) == []
    assert runs(stored_instance) == after


def test_what_became_needed_since_the_plan_stays(stored_instance: dg.DagsterInstance, stack: Stack) -> None:
    """Between plan and apply the newest run of an asset was deleted by hand: its predecessor holds the newest event."""
    year = fill(stored_instance, stack)
    plan = make_history_plan(stack, stored_instance, A_YEAR_LATER)
    stored_instance.delete_run(year.newest_run)

    outcome = apply_history_plan(plan.digest, stack, stored_instance, A_YEAR_LATER)

    assert year.superseded_run in runs(stored_instance)
    assert outcome.skipped >= 1


def _origin(instance: dg.DagsterInstance) -> tuple[str, str]:
    [state] = instance.all_instigator_state()
    return state.instigator_origin_id, state.selector_id
