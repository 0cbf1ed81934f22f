"""What an operator set for the application's sessions, and what runs at their logon, does not reach ours."""

from __future__ import annotations

import secrets
from pathlib import Path

from psycopg.conninfo import make_conninfo

from synapse_ops.operations.backup_kinds import DUMPS
from synapse_ops.operations.database.dump import dump_database
from synapse_ops.operations.database.restore import apply_restore, plan_restore
from synapse_ops.operations.database.restore_target import ServerTarget
from synapse_ops.systems.postgres.connection import connect
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.database.backups import make_stack
from tests.servers import PASSWORD, PostgresServer

LIMITS = {
    "default_transaction_read_only": "on",
    "idle_in_transaction_session_timeout": "1ms",
    "idle_session_timeout": "1ms",
    "lock_timeout": "1ms",
    "statement_timeout": "1ms",
    "transaction_timeout": "1ms",
    "client_encoding": "SQL_ASCII",
    "datestyle": "SQL, DMY",
    "intervalstyle": "sql_standard",
    "search_path": "nowhere",
    "row_security": "on",
    "temp_file_limit": "64kB",
}
# Bytes that are not UTF-8, in a row and in a comment: a database of encoding SQL_ASCII holds any.
CONTENT = r"""
create table public.words as select n, repeat('word ', 50) as word from generate_series(1, 20000) n;
insert into public.words values (0, E'caf\xe9');
comment on table public.words is E'caf\xe9';
create table public.logins (n int);
create function public.note() returns event_trigger language plpgsql
    as 'begin insert into public.logins values (1); end';
create event trigger on_login on login execute function public.note();
alter event trigger on_login enable always;
create event trigger on_end on ddl_command_end execute function public.note();
alter event trigger on_end enable always;
"""


def test_neither_settings_nor_logon_code_of_the_source_reach_a_backup_a_proof_or_a_restore(
    tmp_path: Path,
    work_dir: Path,
    postgres_server: PostgresServer,
    bucket_url: str,
    object_store_access: StoreAccess,
) -> None:
    """Settings hold from a session's first statement; a login event trigger would change what is compared."""
    name, role, copy = (f"{word}_{secrets.token_hex(4)}" for word in ("foreign", "limited", "restored"))
    postgres_server.execute(f"create role {role} superuser login password '{PASSWORD}'")
    postgres_server.execute(f"create database {name} template template0 encoding 'SQL_ASCII' locale 'C'")
    settings = [f"alter database {name} set role = 'pg_monitor'"]
    settings += [
        f"alter {holder} set {setting} = '{value}'"
        for setting, value in LIMITS.items()
        for holder in (f"database {name}", f"role {role}")
    ]
    conninfo = postgres_server.conninfo(name)
    with connect(conninfo) as connection:
        connection.execute("; ".join([CONTENT.strip().rstrip(";"), *settings]))  # type: ignore[arg-type]
    stack = make_stack(tmp_path, make_conninfo(conninfo, user=role), bucket_url, object_store_access)
    repository = stack.database_repository()

    report = dump_database(stack, name)
    proof = DUMPS.prove(repository, work_dir=work_dir)
    plan = plan_restore(repository, report.place, ServerTarget(postgres_server.conninfo(), copy))
    apply_restore(repository, plan, work_dir=work_dir)

    assert report.record.row_count == 20001
    assert proof is not None
    assert proof.is_proven, proof.record
    for database in (name, copy):
        with connect(postgres_server.conninfo(database)) as connection:
            assert connection.execute("select count(*) from public.logins").fetchone() == (0,)
        postgres_server.execute(f"drop database {database} with (force)")
    postgres_server.execute(f"drop role {role}")
