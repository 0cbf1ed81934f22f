"""An empty Dagster instance on each of the two storages that we run on, and what definitions share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from synapse_ops.defs.resources import StackResource
from synapse_ops.operations.stack import Stack
from tests.servers import PASSWORD, PostgresServer


def shared_definitions(monkeypatch: pytest.MonkeyPatch, stack: Stack) -> dg.Definitions:
    """Return the resource and the executor of all definitions; the environment names the stack's spec as in force."""
    monkeypatch.setenv("SYNAPSE_SPEC", str(stack.loaded.path))
    monkeypatch.setenv("SYNAPSE_STATE_DIR", str(stack.state_dir))
    return dg.Definitions(resources={"stack": StackResource()}, executor=dg.in_process_executor)


@pytest.fixture(params=["sqlite", "postgres"])
def stored_instance(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_server: PostgresServer
) -> Iterator[dg.DagsterInstance]:
    """An empty instance on one of the two storages."""
    if request.param == "sqlite":
        with dg.DagsterInstance.local_temp(str(tmp_path)) as made:
            yield made
        return
    name = f"history_{tmp_path.name}".lower().replace("-", "_")
    postgres_server.execute(f'create database "{name}"')
    port = postgres_server.server.port
    database = {
        "scheme": "postgresql+psycopg2",
        "hostname": "127.0.0.1",
        "port": port,
        "username": "postgres",
        "password": PASSWORD,
        "db_name": name,
    }
    with dg.instance_for_test(
        temp_dir=str(tmp_path), overrides={"storage": {"postgres": {"postgres_db": database}}}
    ) as made:
        yield made
