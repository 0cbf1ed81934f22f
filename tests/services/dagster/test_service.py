"""Code server, daemon and guarded webserver together, on real PostgreSQL storage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import dagster as dg
import httpx
import psutil
import pytest
from psycopg.conninfo import conninfo_to_dict

from synapse_ops.errors import Refused, Unreachable
from synapse_ops.services.dagster.console import Console, RunResult, start_console
from synapse_ops.services.dagster.home import HOME_VARIABLE, dagster_environment, prepare_home
from synapse_ops.services.dagster.service import DagsterService, dagster_instance
from synapse_ops.systems.dagster_storage import last_evaluation
from tests.servers import PASSWORD, PostgresServer

pytestmark = [
    pytest.mark.scenario,
    pytest.mark.timeout(1800),  # seven starts of three interpreters, also at a load of 60 on two cores
]
Answer = TypeVar("Answer")
DEADLINE_S = 600.0  # a run takes 200 s at a load of 60 on two cores
SPEC = "name: synapse\ndatabase: {databases: [synapse]}\n"


def wait_for(what: Callable[[], Answer | None]) -> Answer:
    """Return the first true answer. Fails after DEADLINE_S."""
    deadline = time.monotonic() + DEADLINE_S
    while not (answer := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.5)  # a look at the environment of every process of the host is not free
    return answer


def make_storage(postgres_server: PostgresServer, name: str) -> dict[str, str]:
    """Return DAGSTER_PG_* of a new database for Dagster's own storage."""
    postgres_server.execute(f'create database "{name}"')
    address = conninfo_to_dict(postgres_server.conninfo(name))
    return {
        "DAGSTER_PG_HOST": "127.0.0.1",
        "DAGSTER_PG_PORT": str(address["port"]),
        "DAGSTER_PG_USER": str(address["user"]),
        "DAGSTER_PG_PASSWORD": PASSWORD,
        "DAGSTER_PG_DB": name,
    }


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("state")
    (folder / "infrastructure.yaml").write_text(SPEC)
    return folder


@pytest.fixture(scope="module")
def console(postgres_server: PostgresServer, state_dir: Path) -> Iterator[Console]:
    """One service for the tests of this module."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in make_storage(postgres_server, "dagster_console").items():
            patch.setenv(name, value)
        with start_console(state_dir, state_dir / "infrastructure.yaml", webserver=True) as made:
            yield made


def run_job(console: Console, job: str, tags: Mapping[str, str] | None = None) -> RunResult:
    return console.wait_for_run(console.start_job(job, tags=tags), timeout_s=DEADLINE_S)


def spec_check_passed(console: Console) -> bool | None:
    """Return the last verdict of the spec's check, None when it was never evaluated."""
    evaluation = last_evaluation(console.instance, dg.AssetKey("infrastructure_file"), "spec_loaded_equals_file")
    return None if evaluation is None else bool(evaluation.passed)


def code_server(state_dir: Path) -> int | None:
    """Return the pid of the code server that is supervised here, None while it is down."""
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if "grpc" in process.cmdline() and process.environ().get(HOME_VARIABLE) == str(state_dir / "dagster"):
                return process.pid
    return None


def test_run_goes_through_the_code_server_and_leads_back_to_its_log_lines(console: Console) -> None:
    """A run started here is one as from the UI; what it records names the run."""
    result = run_job(console, "record_spec", tags={"synapse/trigger": "test"})

    event = console.asset_metadata("spec/tls")
    recorded = console.instance.fetch_materializations(dg.AssetKey(["spec", "tls"]), limit=10).records
    assert result.succeeded, result.failure
    assert result.run_id in {record.run_id for record in recorded}  # the sensor may have recorded it as well
    assert event is not None
    assert event.metadata["values"]["tls"]["min_version"] == "TLSv1.2"


def test_failed_run_says_what_the_cli_would_have_said(console: Console) -> None:
    """The failure is the operation's own message, with detail and hint, not the framework's."""
    config = {"ops": {"apply_expiry": {"config": {"kind": "database", "plan_digest": "latest"}}}}
    result = console.wait_for_run(console.start_job("expire_apply", run_config=config), timeout_s=DEADLINE_S)

    assert result.status == "FAILURE"
    assert '"latest" is not the digest of a plan' in result.failure
    assert "hint: " in result.failure


def test_unknown_job_and_wrong_config_are_refused_before_a_run_starts(console: Console) -> None:
    """Dagster's reasons are in the refusal."""
    config = {"ops": {"database_restore_proof": {"config": {"backup": "nope"}}}}

    with pytest.raises(Refused, match="prove_database") as refused:
        console.start_job("prove_database", run_config=config, partition="synapse")
    with pytest.raises(Refused, match="no_such_job"):
        console.start_job("no_such_job")

    assert '"backup"' in refused.value.detail


