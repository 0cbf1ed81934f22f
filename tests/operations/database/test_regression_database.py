"""PostgreSQL's own regression database, dumped, restored and compared: what its authors thought of testing.

POSTGRES_REGRESS names the folder `src/test/regress/sql` of PostgreSQL's source. What needs its C library or its data
files fails to be made, like the statements that are wrong on purpose; the rest is some 500 tables and 230 functions.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from synapse_ops.operations.backup_kinds import DUMPS
from synapse_ops.operations.database.dump import dump_database
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.database.backups import make_stack
from tests.servers import PASSWORD, PostgresServer, running_postgres

SCRIPT_TIMEOUT_S = 120.0
FIRST = ("test_setup", "copy", "create_table", "create_index", "create_misc", "create_function_sql", "create_view")
NOT_RUN = {"tablespace", "database"}  # they remove what they made and need directories of their own
NAME = "regression"


def test_postgresqls_own_regression_database_is_proven(
    tmp_path: Path, work_dir: Path, bucket_url: str, object_store_access: StoreAccess, server_tools: PgTools
) -> None:
    """Every kind of object that a dump carries comes back equal; a difference here is a fault of the comparison."""
    if "POSTGRES_REGRESS" not in os.environ:
        pytest.skip("POSTGRES_REGRESS names no folder of PostgreSQL's regression scripts")
    scripts = {path.stem: path for path in sorted(Path(os.environ["POSTGRES_REGRESS"]).glob("*.sql"))}
    with running_postgres(server_tools) as server:
        server.execute(f"create database {NAME} template template0 locale 'C'")
        for name in [*FIRST, *(other for other in scripts if other not in {*FIRST, *NOT_RUN})]:
            _run(server, scripts[name])
        conninfo = server.conninfo(NAME)
        with psycopg.connect(conninfo) as connection:
            [tables] = connection.execute("select count(*) from pg_tables where schemaname = 'public'").fetchone() or [
                0
            ]
        stack = make_stack(tmp_path, conninfo, bucket_url, object_store_access)

        report = dump_database(stack, NAME)
        proof = DUMPS.prove(stack.database_repository(), work_dir=work_dir)

    assert tables > 200
    assert report.record.row_count > 100_000
    assert proof is not None
    assert proof.is_proven, proof.record


def _run(server: PostgresServer, script: Path) -> None:
    """Run one script; many of its statements are meant to fail, and one that hangs is left behind."""
    tools = server.server.tools
    argv = [tools.path("psql"), "-X", "-q", "-f", script, make_conninfo(server.conninfo(NAME), password=PASSWORD)]
    settings = "-c intervalstyle=postgres_verbose -c statement_timeout=60s"
    environment = tools.environment() | {"PGOPTIONS": settings, "PGTZ": "America/Los_Angeles"}
    try:
        subprocess.run(argv, env=environment, capture_output=True, timeout=SCRIPT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return
