"""An empty Dagster instance on each of the two storages that we run on, for tests of its history."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from tests.servers import PASSWORD, PostgresServer


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
