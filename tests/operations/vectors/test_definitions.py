"""Collections are discovered, proven and missed in Dagster, by the databases' own code."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import dagster as dg
import pytest

from synapse_ops.defs.backup.definitions import definitions_of
from synapse_ops.defs.backup.kinds import COLLECTIONS, COLLECTIONS_PARTITION
from synapse_ops.defs.backup.repository_sensor import look_at_repository
from synapse_ops.defs.backup.restore_check import CHECK_NAME
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.vectors.collections import PRESENT_CHECK, collection_definitions, look_at_collections
from synapse_ops.operations.stack import Stack
from synapse_ops.operations.vectors.snapshot import snapshot_collection
from synapse_ops.systems.dagster_storage import last_evaluation
from synapse_ops.systems.qdrant.server import QdrantServer
from tests.dagster_instances import shared_definitions
from tests.defs.test_alarms import Receiver, tick
from tests.operations.vectors.collections import fill, plain_config, plain_points


@dataclass
class Place:
    is_embedded: bool = True


@dataclass
class Dagster:
    """An instance, and the definitions of the vectors over a stack."""

    instance: dg.DagsterInstance
    stack: Stack
    resource: StackResource
    definitions: dg.Definitions
    cursor: str | None = None

    def discover(self) -> dg.SensorResult:
        """Evaluate the sensor once and record what it reports, as the daemon does."""
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        result = look_at_collections(context, self.resource)
        assert isinstance(result, dg.SensorResult)
        for request in result.dynamic_partitions_requests or ():
            self.instance.add_dynamic_partitions(COLLECTIONS_PARTITION, request.partition_keys)
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        self.cursor = result.cursor
        return result

    def run(self, job: str, partition: str | None = None, **config: object) -> dg.ExecuteInProcessResult:
        found = self.definitions.resolve_job_def(job)
        return found.execute_in_process(
            run_config=config or None, instance=self.instance, partition_key=partition, raise_on_error=False
        )

    def check(self, name: str) -> bool | None:
        found = last_evaluation(self.instance, COLLECTIONS.backup_key, name)
        return None if found is None else found.passed

    def known(self) -> list[str]:
        return list(self.instance.get_dynamic_partitions(COLLECTIONS_PARTITION))


@pytest.fixture
def dagster(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dagster]:
    shared = shared_definitions(monkeypatch, stack)
    backups = definitions_of([COLLECTIONS], stack.spec, Place())  # type: ignore[arg-type]
    with dg.DagsterInstance.ephemeral() as instance:
        yield Dagster(instance, stack, StackResource(), dg.Definitions.merge(shared, backups, collection_definitions()))


def test_a_collection_is_discovered_snapshotted_and_proven_and_the_check_says_so(
    dagster: Dagster, server: QdrantServer, collection: str
) -> None:
    """The whole chain by the launchpad's jobs; the proof reports the verdict over all collections."""
    fill(server, collection, plain_config(), plain_points(50))
    dagster.discover()
    assert collection in dagster.known()

    taken = dagster.run("backup_vectors", collection)
    proven = dagster.run("prove_vectors", collection)

    assert taken.success
    assert proven.success
    assert len(dagster.discover().asset_events) == 1, "a check older than the snapshot would read as not evaluated"
    assert not dagster.discover().asset_events
    event = dagster.instance.get_latest_materialization_event(COLLECTIONS.proof_key)
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["recall_at_10"].value == 1.0
    evaluation = last_evaluation(dagster.instance, COLLECTIONS.backup_key, CHECK_NAME)
    assert evaluation is not None
    rows = [record.data for record in evaluation.metadata["collections"].records]  # type: ignore[union-attr]
    assert [row["verdict"] for row in rows if row["collection"] == collection] == ["proven"]


