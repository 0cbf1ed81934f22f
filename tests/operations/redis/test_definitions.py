"""Redis in Dagster: backed up and proven like any kind where the spec says that it keeps state; else not at all."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from synapse_ops.defs.backup.definitions import definitions_of
from synapse_ops.defs.backup.kinds import DATABASES, REDIS, asset_kinds_of
from synapse_ops.defs.backup.repository_sensor import look_at_repository
from synapse_ops.defs.backup.restore_check import CHECK_NAME, PROOF_CHECK_NAME
from synapse_ops.defs.place import Place
from synapse_ops.operations.cleanup.run_history import BACKUP_KEYS
from synapse_ops.operations.redis.snapshot import snapshot_redis
from synapse_ops.operations.stack import Stack
from synapse_ops.spec import Spec
from synapse_ops.systems.dagster_storage import last_evaluation
from tests.dagster_instances import shared_definitions
from tests.redis_servers import RealRedis, fill_every_type


def _definitions(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    shared = shared_definitions(monkeypatch, stack)
    place = Place(Path(stack.loaded.path), stack.state_dir, is_embedded=True)
    return dg.Definitions.merge(shared, definitions_of([REDIS], stack.spec, place))


def test_a_snapshot_is_taken_and_proven_by_the_jobs_of_every_kind(
    stack: Stack, server: RealRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backup, proof, check and expiry plan are the same code as for a database; the proof reports the check."""
    fill_every_type(server)
    definitions = _definitions(stack, monkeypatch)
    with dg.DagsterInstance.ephemeral() as instance:
        [address] = REDIS.expected(stack, instance)
        for verb in ("backup", "prove"):
            job = definitions.resolve_job_def(REDIS.job(verb))
            assert job.execute_in_process(instance=instance, partition_key=address).success
        taken, proven = (
            instance.get_latest_materialization_event(key).asset_materialization.metadata["backup_id"]  # type: ignore[union-attr]
            for key in (REDIS.backup_key, REDIS.proof_key)
        )
        assert taken == proven
        evaluation = last_evaluation(instance, REDIS.backup_key, CHECK_NAME)
        assert evaluation is not None
        assert evaluation.passed
        assert definitions.resolve_job_def("expire_plan").execute_in_process(instance=instance).success


def test_a_snapshot_that_was_damaged_since_leaves_no_green_page(
    stack: Stack, server: RealRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof is a materialization that fails: its run, its own check and that of the snapshot are red."""
    fill_every_type(server)
    definitions = _definitions(stack, monkeypatch)
    with dg.DagsterInstance.ephemeral() as instance:
        [address] = REDIS.expected(stack, instance)

        def run(verb: str) -> dg.ExecuteInProcessResult:
            job = definitions.resolve_job_def(REDIS.job(verb))
            return job.execute_in_process(instance=instance, partition_key=address, raise_on_error=False)

        def verdicts() -> list[bool]:
            found = [
                last_evaluation(instance, REDIS.proof_key, PROOF_CHECK_NAME),
                last_evaluation(instance, REDIS.backup_key, CHECK_NAME),
            ]
            return [one.passed for one in found if one is not None]

        assert run("backup").success
        assert run("prove").success
        green = verdicts()
        store = stack.redis_repository().store
        [key] = [found.key for found in store.list_objects() if ".rdb" in found.key]
        data = store.read_bytes(key)
        store.put_bytes(key, data[:-64] + bytes(byte ^ 0xFF for byte in data[-64:]))
        failed = run("prove")
        red = verdicts()

    assert not failed.success
    assert failed.asset_materializations_for_node("redis_restore_proof") == []
    assert (green, red) == ([True, True], [False, False])


def test_a_snapshot_of_the_command_line_is_reported_and_gets_its_proof(stack: Stack, server: RealRedis) -> None:
    """The repository sensor of Redis does what those of databases and collections do."""
    fill_every_type(server)
    report = snapshot_redis(stack)
    with dg.DagsterInstance.ephemeral() as instance:
        result = look_at_repository(dg.build_sensor_context(instance=instance), stack, REDIS)

    [reported] = [event.metadata["backup_id"].value for event in result.asset_events]
    [request] = result.run_requests or []
    assert reported == report.place.backup_id
    assert request.partition_key == report.place.subject


def test_a_cache_has_no_backup_and_no_schedule() -> None:
    """`backup.redis` is off by default: an asset that is never made would look like one that is missing."""
    assert REDIS not in asset_kinds_of(Spec())
    assert DATABASES in asset_kinds_of(Spec())


def test_history_keeps_the_events_of_every_kind() -> None:
    """A run that made a backup stays while the backup stands, whatever its kind (operations/cleanup/run_history.py)."""
    kept = {"database_dump", "vector_snapshot", "redis_snapshot", "base_backup", "base_backup_proof"}
    kept |= {f"{kind}_restore_proof" for kind in ("database", "vector", "redis")}

    assert set(BACKUP_KEYS) == kept
