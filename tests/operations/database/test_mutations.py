"""Whatever is changed in a restored copy, the comparison of a proof finds it; and it finds nothing in a sound one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from synapse_ops.domain.backup.proof_record import Verdict
from synapse_ops.domain.database import fingerprint as fingerprints
from synapse_ops.domain.database.structure import Structure, compare
from synapse_ops.operations.backup_kinds import DUMPS
from synapse_ops.operations.database.dump import dump_database
from synapse_ops.operations.database.restore import apply_restore, plan_restore
from synapse_ops.operations.database.restore_target import DirectoryTarget
from synapse_ops.systems.host.processes import START_TIMEOUT_S, server_identity
from synapse_ops.systems.postgres.connection import connect
from synapse_ops.systems.postgres.deparse import Deparser
from synapse_ops.systems.postgres.fingerprint import read_fingerprint
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.server import PgServer, make_socket_dir
from synapse_ops.systems.postgres.structure import structure_seen_by
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.database.backups import KeptBackup, make_stack
from tests.operations.database.catalog_mutations import of_catalogs
from tests.operations.database.every_kind import ROLES, SOURCE
from tests.operations.database.mutations import Mutation, of_objects, of_rows
from tests.servers import running_postgres, servers_dir

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(1800)]
NAME = "every_kind"


@dataclass(frozen=True)
class Copy:
    """A restored copy, and what its backup says that it holds."""

    conninfo: str
    structure: Structure
    fingerprint: fingerprints.Fingerprint
    verdict: Verdict
    differences: tuple[str, ...]

    def structure_differences(self, session: psycopg.Connection[Any]) -> tuple[str, ...]:
        return compare(self.structure, structure_seen_by(session), is_same=Deparser(session).is_same)

    def content_differences(self, session: psycopg.Connection[Any]) -> tuple[str, ...]:
        return fingerprints.compare(self.fingerprint, read_fingerprint(self.conninfo, sessions=[session]))


@pytest.fixture(scope="module")
def copy(
    server_tools: PgTools, bucket: str, object_store_access: StoreAccess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Copy]:
    """Back up, prove and restore a database of every kind of object; run the copy."""
    folder = servers_dir("mutations")
    repository_url = f"{bucket}{folder.name}/database/"
    with running_postgres(server_tools) as server:
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            for statement in ROLES.split(";\n"):
                connection.execute(statement.encode())
        server.execute(f"CREATE DATABASE {NAME} TEMPLATE template0")
        server.execute(SOURCE, NAME)
        stack = make_stack(tmp_path_factory.mktemp("stack"), server.conninfo(NAME), repository_url, object_store_access)
        place = dump_database(stack, NAME).place
    repository = stack.database_repository()
    kept = KeptBackup.of(repository, place)
    proof = DUMPS.prove(repository, place=place, work_dir=folder)
    assert proof is not None
    plan = plan_restore(repository, place, DirectoryTarget(folder / "data"))
    apply_restore(repository, plan, work_dir=folder)
    data = folder / "data"
    running = PgServer(
        tools=server_tools,
        identity=server_identity(),
        data_dir=data,
        socket_dir=make_socket_dir(data, server_identity()),
        port=5432,
        log_path=folder / "postgres.log",
        settings={"fsync": False, "wal_level": "logical", "autovacuum": False},
    )
    try:
        running.start(START_TIMEOUT_S)
        yield Copy(
            running.conninfo(NAME, "postgres"),
            Structure.from_json(kept.objects["structure.json"]),
            fingerprints.Fingerprint.from_json(kept.objects["fingerprint.json"]),
            proof.record.verdict,
            proof.record.differences,
        )
    finally:
        running.stop("immediate")
        for path in (running.socket_dir, folder):
            shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def session(copy: Copy) -> Iterator[psycopg.Connection[Any]]:
    with connect(copy.conninfo, autocommit=True) as connection:
        yield connection


def test_the_unchanged_copy_of_every_kind_of_object_is_proven(copy: Copy, session: psycopg.Connection[Any]) -> None:
    """By its proof, and by the comparison that the changes below are held against."""
    assert copy.differences == ()
    assert copy.verdict is Verdict.PROVEN
    with session.transaction(force_rollback=True):
        assert copy.structure_differences(session) == ()
        assert copy.content_differences(session) == ()


@pytest.mark.parametrize(
    ("family", "differences", "least"),
    [
        (of_objects, Copy.structure_differences, 300),
        (of_catalogs, Copy.structure_differences, 450),
        (of_rows, Copy.content_differences, 200),
    ],
)
def test_no_change_is_missed(
    copy: Copy,
    session: psycopg.Connection[Any],
    family: Callable[[psycopg.Connection[Any]], Iterator[Mutation]],
    differences: Callable[[Copy, psycopg.Connection[Any]], tuple[str, ...]],
    least: int,
) -> None:
    """Each change is compared in its own transaction. What PostgreSQL refuses is no change, and does not count."""
    missed, made = [], 0
    for mutation in list(family(session)):
        try:
            with session.transaction(force_rollback=True):
                session.execute(mutation.statement.encode())
                found = differences(copy, session)
        except psycopg.Error:
            continue
        finally:
            if mutation.undo:
                session.execute(mutation.undo.encode())
        made += 1
        if not found:
            missed.append(mutation)

    assert [mutation.name for mutation in missed] == []
    assert made >= least
