"""What goes of Dagster's history, on both of its storages: the statement by age leaves the newest of each kind."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable

from synapse_ops.systems import dagster_storage as storage

KEPT = ("failover_record",)


@pytest.fixture
def instance(stored_instance: dg.DagsterInstance) -> dg.DagsterInstance:
    return stored_instance


def report(instance: dg.DagsterInstance, key: str, partition: str | None = None) -> int:
    instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=partition, metadata={"n": 1}))
    return storage.newest_storage_id(instance)


def evaluate(instance: dg.DagsterInstance, name: str, *, passed: bool) -> int:
    check = dg.AssetCheckEvaluation(asset_key=dg.AssetKey("a"), check_name=name, passed=passed, metadata={})
    instance.report_runless_asset_event(check)
    return storage.newest_storage_id(instance)


def age_all(instance: dg.DagsterInstance, age: timedelta) -> None:
    """Make every event so far look older."""
    moment = (datetime.now(UTC) - age).replace(tzinfo=None)
    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        connection.execute(SqlEventLogStorageTable.update().values(timestamp=moment))
        if hasattr(connection, "commit") and connection.in_transaction():
            connection.commit()


def superseded(instance: dg.DagsterInstance, days: int = 90) -> list[int]:
    before = datetime.now(UTC) - timedelta(days=days)
    return [event.event_id for event in storage.superseded_events(instance, before, KEPT)]


def test_the_newest_event_of_each_asset_partition_and_check_stays(instance: dg.DagsterInstance) -> None:
    """However old it is; and every failover record. Whatever a newer one of its kind has superseded goes."""
    old_whole, old_x = report(instance, "a"), report(instance, "a", "x")
    newest = {report(instance, "a"), report(instance, "a", "x"), report(instance, "a", "y"), report(instance, "b")}
    old_check = evaluate(instance, "c", passed=True)
    newest |= {evaluate(instance, "c", passed=False), evaluate(instance, "d", passed=True)}
    newest |= {report(instance, "failover_record"), report(instance, "failover_record")}
    age_all(instance, timedelta(days=100))

    listed = superseded(instance)
    before = datetime.now(UTC) - timedelta(days=90)
    left = storage.delete_superseded_events(instance, [*listed, *newest], before, KEPT)

    assert listed == [old_whole, old_x, old_check]
    assert left == newest
    assert superseded(instance) == []
    found = instance.fetch_materializations(dg.AssetKey("a"), limit=10).records
    assert len(found) == 3
    assert storage.last_evaluation(instance, dg.AssetKey("a"), "c") is not None


def test_a_check_that_is_planned_does_not_hide_its_last_verdict(instance: dg.DagsterInstance) -> None:
    """A run plans its checks first: while it runs, and when it ended without a verdict, the last one stands."""
    check = dg.AssetCheckKey(dg.AssetKey("a"), "sound")

    @dg.asset(key="a", check_specs=[dg.AssetCheckSpec("sound", asset="a")])
    def broken():  # type: ignore[no-untyped-def]
        raise dg.Failure("the disk is full")

    evaluate(instance, "sound", passed=False)
    assert not dg.materialize([broken], instance=instance, raise_on_error=False).success

    verdict = storage.last_evaluation(instance, check.asset_key, check.name)
    assert verdict is not None
    assert verdict.passed is False
    assert [found for _, found in storage.failing_checks(instance, [check])] == [verdict]


def test_a_young_event_stays_though_a_newer_one_stands(instance: dg.DagsterInstance) -> None:
    """Age alone decides among those that have a successor."""
    report(instance, "a")
    report(instance, "a")

    assert superseded(instance) == []
    assert len(superseded(instance, days=-1)) == 1


def test_a_run_that_holds_the_newest_event_is_named_and_a_run_in_progress_is_not_finished(
    instance: dg.DagsterInstance,
) -> None:
    """Deleting a run deletes its materializations, so the holder of the newest one must be known."""

    @dg.asset
    def made() -> None: ...

    first = dg.materialize([made], instance=instance).run_id
    second = dg.materialize([made], instance=instance).run_id
    waiting = instance.create_run_for_job(_job()).run_id
    holders = storage.runs_with_newest_events(instance, KEPT)
    soon = datetime.now(UTC) + timedelta(minutes=1)

    assert second in holders
    assert first not in holders
    assert {run.run_id for run in storage.finished_runs_before(instance, soon)} == {first, second}
    assert storage.is_finished(instance, waiting) is False

    storage.delete_run(instance, first)
    assert storage.is_finished(instance, first) is None


def _job() -> dg.JobDefinition:
    @dg.op
    def nothing() -> None: ...

    @dg.job
    def waits() -> None:
        nothing()

    return waits
