"""The repository is the truth: the sensor reports what Dagster does not know, once, and judges all databases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from synapse_ops.defs.backup import repository_sensor
from synapse_ops.defs.backup.kinds import COLLECTIONS, DATABASES
from synapse_ops.defs.backup.repository_sensor import look_at_repository
from synapse_ops.defs.backup.restore_check import CHECK_NAME, PROOF_CHECK_NAME, Judgement, evaluation_of
from synapse_ops.domain.backup.layout import BACKUP, BackupPlace
from synapse_ops.domain.backup.proof_record import Verdict
from synapse_ops.domain.backup.record import BackupRecord
from synapse_ops.errors import ConfigError, Unreachable
from synapse_ops.operations.backup import catalog
from synapse_ops.operations.stack import Stack, open_stack
from synapse_ops.systems.dagster_storage import last_evaluation
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.stored_backups import store_backup, store_proof, store_snapshot

NOW = datetime.now(UTC).replace(microsecond=0)
DUMP_KEY, PROOF_KEY = DATABASES.backup_key, DATABASES.proof_key
read_stored_record = catalog.read_record


@dataclass
class Repository:
    """A store, the stack that reads it, and a Dagster instance that the sensor reports to."""

    store: ObjectStore
    stack: Stack
    instance: dg.DagsterInstance
    cursor: str | None = None

    def tick(self) -> dg.SensorResult:
        """Evaluate the sensor once and record what it reports, as the daemon does."""
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        result = look_at_repository(context, self.stack, DATABASES)
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        self.cursor = result.cursor
        return result

    def reported(self, key: dg.AssetKey = DUMP_KEY) -> list[str]:
        """Return the backup ids of all materializations, newest first."""
        records = self.instance.fetch_materializations(key, limit=1000).records
        return [str(record.asset_materialization.metadata["backup_id"].value) for record in records]  # type: ignore[union-attr]

    def check_passed(self) -> bool | None:
        evaluation = last_evaluation(self.instance, DUMP_KEY, CHECK_NAME)
        return None if evaluation is None else evaluation.passed


@pytest.fixture
def repository(
    tmp_path: Path, bucket_url: str, object_store_access: StoreAccess, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Repository]:
    monkeypatch.setenv("TEST_STORE_ACCESS_KEY_ID", object_store_access.access_key or "")
    monkeypatch.setenv("TEST_STORE_SECRET_ACCESS_KEY", object_store_access.secret_key or "")
    spec = tmp_path / "infrastructure.yaml"
    spec.write_text(
        f"database: {{databases: [synapse, orders]}}\n"
        f"object_store: {{endpoint: '{object_store_access.endpoint}', credentials: 'env:TEST_STORE'}}\n"
        f"backup:\n"
        f"  database: {{destination: '{bucket_url}'}}\n"
        f"  vectors: {{destination: '{bucket_url[:-1]}-vectors/'}}\n"
    )
    stack = open_stack(spec, tmp_path)
    with dg.DagsterInstance.ephemeral() as instance:
        yield Repository(ObjectStore(bucket_url, object_store_access), stack, instance)


def test_a_backup_of_another_kind_in_the_same_repository_is_not_a_dump(repository: Repository) -> None:
    """A collection may have the name of a database; its snapshot neither stands for a dump nor is proven as one."""
    store_snapshot(repository.store, NOW - timedelta(hours=1), collection="synapse")

    result = repository.tick()

    assert repository.reported() == []
    assert not result.run_requests


def test_backup_of_another_host_is_reported_once_and_proven(repository: Repository) -> None:
    """A backup of the CLI or of another host becomes a materialization, and starts one proof of exactly that backup."""
    backup = store_backup(repository.store, NOW - timedelta(hours=1))

    first, second = repository.tick(), repository.tick()

    assert repository.reported() == [backup.place.backup_id]
    [request] = first.run_requests or []
    assert request.run_config["ops"]["database_restore_proof"]["config"]["backup_id"] == backup.place.backup_id
    assert request.partition_key == backup.place.subject
    assert request.run_key == (second.run_requests or [])[0].run_key  # Dagster starts one run a key


def test_a_proof_whose_run_died_is_asked_for_again_after_a_pause(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a proof in the repository ends the asking; Dagster starts one run a key, so each try has its own."""
    store_backup(repository.store, NOW - timedelta(hours=1))
    [first] = repository.tick().run_requests or []
    run = repository.instance.add_run(
        dg.DagsterRun(job_name="prove_database", tags=dict(first.tags), status=dg.DagsterRunStatus.STARTED)
    )
    repository.instance.report_run_failed(run, "the host went down")

    just_failed = repository.tick().run_requests
    monkeypatch.setattr("synapse_ops.defs.backup.repository_sensor.PROOF_RETRY_S", 0.0)
    [again] = repository.tick().run_requests or []

    assert just_failed == []
    assert again.run_config == first.run_config
    assert again.run_key != first.run_key


