"""Synapse Ops in the cluster: each run a pod, and what is left when one of its processes is killed.

PostgreSQL, S3, Kubernetes and Dagster are real, on one node. Images and stand-ins are those of tests/engine.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from tests.cluster.deployment import Deployment, deploy, until
from tests.cluster.stack import Stack

pytestmark = [pytest.mark.cluster, pytest.mark.node, pytest.mark.timeout(1200)]

LOST_TIMEOUT_S = 60.0  # after this a run whose pod was lost must have failed


@pytest.fixture(scope="module")
def deployment(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Dagster beside the stack, and a table that a test can lock."""
    stack.sql("db-primary", "create table ledger as select n from generate_series(1, 1000) as n", "synapse")
    return deploy(stack, tmp_path_factory.mktemp("deployment"))


def repository(deployment: Deployment) -> Any:
    """Return what `backup list` says of the dumps."""
    listed = json.loads(deployment.operate("backup", "list", "database/synapse", "--json"))
    [found] = listed["repositories"]
    return found


def waits_for_the_table(deployment: Deployment) -> bool:
    query = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = 'synapse'"
    return deployment.stack.sql("db-primary", query) != "0"


def test_a_run_from_the_ui_is_a_pod_that_backs_up_and_a_second_pod_proves_it(deployment: Deployment) -> None:
    """From the primary of the cluster into S3, and from there into a throwaway server on the second pod's own disk."""
    backup = deployment.launch("backup_database", "synapse")
    pod = deployment.pod_of(backup)
    assert deployment.await_end(backup) == "SUCCESS", deployment.messages(backup)
    proof = deployment.launch("prove_database", "synapse")
    assert deployment.await_end(proof) == "SUCCESS", deployment.messages(proof)

    [volume] = [each for each in pod["spec"]["volumes"] if each["name"] == "state"]
    assert "ephemeral" in volume
    assert pod["spec"]["automountServiceAccountToken"] is False
    [entry] = repository(deployment)["backups"]
    assert (entry["is_proven"], entry["item_count"]) == (True, rows(deployment))


def rows(deployment: Deployment) -> int:
    """Return the rows of all tables of the protected database."""
    listed = "select oid::regclass from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace"
    tables = deployment.stack.sql("db-primary", listed, "synapse").split()
    return sum(int(deployment.stack.sql("db-primary", f"select count(*) from {name}", "synapse")) for name in tables)


def test_a_report_reads_the_prober_s_history_on_its_node(deployment: Deployment) -> None:
    """Without it the report would say that the prober does not run."""
    run = deployment.launch("report_health")

    assert deployment.await_end(run) == "SUCCESS", deployment.messages(run)
    [said] = [each for each in deployment.messages(run) if each.startswith("Asset check 'everything_healthy'")]
    assert re.search(r"\d+ (of \d+ )?healthy", said), said


def test_what_a_run_wrote_is_read_in_the_ui_when_its_pod_has_ended(deployment: Deployment) -> None:
    """Its output is in S3: no other pod could read a file that it left."""
    run = deployment.launch("report_health")
    assert deployment.await_end(run) == "SUCCESS"

    assert "Materialized value health_report" in deployment.output(run)


def test_a_pod_killed_in_mid_dump_ends_its_run_in_time_and_the_next_one_is_green(deployment: Deployment) -> None:
    """The run says what became of its pod, and `backup list` names what it left in the bucket."""
    before = {each["backup_id"] for each in repository(deployment)["left_overs"]}
    with deployment.held("ledger"):
        run = deployment.launch("backup_database", "synapse")
        pod = deployment.pod_of(run)
        until(lambda: waits_for_the_table(deployment), lambda: "no dump waits for the table")
        deployment.kill_pod(pod)
        status = deployment.await_end(run, timeout_s=LOST_TIMEOUT_S)

    assert status == "FAILURE"
    said = [each for each in deployment.messages(run) if "Marking run" in each]
    assert said
    assert "exit code 137" in said[0]
    [left] = [each for each in repository(deployment)["left_overs"] if each["backup_id"] not in before]
    assert left["subject"] == "synapse"
    again = deployment.launch("backup_database", "synapse")
    assert deployment.await_end(again) == "SUCCESS", deployment.messages(again)


@pytest.mark.parametrize("part", ["dagster-daemon", "dagster-code-server", "dagster-webserver", "dagster-postgres"])
def test_a_run_in_progress_ends_well_when_a_process_of_dagster_is_killed(deployment: Deployment, part: str) -> None:
    """Its dump waits meanwhile, and nothing that it said is lost; the next run is started by what took its place."""
    with deployment.held("ledger"):
        run = deployment.launch("backup_database", "synapse")
        deployment.pod_of(run)
        until(lambda: waits_for_the_table(deployment), lambda: "no dump waits for the table")
        before = deployment.messages(run)
        deployment.kill(part)

    assert deployment.await_end(run) == "SUCCESS", deployment.messages(run)
    assert deployment.messages(run)[: len(before)] == before
    again = deployment.launch("report_health")
    assert deployment.await_end(again) == "SUCCESS", deployment.messages(again)


def test_schedules_and_sensors_go_on_after_all_of_it(deployment: Deployment) -> None:
    """What took the place of the killed daemon evaluates them."""
    began_s = time.time()

    until(lambda: not deployment.silent(began_s), lambda: str(deployment.silent(began_s)), timeout_s=150)
