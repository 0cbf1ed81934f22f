"""What killed runs left on nodes goes by a plan: theirs by name and old enough, never another tool's."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from synapse_ops.defs.cleanup.assets import cleanup_definitions
from synapse_ops.domain.backup.layout import BackupPlace
from synapse_ops.errors import PlanChanged
from synapse_ops.operations.backup.lease import hold_lease
from synapse_ops.operations.cleanup import node_snapshots as vector_cleanup
from synapse_ops.operations.cleanup.node_snapshots import apply_snapshots_plan, make_snapshots_plan
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.stack import Stack
from synapse_ops.operations.vectors.snapshot import snapshot_collection
from synapse_ops.systems.qdrant.server import QdrantServer, ServerSnapshot
from synapse_ops.systems.s3.store import ObjectStore
from tests.dagster_instances import shared_definitions
from tests.operations.vectors.collections import fill, plain_config, plain_points

LATER = timedelta(hours=1, minutes=1)  # past the grace
NO_GRACE = timedelta(minutes=-1)  # below zero, because the clocks of store and nodes have whole seconds


class LaterStore(ObjectStore):
    """A real store whose clock stands an hour later than when everything in it was written."""

    def server_time(self) -> datetime:
        return super().server_time() + LATER


class LaterStack(Stack):
    def vector_repository(self) -> Repository:
        whole = super().vector_repository()
        return Repository(LaterStore(whole.store.url, whole.store.access), whole.state_dir)


class NotEmbedded:
    is_embedded = False


def leave(stack: Stack, server: QdrantServer, collection: str, *, is_named: bool = True) -> ServerSnapshot:
    """Leave what a run leaves that is killed while it sends, or (not named) while the node works."""
    fill(server, collection, plain_config(), plain_points(20))
    identity = snapshot_collection(stack, collection).place.identity
    since = datetime.now(UTC) + timedelta(seconds=1)  # the clock of the node is a second behind ours
    left = server.create_shard_snapshot(collection, 0)
    assert left is not None
    body: dict[str, Any] = {"on_nodes": [{"node": server.url, "shard_id": 0, "name": left.name}]}
    if not is_named:
        body = {"cutting": {"node": server.url, "shard_id": 0, "since": since.isoformat()}}
    killed = BackupPlace(identity, "snapshot", collection, "20260101T000000Z-0a0b0c")
    stack.vector_repository().store.put_bytes(killed.key("heartbeat.json"), json.dumps(body).encode())
    return left


def later(stack: Stack) -> Stack:
    return LaterStack(stack.loaded, stack.state_dir)


def plan(stack: Stack) -> Any:
    return make_snapshots_plan(stack, stack.state_dir, now_of(stack))


def apply(stack: Stack, digest: str) -> Any:
    return apply_snapshots_plan(digest, stack, stack.state_dir, now_of(stack))


def now_of(stack: Stack) -> datetime:
    return datetime.now(UTC) + (LATER if isinstance(stack, LaterStack) else timedelta(0))


def names(server: QdrantServer, collection: str) -> list[str]:
    return [one.name for one in server.list_shard_snapshots(collection, 0)]


def test_a_killed_runs_snapshot_goes_by_the_digest_of_a_plan_once(
    stack: Stack, server: QdrantServer, collection: str
) -> None:
    left = leave(stack, server, collection)
    stack = later(stack)

    planned = plan(stack)
    [row] = planned.first_rows
    assert (row["action"], row["subject"].rpartition("/")[2]) == ("delete", left.name)
    assert plan(stack).digest == planned.digest
    assert names(server, collection) == [left.name]

    outcome = apply(stack, planned.digest)

    assert (outcome.done, outcome.skipped, outcome.freed_bytes) == ({"delete": 1}, 0, left.size_bytes)
    assert names(server, collection) == []
    with pytest.raises(PlanChanged, match="was applied"):
        apply(stack, planned.digest)


def test_a_snapshot_younger_than_the_grace_stays(stack: Stack, server: QdrantServer, collection: str) -> None:
    """Its run may be sending it."""
    left = leave(stack, server, collection)

    planned = plan(stack)

    [row] = planned.first_rows
    assert (row["action"], row["rule"]) == ("keep", "in-grace")
    assert apply(stack, planned.digest).done == {}
    assert names(server, collection) == [left.name]


def test_a_snapshot_that_another_tool_may_have_made_is_listed_and_stays(
    stack: Stack, server: QdrantServer, collection: str
) -> None:
    """A run that was killed while the node worked never learnt a name."""
    left = leave(stack, server, collection, is_named=False)
    stack = later(stack)

    planned = plan(stack)

    [row] = planned.first_rows
    assert (row["action"], row["rule"]) == ("keep", "not-certain")
    assert left.name in row["subject"]
    assert apply(stack, planned.digest).done == {}
    assert names(server, collection) == [left.name]


def test_nothing_goes_while_a_snapshot_of_the_collection_is_taken_or_after_its_run_made_a_backup(
    stack: Stack, server: QdrantServer, collection: str
) -> None:
    """Each entry is looked at again when it is its turn."""
    left = leave(stack, server, collection)
    stack = later(stack)
    store = stack.vector_repository().store
    planned = plan(stack)

    with hold_lease(stack.vector_repository(), f"snapshot-{collection}", owner="somebody", ttl_s=3):
        busy = apply(stack, planned.digest)
    again = plan(stack)
    store.put_bytes(str(planned.first_rows[0]["run"]) + "backup.json", b"{}")
    finished = apply(stack, again.digest)

    assert (busy.done, busy.skipped) == ({}, 1)
    assert "being taken" in busy.rows[0]["skipped_because"]
    assert (finished.done, finished.skipped) == ({}, 1)
    assert names(server, collection) == [left.name]


def test_a_node_that_does_not_answer_is_a_warning(
    stack: Stack, server: QdrantServer, collection: str, tmp_path: Path
) -> None:
    """What lies there is not known, so it is not silently nothing."""
    leave(stack, server, collection)
    text = stack.loaded.path.read_text()
    port = server.url.rpartition(":")[2]
    stack.loaded.path.write_text(text.replace(f"port: {port}", f"port: {port}, nodes: ['http://127.0.0.1:1']"))
    from synapse_ops.operations.stack import open_stack

    planned = plan(open_stack(stack.loaded.path, tmp_path))

    assert planned.first_rows == []
    assert any(server.url in warning for warning in planned.warnings)


def test_by_dagster_left_overs_go_by_the_digest_that_the_plan_asset_printed_and_by_no_other(
    stack: Stack, server: QdrantServer, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan asset shows what would go; the apply job without that digest refuses and removes nothing."""
    left = leave(stack, server, collection)
    monkeypatch.setattr(vector_cleanup, "GRACE", NO_GRACE)
    shared = shared_definitions(monkeypatch, stack)
    definitions = dg.Definitions.merge(shared, cleanup_definitions(stack.spec, NotEmbedded()))  # type: ignore[arg-type]
    with dg.DagsterInstance.ephemeral() as instance:

        def run(job: str, assets: list[str] | None = None, **config: str) -> dg.ExecuteInProcessResult:
            return definitions.resolve_job_def(job).execute_in_process(
                run_config={"ops": {"apply_cleanup": {"config": {"kind": "snapshots", **config}}}} if config else None,
                asset_selection=[dg.AssetKey(name) for name in assets] if assets else None,
                instance=instance,
                raise_on_error=False,
            )

        assert run("cleanup_plan", ["snapshot_cleanup_plan"]).success
        event = instance.get_latest_materialization_event(dg.AssetKey("snapshot_cleanup_plan"))
        assert event is not None
        assert event.asset_materialization is not None
        shown = event.asset_materialization.metadata
        assert (shown["deleted"].value, shown["delete_bytes"].value) == (1, left.size_bytes)

        assert not run("cleanup_apply", plan_digest="0" * 64).success
        assert names(server, collection) == [left.name]

        assert run("cleanup_apply", plan_digest=str(shown["plan_digest"].value)).success
    assert names(server, collection) == []