def test_lost_cursor_reports_nothing_twice(repository: Repository) -> None:
    """A backup is known by its id in an event, not by the cursor: that can be thrown away."""
    store_backup(repository.store, NOW - timedelta(hours=2), number=1)
    store_backup(repository.store, NOW - timedelta(hours=1), number=2)
    repository.tick()
    repository.cursor = None

    result = repository.tick()

    assert [event for event in result.asset_events if isinstance(event, dg.AssetMaterialization)] == []
    assert len(repository.reported()) == 2


def test_reports_come_oldest_first(repository: Repository) -> None:
    """The last event of the asset is its newest backup."""
    old = store_backup(repository.store, NOW - timedelta(hours=2), number=1)
    new = store_backup(repository.store, NOW - timedelta(hours=1), number=2)

    repository.tick()

    assert repository.reported() == [new.place.backup_id, old.place.backup_id]


def test_backup_of_a_run_in_progress_is_left_to_that_run(repository: Repository) -> None:
    """Between backup.json and the run's own event the sensor keeps quiet, and looks again at the next tick."""
    backup = store_backup(repository.store, NOW - timedelta(hours=1))
    run = dg.DagsterRun(
        job_name="backup_database", run_id=dg.DagsterRun(job_name="x").run_id, status=dg.DagsterRunStatus.STARTED
    )
    repository.instance.add_run(run)
    record = backup.record.model_copy(update={"correlation_id": run.run_id})
    repository.store.put_bytes(backup.place.key(BACKUP), record.to_json())

    repository.tick()
    during = repository.reported()
    repository.instance.report_run_failed(run, "gone")
    repository.tick()

    assert during == []
    assert repository.reported() == [backup.place.backup_id]


def test_check_lists_every_failing_database(repository: Repository) -> None:
    """One green database never hides a red one: the check judges all of them and names those that fail."""
    good = store_backup(repository.store, NOW - timedelta(hours=2), database="synapse")
    store_proof(repository.store, good, NOW - timedelta(hours=1))
    bad = store_backup(repository.store, NOW - timedelta(hours=2), database="orders", number=1)
    store_proof(repository.store, bad, NOW - timedelta(hours=1), verdict=Verdict.DIFFERS)

    repository.tick()

    evaluation = last_evaluation(repository.instance, DUMP_KEY, CHECK_NAME)
    assert evaluation is not None
    assert evaluation.passed is False
    assert evaluation.description is not None
    assert evaluation.description.startswith(
        f"Do not count on the newest backup of orders. orders: backup {bad.place.backup_id}: newest proof: differs"
    )
    assert evaluation.metadata["failing_databases"].value == 1


def test_a_database_that_waits_for_its_proof_hides_no_red_one(repository: Repository) -> None:
    """The check keeps quiet while a first proof is on its way, unless something else is damaged meanwhile."""
    store_backup(repository.store, NOW - timedelta(hours=1), database="synapse")
    orders = store_backup(repository.store, NOW - timedelta(hours=2), database="orders", number=1)
    store_proof(repository.store, orders, NOW - timedelta(hours=1))
    repository.tick()
    quiet = repository.check_passed()

    repository.store.put_bytes(orders.place.key("database.dump"), b"damaged")
    repository.tick()

    assert quiet is None
    evaluation = last_evaluation(repository.instance, DUMP_KEY, CHECK_NAME)
    assert evaluation is not None
    assert evaluation.passed is False
    assert "orders" in (evaluation.description or "")


def test_where_nothing_is_there_to_be_proven_nothing_passes(repository: Repository) -> None:
    """Before the first collection is discovered a green check would say that vectors are safe."""
    context = dg.build_sensor_context(instance=repository.instance)

    result = look_at_repository(context, repository.stack, COLLECTIONS)

    assert result.asset_events == []


