"""A managed server: its administrator is no superuser, and dumps of it are as whole and as proven as any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from synapse_ops.domain.backup.proof_record import Verdict
from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.database.dump import PASSWORDS, dump_database
from synapse_ops.systems.postgres.identity import read_identity
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.database.backups import fill, make_stack
from tests.operations.database.test_proof import prove
from tests.servers import PASSWORD, PostgresServer, running_postgres

RIGHTS = "pg_monitor, pg_read_all_data"  # what RDS, Cloud SQL and Azure give their administrator, or let it take


@pytest.fixture(scope="module")
def managed(server_tools: PgTools) -> Iterator[PostgresServer]:
    """A server of its own, whose database `postgres` belongs to the administrator."""
    with running_postgres(server_tools) as server:
        server.execute(f"create role boss login createdb createrole password '{PASSWORD}' in role {RIGHTS}")
        server.execute("comment on database postgres is 'of the provider'")
        server.execute("alter database postgres owner to boss")
        server.execute("create database app owner boss")
        fill(server.conninfo("app", user="boss"))
        yield server


def test_a_dump_by_an_administrator_without_superuser_is_proven(
    managed: PostgresServer,
    bucket_url: str,
    object_store_access: StoreAccess,
    tmp_path: Path,
    work_dir: Path,
    key_pair: tuple[str, str],
) -> None:
    """Rows, structure and large objects are compared. What only a superuser reads is left out and told; the server
    keeps its generation behind the comment of `postgres`, where no setting may be made.
    """
    recipient, identity = key_pair
    recipients = (recipient,)
    reports = []
    for database in ("app", "postgres"):  # that one's comment is ours in part
        conninfo, folder = managed.conninfo(database, user="boss"), tmp_path / database
        folder.mkdir()
        stack = make_stack(folder, conninfo, bucket_url, object_store_access, recipients=recipients)
        reports.append(dump_database(stack, database))
    first, second = reports

    proofs = [prove(stack.database_repository(), work_dir, identity) for _ in reports]

    assert [proof.record.verdict for proof in proofs if proof.record] == [Verdict.PROVEN] * 2, proofs
    assert first.record.source.generation == second.record.source.generation
    assert not first.record.role_passwords
    assert PASSWORDS in first.record.not_in_backup
    assert any("no superuser" in warning for warning in first.warnings)
    with psycopg.connect(conninfo) as connection:
        [(comment,)] = connection.execute(
            "select shobj_description(oid, 'pg_database') from pg_database where datname = 'postgres'"
        ).fetchall()
        kept = read_identity(connection)
    assert kept is not None
    assert comment == f"of the provider synapse_ops.generation={kept.generation}"


@pytest.mark.parametrize(
    "hidden",
    [
        "create table {0} as select 1 as n; alter table {0} enable row level security",
        "create table {0} as select lo_from_bytea(0, 'abc') as n",
    ],
)
def test_what_the_administrator_may_not_read_ends_the_dump(
    managed: PostgresServer, bucket_url: str, object_store_access: StoreAccess, tmp_path: Path, hidden: str
) -> None:
    """Another's row policy or large object: never a dump with less in it."""
    managed.execute("create database other owner boss")
    managed.execute(hidden.format("hidden"), "other")
    stack = make_stack(tmp_path, managed.conninfo("other", user="boss"), bucket_url, object_store_access)
    try:
        with pytest.raises(SynapseOpsError) as refused:
            dump_database(stack, "other")
    finally:
        managed.execute("drop database other with (force)")

    assert "row-level security" in refused.value.render() or "large object" in refused.value.render()
