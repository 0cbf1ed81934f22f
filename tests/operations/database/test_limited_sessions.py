"""Limits that an operator set for the application's sessions do not reach ours."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from synapse_ops.operations.backup_kinds import DUMPS
from synapse_ops.operations.database.dump import dump_database
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.database.backups import make_stack
from tests.servers import PASSWORD, PostgresServer


def test_limits_of_the_database_and_its_role_end_no_first_backup_and_no_proof(
    tmp_path: Path,
    work_dir: Path,
    postgres_server: PostgresServer,
    fresh_database: Callable[..., str],
    bucket_url: str,
    object_store_access: StoreAccess,
) -> None:
    """Settings meant for the application's sessions hold from a session's first statement, the lifting one included."""
    conninfo = fresh_database()
    parts = conninfo_to_dict(conninfo)
    role, name = f"limited_{secrets.token_hex(4)}", str(parts["dbname"])
    postgres_server.execute(
        "CREATE TABLE words AS SELECT n, repeat('word ', 50) FROM generate_series(1, 20000) n", name
    )
    postgres_server.execute(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
    for setting, value in {
        "default_transaction_read_only": "on",
        "idle_in_transaction_session_timeout": "1ms",
        "idle_session_timeout": "1ms",
        "lock_timeout": "1ms",
        "statement_timeout": "1ms",
        "transaction_timeout": "1ms",
    }.items():
        for holder in (f"DATABASE {name}", f"ROLE {role}"):
            postgres_server.execute(f"ALTER {holder} SET {setting} = '{value}'")
    limited = make_conninfo("", **{**parts, "user": role, "password": PASSWORD})
    stack = make_stack(tmp_path, limited, bucket_url, object_store_access)

    report = dump_database(stack, name)
    proof = DUMPS.prove(stack.database_repository(), work_dir=work_dir)

    assert report.record.row_count == 20000
    assert proof is not None
    assert proof.is_proven, proof.record
    postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    postgres_server.execute(f"DROP ROLE {role}")