def test_check_turns_green_with_the_proof_and_red_with_damage(repository: Repository) -> None:
    """The verdict follows the repository: a changed object makes a proof void."""
    backups = [
        store_backup(repository.store, NOW - timedelta(hours=2), database=name, number=number)
        for number, name in enumerate(("synapse", "orders"))
    ]
    repository.tick()
    assert repository.check_passed() is None  # nobody has tried: not evaluated

    for backup in backups:
        store_proof(repository.store, backup, NOW - timedelta(hours=1))
    repository.tick()
    assert repository.check_passed() is True
    assert len(repository.reported(PROOF_KEY)) == 2

    repository.store.put_bytes(backups[0].place.key("database.dump"), b"PGDMP other bytes")
    repository.tick()
    assert repository.check_passed() is False


def test_failed_proof_is_an_observation_and_turns_the_proof_red(repository: Repository) -> None:
    """Only a pass materialises the proof; a failure of another host is on the page and in the check, until one passes.

    The newest proof counts, of whichever backup: an older backup that fails is not hidden by a newer one.
    """
    old, new = (store_backup(repository.store, NOW - age * timedelta(hours=1), number=age) for age in (6, 5))
    verdicts = []
    for backup, age, verdict in ((new, 4, Verdict.PROVEN), (old, 3, Verdict.UNPROVEN), (new, 2, Verdict.PROVEN)):
        store_proof(repository.store, backup, NOW - age * timedelta(hours=1), verdict=verdict)
        repository.tick()
        found = last_evaluation(repository.instance, PROOF_KEY, PROOF_CHECK_NAME)
        assert found is not None
        verdicts.append((found.passed, old.place.backup_id in (found.description or "")))
    repository.cursor = None
    repository.tick()

    assert verdicts == [(True, False), (False, True), (True, False)]
    assert repository.reported(PROOF_KEY) == [new.place.backup_id] * 2
    assert len(repository.instance.fetch_observations(PROOF_KEY, limit=10).records) == 1