def test_served_ui_is_guarded(console: Console) -> None:
    """What the guard's own tests show holds for the port that is served: no session, no page, no mutation."""
    address = f"http://127.0.0.1:{console.service.port}"
    url = console.service.new_url()
    query = "{ version }"

    with httpx.Client(base_url=address, trust_env=False) as browser:
        hostile = [
            browser.get("/graphql", params={"query": "mutation { setNuxSeen }"}),
            browser.post(
                "/graphql", content="{}", headers={"content-type": "text/plain", "origin": "http://evil.test"}
            ),
            browser.get("/", headers={"host": "evil.test"}),
            browser.post("/report_asset_materialization/forged"),
            browser.get("/"),
        ]
        opened = browser.get(url)
        page = browser.get("/")
        reply = browser.post("/graphql", json={"query": query}, headers={"origin": address})
        again = httpx.get(url, trust_env=False)

    assert [answer.status_code for answer in hostile] == [405, 415, 421, 403, 401]
    assert (opened.status_code, page.status_code, reply.status_code, again.status_code) == (200, 200, 200, 403)
    assert reply.json()["data"]["version"]


def test_second_supervisor_of_a_state_directory_is_refused(console: Console, state_dir: Path) -> None:
    """Two daemons on one storage would start every run twice."""
    second = DagsterService(state_dir, state_dir / "infrastructure.yaml", serve_ui=False)

    with pytest.raises(Refused, match="another supervisor"):
        second.run()
    assert run_job(console, "record_spec").succeeded


def test_invalid_spec_keeps_the_last_valid_one_and_a_new_valid_one_is_loaded(console: Console, state_dir: Path) -> None:
    """A half-saved file takes nothing down: the check is red, runs go on; a valid one restarts the code server."""
    spec = state_dir / "infrastructure.yaml"
    wait_for(lambda: spec_check_passed(console))
    before = code_server(state_dir)

    spec.write_text("name: synapse\ndatabase: {databases: [")
    wait_for(lambda: spec_check_passed(console) is False)
    during = code_server(state_dir)
    assert run_job(console, "record_spec").succeeded

    spec.write_text(SPEC.replace("[synapse]", "[synapse, orders]"))
    wait_for(lambda: code_server(state_dir) not in {None, before})
    wait_for(lambda: spec_check_passed(console))

    assert during == before
    wait_for(lambda: _accepts(console, "orders"))


def _accepts(console: Console, database: str) -> bool:
    console.wait_until_ready(DEADLINE_S)
    try:
        console.start_job("backup_database", partition=database)
    except Refused:
        console.reload()
        return False
    return True


def test_killed_supervisor_leaves_nothing_and_its_run_is_failed_by_the_next(
    postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 of `synapse-ops ui`: no process is left, and the next start knows that its run is gone."""
    spec = tmp_path / "infrastructure.yaml"
    spec.write_text(SPEC)
    storage = make_storage(postgres_server, "dagster_killed")
    argv = [sys.executable, "-m", "synapse_ops", "ui", "--state-dir", str(tmp_path), "--spec", str(spec)]
    with (tmp_path / "ui.out").open("wb") as output:
        ui = subprocess.Popen(argv, env={**os.environ, **storage}, stdout=output, stderr=output)
    wait_for(lambda: "/open?token=" in (tmp_path / "ui.out").read_text() or ui.poll() is not None)
    assert "/open?token=" in (tmp_path / "ui.out").read_text()
    assert _of_home(tmp_path)

    ui.send_signal(signal.SIGKILL)
    ui.wait()
    wait_for(lambda: not _of_home(tmp_path))

    for name, value in storage.items():
        monkeypatch.setenv(name, value)
    with start_console(tmp_path, spec, webserver=False) as again:
        assert run_job(again, "record_spec").succeeded
    assert not _of_home(tmp_path)


def test_a_home_that_was_removed_meanwhile_is_told_in_our_own_words(tmp_path: Path) -> None:
    """`local reset` under a running `ui`: its end looks for its runs, and finds no home to look in."""
    with (
        pytest.raises(Unreachable, match=r"home .+ is gone"),
        dagster_instance({HOME_VARIABLE: str(tmp_path / "removed")}),
    ):
        pytest.fail("there is no instance")


def _of_home(state_dir: Path) -> list[int]:
    """Return the pids of all processes of a state directory's Dagster."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(HOME_VARIABLE) == str(state_dir / "dagster") and process.pid != os.getpid():
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def test_a_request_to_the_code_server_may_take_minutes_in_every_process_of_ours(tmp_path: Path) -> None:
    """Dagster's 60 s passed at a load of 30 on two cores: the demo's first backup was not started."""
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    storage = dict.fromkeys(("HOST", "PORT", "USER", "PASSWORD", "DB"), "1")
    home = prepare_home(tmp_path, tmp_path / "infrastructure.yaml")
    given = {f"DAGSTER_PG_{name}": value for name, value in storage.items()}
    limit = dagster_environment(home, code_port=1, environ=given)["DAGSTER_GRPC_TIMEOUT_SECONDS"]
    program = """
import sys
import synapse_ops.services.dagster.console
from synapse_ops.services.dagster.service import dagster_instance
with dagster_instance({"DAGSTER_HOME": sys.argv[1], "DAGSTER_GRPC_TIMEOUT_SECONDS": sys.argv[2]}):
    from dagster._grpc.client import DEFAULT_GRPC_TIMEOUT
print(DEFAULT_GRPC_TIMEOUT)
"""
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), limit], capture_output=True, text=True, timeout=300, check=False
    )

    assert int(limit) >= 180
    assert (run.stdout.strip(), run.returncode) == (limit, 0), run.stderr
