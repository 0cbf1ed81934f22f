"""deploy/compose.yaml over the rendered project of its spec: Dagster runs on one machine beside what it operates."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from synapse_ops.spec import load_spec
from tests.engine.engine import ROOT, Engine
from tests.engine.images import write_rendered
from tests.engine.stack import BACK_TIMEOUT_S, Stack, make_secrets, started_stack, until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

OURS = ROOT / "deploy" / "compose.yaml"
HOST = {"Host": "localhost:3001"}  # as who opens the published port asks; the forwarder's own is another
SPEC_FILE = ROOT / "deploy" / "compose-infrastructure.yaml"


@pytest.fixture(scope="module")
def stack(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Yield what Dagster needs of the project, and the WAL receiver: the rest is proven without it."""
    spec, folder = load_spec(SPEC_FILE).spec, tmp_path_factory.mktemp("stack")
    engine.docker("tag", "synapse-ops:latest", spec.docker.images.synapse_ops)
    write_rendered(spec, folder)
    authority = make_secrets(folder, more=["dagster-password"])
    services = ("dagster", "wal-receiver", "db-primary", "db-standby", "redis", "qdrant")
    variables = {"SYNAPSE_SPEC_FILE": str(SPEC_FILE)}
    with started_stack(engine, folder, spec, authority, *services, more=[OURS], variables=variables) as stack:
        yield stack


def test_the_ui_is_published_for_this_machine_and_opens_only_by_a_url_that_works_once(stack: Stack) -> None:
    with (
        stack.engine.forwarded(3001) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=HOST, trust_env=False, timeout=30) as browser,
    ):
        before = browser.get("/healthz").status_code, browser.get("/").status_code
        url = httpx.URL(stack.inside("dagster", "synapse-ops", "ui", "--new-url").split()[-1])
        first = browser.get(url.raw_path.decode()).status_code
        [session] = browser.cookies.jar
        after = httpx.get(
            f"http://127.0.0.1:{port}/", headers=HOST | {"Cookie": f"{session.name}={session.value}"}, trust_env=False
        )
        second = browser.get(url.raw_path.decode()).status_code

    assert before == (200, 401)
    assert (first, second) == (200, 403)
    assert after.status_code == 200
    assert "Dagster" in after.text


def test_dagster_keeps_its_runs_in_its_own_database_and_loads_the_definitions(stack: Stack) -> None:
    tables = stack.inside(
        "dagster-postgres", "psql", "-XAtU", "dagster", "-h", "/tmp", "-c", "select count(*) from runs"
    )
    health = stack.inside("dagster", "synapse-ops", "health")

    assert tables.strip().isdigit()
    assert "db-primary" in health


@pytest.mark.parametrize("service", ["dagster", "dagster-postgres"])
def test_a_killed_process_comes_back_by_itself(stack: Stack, service: str) -> None:
    before = stack.container(service)
    assert before is not None
    stack.engine.kill(before["State"]["Pid"])

    began = before["State"]["StartedAt"]
    until(lambda: stack.is_healthy(service, since=began), f"{service} is healthy", timeout_s=2 * BACK_TIMEOUT_S)
    until(lambda: stack.health("dagster") == "healthy", "Dagster is healthy", timeout_s=2 * BACK_TIMEOUT_S)
