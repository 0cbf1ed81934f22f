"""RDB snapshots of a real Redis into a real S3, and their proof by a server that loads them."""

from __future__ import annotations

from typing import Any

from synapse_ops.domain.backup_record import Verdict
from synapse_ops.operations.backup_catalog import read_catalog
from synapse_ops.operations.proof import ProofReport
from synapse_ops.operations.rdb_restore_proof import prove_rdb
from synapse_ops.operations.rdb_snapshot import RdbReport, snapshot_redis
from synapse_ops.operations.stack import Stack
from tests.rdb.redis_servers import RealRedis, fill_every_type


def prove(stack: Stack, report: RdbReport, **more: Any) -> ProofReport:
    found = prove_rdb(stack.redis_repository(), place=report.place, work_dir=stack.state_dir / "proof", **more)
    assert found is not None
    return found


def test_an_idle_server_with_every_type_is_proven_key_for_key_in_every_database(
    stack: Stack, server: RealRedis
) -> None:
    """Without a writer there is no window: counts by database, and every key by type, value and time to live."""
    fill_every_type(server)

    report = snapshot_redis(stack)
    found = prove(stack, report)

    assert (report.record.window.is_idle, report.record.window.moved_keys) == (True, 0)
    assert (found.record.verdict, found.record.reason, found.record.differences) == (Verdict.PROVEN, "", ())
    assert found.record.rdb is not None
    assert found.record.rdb.keys == {0: 17, 3: 17, 15: 17} == report.record.window.keys_after
    assert (found.record.rdb.still_keys, found.record.rdb.by_value) == (51, 51)
    assert found.record.rdb.dataset_digest == server.client().execute_command("DEBUG", "DIGEST").decode()
    assert read_catalog(stack.redis_repository()).backups[0].proven_at is not None
