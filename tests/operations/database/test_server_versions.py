"""Any moment of a cluster, on each version of PostgreSQL that this host has: stream, copy, prove, restore.

Changes alone are copied from 17 on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from synapse_ops.domain.backup.proof_record import Verdict
from synapse_ops.domain.database.base_chain import OLDEST_INCREMENTAL_MAJOR
from synapse_ops.errors import ConfigError, Refused
from synapse_ops.operations.backup.restoring import RestoreRequest
from synapse_ops.operations.backup_kinds import BASES
from synapse_ops.operations.database.base_backup import take_base_backup
from synapse_ops.operations.stack import Stack
from synapse_ops.spec.blocks.backup import BaseBackups
from synapse_ops.systems.host.processes import server_identity
from synapse_ops.systems.postgres.programs import PgTools, find_pg_tools, tools_for
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.database.clusters import started
from tests.servers import running_postgres, servers_dir
from tests.services.wal_receiver.receiving import receiving, wait_durable

MAJORS = (15, 16, 17, 18)


@pytest.fixture(params=MAJORS)
def tools(request: pytest.FixtureRequest, programs_dir: Path) -> PgTools:
    """The programs of one version, where the servers' user can run them."""
    try:
        found = find_pg_tools(request.param)
    except ConfigError as error:
        pytest.skip(error.message)
    if not found.has_server():
        pytest.skip(f"PostgreSQL {found.version} in {found.bin_dir} has no server")
    return tools_for(server_identity(), found, programs_dir)


@pytest.fixture
def place() -> Iterator[Path]:
    folder = servers_dir("version")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def with_chains(stack: Stack) -> Stack:
    """Return the stack with incremental base backups."""
    bases = BaseBackups(full_every=timedelta(days=7))
    database = stack.spec.backup.database.model_copy(update={"base": bases})
    backup = stack.spec.backup.model_copy(update={"database": database})
    return replace(stack, loaded=replace(stack.loaded, spec=stack.spec.model_copy(update={"backup": backup})))


@pytest.mark.scenario
def test_a_cluster_is_streamed_copied_proven_and_restored(
    tools: PgTools, place: Path, tmp_path: Path, object_store_access: StoreAccess, bucket_url: str
) -> None:
    """To the last commit that was stored. Without amcheck the proof cannot be completed, and names what is missing."""
    with running_postgres(tools) as server:
        server.execute("create table ledger as select g as n, md5(g::text) as filling from generate_series(1, 5000) g")
        data_dir = server.server.data_dir
        with receiving(tmp_path, server.conninfo(), data_dir, object_store_access, bucket_url) as wal:
            with wal.in_process() as receiver:
                base = take_base_backup(wal.stack)
                if tools.major < OLDEST_INCREMENTAL_MAJOR:
                    with pytest.raises(Refused, match=f"and this server is {tools.major}"):
                        take_base_backup(with_chains(wal.stack))
                else:
                    server.execute("alter system set summarize_wal = on")
                    server.execute("select pg_reload_conf()")
                    first = take_base_backup(with_chains(wal.stack))
                    server.execute("update ledger set filling = 'changed' where n < 100")
                    base = take_base_backup(with_chains(wal.stack))
                    assert base.record.rests_on == (*first.record.rests_on, first.record.backup_id), base.warnings
                server.execute("insert into ledger select g, 'later' from generate_series(5001, 6000) g")
                wait_durable(wal, receiver)
            repository = wal.repository
            proof = BASES.prove(repository, place=base.place, work_dir=place / "work")
            target = place / "restored"
            request = RestoreRequest(repository, base.place, str(target), None, place / "work", until="latest")
            BASES.apply_restore(request, BASES.plan_restore(request))
        has_amcheck = wal.execute("select count(*) from pg_available_extensions where name = 'amcheck'") == 1

    with started(target, tools) as conninfo, psycopg.connect(conninfo) as connection:
        assert connection.execute("select count(*), max(n) from ledger").fetchone() == (6000, 6000)
    assert base.record.source.server_version.startswith(str(tools.major))
    assert proof is not None
    if has_amcheck:
        assert proof.record.verdict is Verdict.PROVEN, (proof.record.reason, proof.record.differences)
    else:
        assert proof.record.verdict is Verdict.NOT_ATTEMPTED
        assert "amcheck" in proof.record.reason
