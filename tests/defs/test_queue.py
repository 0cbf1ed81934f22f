"""The queue that dagster.yaml describes: a busy night waits in it, and what a person asks for passes by."""

from __future__ import annotations

import multiprocessing
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

from synapse_ops.defs.everything import merged_definitions
from synapse_ops.defs.in_run import yield_processor
from synapse_ops.services.dagster.home import shipped_file
from synapse_ops.systems.dagster_storage import fail_abandoned_runs

SPEC = "database: {databases: [orders]}\nbackup: {redis: {}}\n"
REPOSITORY = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("synapse_ops"), "__repository__")
RESTORE = {"ops": {"restore_backup": {"config": {"backup_id": "any", "target": "new"}}}}
QUEUED = dg.DagsterRunStatus.QUEUED


def shipped() -> dict[str, dict[str, object]]:
    loaded: dict[str, dict[str, object]] = yaml.safe_load(shipped_file("dagster.yaml").read_text(encoding="utf-8"))
    return loaded


class Queue:
    """The shipped queue on an instance, with the definitions whose jobs wait in it. No run is executed."""

    def __init__(self, instance: dg.DagsterInstance, definitions: dg.Definitions) -> None:
        self.instance = instance
        self.definitions = definitions
        self._daemon = QueuedRunCoordinatorDaemon(interval_seconds=1)

    def add(self, job: str | dg.JobDefinition, count: int = 1) -> list[str]:
        """Queue a job that many times: the same run again, because Dagster takes half a second to plan one."""
        found = self.definitions.resolve_job_def(job) if isinstance(job, str) else job
        config = RESTORE if found.name == "restore" else None
        origin = RemoteJobOrigin(REPOSITORY, found.name)
        first = self.instance.create_run_for_job(
            found, run_config=config, status=QUEUED, remote_job_origin=origin, tags=found.tags
        )
        more = [first._replace(run_id=str(uuid.uuid4())) for _ in range(count - 1)]
        return [first.run_id, *(self.instance.add_run(run).run_id for run in more)]

    def start(self) -> list[str]:
        """Start what the daemon would start in one iteration, and return the jobs, in its order."""
        chosen = self._daemon._get_runs_to_dequeue(self.instance, self.instance.get_concurrency_config(), None)
        for run in chosen:
            event = dg.DagsterEvent("PIPELINE_STARTING", run.job_name)
            self.instance.report_dagster_event(event, run.run_id)
        return [run.job_name for run in chosen]


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> dg.Definitions:
    folder = tmp_path_factory.mktemp("queue")
    (folder / "infrastructure.yaml").write_text(SPEC)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNAPSE_SPEC", str(folder / "infrastructure.yaml"))
        patch.setenv("SYNAPSE_STATE_DIR", str(folder))
        return merged_definitions()


@pytest.fixture
def queue(tmp_path: Path, definitions: dg.Definitions) -> Iterator[Queue]:
    settings = {name: shipped()[name] for name in ("run_coordinator", "concurrency")}
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides=settings) as instance:
        yield Queue(instance, definitions)


def test_a_restore_starts_at_once_however_much_waits(queue: Queue) -> None:
    """Work of every lane fills two places each, also on the first night, when Dagster does not know the pools yet."""
    for job in ("backup_database", "backup_vectors", "backup_redis", "report_health", "cleanup"):
        queue.add(job, 5)
    started = Counter(queue.start())
    while more := queue.start():
        started.update(more)

    queue.add("restore")

    assert queue.start() == ["restore"]
    assert set(started.values()) == {2}


def test_what_a_person_waits_for_goes_first(queue: Queue) -> None:
    """Restore, then backup, then proof, then reports, whatever their order of arrival."""
    for job in ("report_health", "prove_vectors", "backup_database", "restore"):
        queue.add(job)

    assert queue.start() == ["restore", "backup_database", "prove_vectors", "report_health"]


def test_a_base_backup_goes_after_the_dumps_of_its_night(queue: Queue) -> None:
    """They share a lane, and one schedule starts them all at once: the cluster is copied when the dumps are done."""
    queue.add("backup_cluster")
    queue.add("backup_database", 3)
    queue.add("prove_database")
    order = []
    while more := queue.start():
        order += more
        for run in queue.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING])):
            queue.instance.report_run_canceled(run)

    assert order == ["backup_database"] * 3 + ["backup_cluster", "prove_database"]


def test_a_button_is_held_by_the_same_pools(queue: Queue) -> None:
    """Materialize and backfill carry no tags of a job: the pool of the asset keeps them in the queue as well."""
    job = queue.definitions.resolve_implicit_global_asset_job_def().get_subset(
        asset_selection={dg.AssetKey("database_dump")}
    )
    queue.add(job)
    first = queue.start()  # from now on Dagster knows the pool
    queue.add(job, 20)

    assert (first, queue.start()) == (["__ASSET_JOB"], [])


def test_every_run_ends(queue: Queue) -> None:
    """What the button starts has no limit of a job: the bound of dagster.yaml is that of the longest."""
    bound = shipped()["run_monitoring"]["max_runtime_seconds"]
    jobs = [job for job in queue.definitions.get_repository_def().get_all_jobs() if "dagster/max_runtime" in job.tags]

    assert isinstance(bound, int)
    assert bound == max(int(job.tags["dagster/max_runtime"]) for job in jobs)


def test_a_backup_leaves_the_processor_to_others() -> None:
    """In a process of its own, as a run is; the caller's own priority stays as it is."""
    before = os.nice(0)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(yield_processor)
        yielded = pool.apply(os.nice, (0,))
    yield_processor()

    assert before < yielded <= before + 5  # lower, a run meets its limits on a busy host
    assert os.nice(0) == before


def test_a_queued_run_outlives_the_supervisor(queue: Queue) -> None:
    """It has no process yet: it starts when Dagster does. What was begun is failed."""
    [waiting] = queue.add("backup_database")
    [begun] = queue.add("report_health")
    queue.instance.report_dagster_event(dg.DagsterEvent("PIPELINE_STARTING", "report_health"), begun)

    assert fail_abandoned_runs(queue.instance, "its process is gone") == [begun]
    run = queue.instance.get_run_by_id(waiting)
    assert run is not None
    assert run.status is QUEUED