def test_a_backup_of_the_command_line_is_reported_and_gets_its_proof(
    dagster: Dagster, server: QdrantServer, collection: str
) -> None:
    fill(server, collection, plain_config(), plain_points(50))
    dagster.discover()
    report = snapshot_collection(dagster.stack, collection)

    result = look_at_repository(dg.build_sensor_context(instance=dagster.instance), dagster.stack, COLLECTIONS)

    assert [event.metadata["backup_id"].value for event in result.asset_events] == [report.place.backup_id]
    [request] = result.run_requests or []
    assert request.run_key == f"proof-{report.place.backup_id}-1"
    assert request.partition_key == collection


def test_a_vanished_collection_turns_a_check_red_until_somebody_forgets_it(
    dagster: Dagster, server: QdrantServer
) -> None:
    """Silence is no news: its backups would end without a word."""
    name = f"test_{secrets.token_hex(4)}"
    fill(server, name, plain_config(), [])
    dagster.instance.add_dynamic_partitions(COLLECTIONS_PARTITION, [name])
    dagster.discover()
    assert dagster.check(PRESENT_CHECK) is True
    forget = {"forget": {"config": {"collection": name}}}
    assert not dagster.run("forget_collection", ops=forget).success

    server.delete_collection(name)
    dagster.discover()

    assert dagster.check(PRESENT_CHECK) is False
    assert dagster.run("forget_collection", ops=forget).success
    dagster.discover()
    assert dagster.check(PRESENT_CHECK) is True
    assert name not in dagster.known()


def test_a_vanished_collection_is_an_alarm_that_leaves_dagster_and_ends_when_it_is_back(
    dagster: Dagster, server: QdrantServer, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the server through the discovering sensor to the outlet: critical, named, and resolved by its return."""
    receiver = Receiver()
    threading.Thread(target=receiver.server.serve_forever, daemon=True).start()
    monkeypatch.delenv("SYNAPSE_ALERT_WEBHOOK", raising=False)
    monkeypatch.setenv("SYNAPSE_ALERTMANAGER_URL", receiver.url)
    fill(server, collection, plain_config(), [])
    dagster.discover()
    cursor = tick("failed_check_alarms", dagster.instance, None)

    server.delete_collection(collection)
    dagster.discover()
    dagster.discover()
    cursor = tick("failed_check_alarms", dagster.instance, cursor)
    server.create_collection(collection, plain_config())
    dagster.discover()
    tick("failed_check_alarms", dagster.instance, cursor)
    receiver.server.shutdown()
    receiver.server.server_close()

    [(_, [gone]), (_, [back])] = receiver.posted
    assert gone["labels"]["check"] == "collections_present"
    assert gone["labels"]["severity"] == "critical"
    assert collection in gone["annotations"]["description"]
    assert gone["endsAt"] > gone["startsAt"]
    assert back["labels"] == gone["labels"]
    assert back["endsAt"] == back["startsAt"]


def test_a_job_on_collections_fails_in_our_own_words(dagster: Dagster) -> None:
    """The run's page says what is not there and what is, instead of a client's exception."""
    dagster.instance.add_dynamic_partitions(COLLECTIONS_PARTITION, ["no_such_collection"])
    taken = dagster.run("backup_vectors", "no_such_collection")

    [failed] = taken.get_step_failure_events()
    error = failed.step_failure_data.error
    assert error is not None
    assert error.cls_name == "Failure"
    assert "no_such_collection" in error.message


def test_an_expiry_of_snapshots_needs_the_digest_of_its_plan(
    dagster: Dagster, server: QdrantServer, collection: str
) -> None:
    fill(server, collection, plain_config(), plain_points(20))
    snapshot_collection(dagster.stack, collection)

    planned = dagster.run("expire_plan")
    assert planned.success
    digest = planned.asset_materializations_for_node("vector_expiry_plan")[0].metadata["plan_digest"].value
    config = {"kind": "vectors", "plan_digest": "0" * 16}
    assert not dagster.run("expire_apply", ops={"apply_expiry": {"config": config}}).success
    config["plan_digest"] = str(digest)
    applied = dagster.run("expire_apply", ops={"apply_expiry": {"config": config}})
    assert applied.success
