"""Redis in Dagster: where the spec says that it keeps state, it is backed up and proven by one run; else nothing is."""

from __future__ import annotations

import dagster as dg

from synapse_ops.defs.redis import redis_definitions
from synapse_ops.defs.resources import StackResource
from synapse_ops.operations.stack import Stack
from synapse_ops.spec import Spec
from tests.rdb.redis_servers import RealRedis, fill_every_type


def test_one_run_takes_a_snapshot_and_proves_it_and_a_second_finds_its_own(stack: Stack, server: RealRedis) -> None:
    """What the schedule starts: the proof is of the backup that the same run has taken."""
    fill_every_type(server)
    resource = StackResource(spec_path=str(stack.loaded.path), state_dir=str(stack.state_dir))
    shared = dg.Definitions(resources={"stack": resource}, executor=dg.in_process_executor)
    definitions = dg.Definitions.merge(shared, redis_definitions(stack.spec))
    with dg.DagsterInstance.ephemeral() as instance:
        for _ in range(2):
            assert definitions.resolve_job_def("redis_backup").execute_in_process(instance=instance).success
            taken, proven = (
                instance.get_latest_materialization_event(dg.AssetKey(name)).asset_materialization.metadata["backup_id"]  # type: ignore[union-attr]
                for name in ("redis_snapshot", "redis_restore_proof")
            )
            assert taken == proven


def test_a_cache_has_no_backup_and_no_schedule() -> None:
    """`backup.redis` is off by default: an asset that is never made would look like one that is missing."""
    definitions = redis_definitions(Spec())

    assert not definitions.assets
    assert not definitions.schedules
