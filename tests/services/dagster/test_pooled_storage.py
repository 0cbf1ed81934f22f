"""Dagster's storage keeps its connections: what an idle daemon did was mostly connecting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import psycopg
import pytest
import yaml
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from synapse_ops.services.dagster.home import shipped_file
from synapse_ops.services.dagster.pooled_storage import limit_statements
from tests.servers import PASSWORD, PostgresServer


def test_a_hundred_queries_of_all_three_storages_take_few_connections_and_outlive_a_lost_one(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """The class that dagster.yaml names; a connection that the server ended is replaced before its use."""
    with instance_of(postgres_server, tmp_path, "dagster_pooled") as instance:
        ask(instance)
        with psycopg.connect(postgres_server.conninfo("postgres"), autocommit=True) as other:
            kept = backends(other)
            for _ in range(33):
                ask(instance)
            after = backends(other)
            other.execute("select pg_terminate_backend(pid) from unnest(%s::int[]) as pid", [list(after)])
            ask(instance)
            new = backends(other)

    assert kept
    assert after == kept
    assert new
    assert not new & kept


def test_a_webserver_ends_long_statements_and_outlives_a_restart_of_the_server(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """No page fails for a connection that the server ended; one that asks for too long does."""
    with instance_of(postgres_server, tmp_path, "dagster_pooled_web") as instance:
        limit_statements(instance, 100)
        ask(instance)
        with psycopg.connect(postgres_server.conninfo("postgres"), autocommit=True) as other:
            ends = "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'dagster_pooled_web'"
            other.execute(ends)
        ask(instance)
        engine = instance.run_storage._engine  # type: ignore[attr-defined]
        with engine.connect() as connection, pytest.raises(OperationalError, match="statement timeout"):
            connection.execute(text("select pg_sleep(60)"))
        with instance.event_log_storage._connect() as connection:  # type: ignore[attr-defined]
            assert connection.execute(text("show statement_timeout")).scalar() == "100ms"


@contextmanager
def instance_of(server: PostgresServer, folder: Path, name: str) -> Iterator[dg.DagsterInstance]:
    """Yield an instance on a new database, with the storage that dagster.yaml names."""
    custom = yaml.safe_load(shipped_file("dagster.yaml").read_text())["storage"]["custom"]
    database = {**custom["config"]["postgres_db"], "hostname": "127.0.0.1", "port": server.server.port}
    database |= {"username": "postgres", "password": PASSWORD, "db_name": name}
    server.execute(f"create database {name}")
    storage = {"custom": {**custom, "config": {"postgres_db": database}}}
    with dg.instance_for_test(temp_dir=str(folder), overrides={"storage": storage}) as instance:
        yield instance


def backends(other: psycopg.Connection) -> set[int]:
    """Return the servers' processes that serve Dagster now."""
    wanted = "datname = 'dagster_pooled' and backend_type = 'client backend' and application_name = 'dagster'"
    return {int(row[0]) for row in other.execute(f"select pid from pg_stat_activity where {wanted}").fetchall()}


def ask(instance: dg.DagsterInstance) -> None:
    """Use each of the three storages once."""
    instance.get_runs_count()
    instance.get_latest_materialization_event(dg.AssetKey("a"))
    instance.all_instigator_state()