def test_proof_that_could_not_be_attempted_warns_and_undoes_no_pass(repository: Repository) -> None:
    """The check warns, by severity and in words; a backup that was never proven is red by it, and not tried again."""
    old, new = NOW - timedelta(hours=5), NOW - timedelta(hours=2)
    for number, name in enumerate(("synapse", "orders")):
        store_proof(repository.store, store_backup(repository.store, old, database=name, number=number), old)
    backup = store_backup(repository.store, new, number=2)
    store_proof(repository.store, backup, new)
    store_proof(repository.store, backup, NOW, verdict=Verdict.NOT_ATTEMPTED)

    repository.tick()
    warning = last_evaluation(repository.instance, DUMP_KEY, CHECK_NAME)
    untried = store_backup(repository.store, NOW - timedelta(hours=1), number=3)
    store_proof(repository.store, untried, NOW, verdict=Verdict.NOT_ATTEMPTED)
    result = repository.tick()
    failure = last_evaluation(repository.instance, DUMP_KEY, CHECK_NAME)

    assert warning is not None
    assert failure is not None
    assert (warning.passed, warning.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "could not be attempted" in (warning.description or "")
    assert (failure.passed, failure.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert result.run_requests == []
    assert len(repository.instance.fetch_observations(PROOF_KEY, limit=10).records) == 2


def test_idle_tick_reads_no_event_and_reports_nothing(repository: Repository) -> None:
    """The cursor makes a tick without news cheap."""
    backup = store_backup(repository.store, NOW - timedelta(hours=2))
    store_proof(repository.store, backup, NOW - timedelta(hours=1))
    repository.tick()
    before = json.loads(repository.cursor or "{}")

    result = repository.tick()

    assert list(result.asset_events) == []
    assert json.loads(repository.cursor or "{}") == before


def test_a_tick_reads_the_events_of_those_that_changed_alone(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a night of 200 dumps each tick has news of one database: the history of the others is not read for it."""
    for number, database in enumerate(("synapse", "orders")):
        backup = store_backup(repository.store, NOW - timedelta(hours=3), database=database, number=number)
        store_proof(repository.store, backup, NOW - timedelta(hours=2))
    repository.tick()
    read: list[str] = []
    known = repository_sensor._known

    def watched(instance: dg.DagsterInstance, key: dg.AssetKey, subject: str, name: str) -> Any:
        read.append(subject)
        return known(instance, key, subject, name)

    monkeypatch.setattr(repository_sensor, "_known", watched)
    new = store_backup(repository.store, NOW - timedelta(hours=1), database="orders", number=2)
    repository.tick()
    repository.tick()

    assert new.place.backup_id in repository.reported()
    assert set(read) == {"orders"}
    assert len(read) == 2  # its dumps and its proofs, once


def test_a_full_tick_goes_on_where_it_ended(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large repository that Dagster does not know is reported in parts, and no part of it is read twice."""
    monkeypatch.setattr(repository_sensor, "EVENTS_PER_TICK", 2)
    for number, database in enumerate(("orders", "synapse")):
        backup = store_backup(repository.store, NOW - timedelta(hours=3), database=database, number=number)
        store_proof(repository.store, backup, NOW - timedelta(hours=2))

    first = repository.tick()
    seen = json.loads(repository.cursor or "{}")["subjects"]
    repository.tick()
    last = repository.tick()

    assert [event.partition for event in first.asset_events] == ["orders", "orders"]  # type: ignore[union-attr]
    assert (bool(seen["orders"]), bool(seen["synapse"])) == (True, False)
    assert list(last.asset_events) == []
    assert repository.check_passed() is True


def test_a_verdict_on_many_databases_stays_small() -> None:
    """Each proof writes it anew: 2,000 databases take no more room in it than 40, and a new proof changes it."""

    def verdict(databases: int, *, newest: int) -> dg.AssetCheckEvaluation:
        proven = tuple(
            (f"db_{number:04}", f"backup_{number:04}", NOW - timedelta(days=number != newest), "restored")
            for number in range(databases)
        )
        judgement = Judgement(dg.AssetCheckKey(DUMP_KEY, CHECK_NAME), (), (), (), proven)
        with dg.DagsterInstance.ephemeral() as instance:
            return evaluation_of(judgement, kind=DATABASES, instance=instance)

    few, many = verdict(40, newest=0), verdict(2000, newest=0)

    assert len(str(many)) < 1.02 * len(str(few))
    assert (many.description or "").endswith("and 1980 more.")
    assert many.metadata["proven_databases"].value == 2000
    assert verdict(2000, newest=1999).description != many.description


def test_of_many_failing_databases_some_are_named() -> None:
    failing = tuple((f"db_{number:04}", "no backup at all") for number in range(2000))

    judgement = Judgement(dg.AssetCheckKey(DUMP_KEY, CHECK_NAME), failing, (), (), ())

    assert judgement.sentence.startswith("Do not count on the newest backup of db_0000, db_0001")
    assert "and 1980 more. db_0000: no backup at all; " in judgement.sentence
    assert len(judgement.sentence) < 2000


def test_a_backup_that_cannot_be_read_stops_no_other(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported once, others are reported and proven, and the cursor moves: no event at every tick.

    A lifecycle rule moved one `backup.json` to an archive class: it is listed, its facts are cached, a GET answers 403.
    """
    lost = store_backup(repository.store, NOW - timedelta(hours=3), number=1)
    new = store_backup(repository.store, NOW - timedelta(hours=1), number=2)

    def read_record(found: Any, place: BackupPlace) -> BackupRecord:
        if place == lost.place:
            raise ConfigError(f"the keys may not read {place.key(BACKUP)}")
        return read_stored_record(found, place)

    monkeypatch.setattr(catalog, "read_record", read_record)

    first = repository.tick()
    seen = repository.cursor
    again = [repository.tick()]
    repository.cursor = None  # lost: what was reported is known by its event
    again.append(repository.tick())

    assert repository.reported() == [new.place.backup_id]
    [fault] = [event for event in first.asset_events if isinstance(event, dg.AssetObservation)]
    assert fault.metadata["backup_id"].value == lost.place.backup_id
    assert [request.tags["synapse/backup_id"] for request in first.run_requests or []] == [new.place.backup_id]
    assert [list(result.asset_events) for result in again] == [[], []]
    assert repository.cursor == seen


def test_a_store_that_is_away_for_a_moment_is_asked_again(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may pass by itself does not move the cursor: the backup is reported at the next tick."""
    backup = store_backup(repository.store, NOW - timedelta(hours=1))

    def read_record(found: Any, place: BackupPlace) -> BackupRecord:
        raise Unreachable("the store does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(catalog, "read_record", read_record)
        repository.tick()
    during = repository.reported()
    repository.tick()

    assert (during, repository.reported()) == ([], [backup.place.backup_id])
