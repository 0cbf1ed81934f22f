"""Real backups for tests of recovery, dumped once per module and copied into repositories of their own."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pyrage
import pytest

from synapse_ops.operations.database.dump import dump_database
from synapse_ops.operations.repository import Repository, open_repository
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.database.backups import KeptBackup, fill, make_stack
from tests.servers import PostgresServer, servers_dir


@pytest.fixture(scope="module")
def key_pair() -> tuple[str, str]:
    """The recipient and the identity of one age key."""
    identity = pyrage.x25519.Identity.generate()
    return str(identity.to_public()), str(identity)


@pytest.fixture(scope="module")
def take_backup(
    postgres_server: PostgresServer,
    object_store_access: StoreAccess,
    bucket: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., KeptBackup]]:
    """Call it for a real backup of a new database: the usual content, then the SQL given.

    name: of a database that an earlier call made: it is changed by the SQL and backed up again.
    """
    made: list[str] = []

    def take(extra: str = "", *, recipients: tuple[str, ...] = (), name: str | None = None) -> KeptBackup:
        database = name or f"source_{secrets.token_hex(4)}"
        conninfo = postgres_server.conninfo(database)
        if database not in made:
            postgres_server.execute(f'create database "{database}" template template0')
            made.append(database)
            fill(conninfo)
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute(extra)
        url = f"{bucket}source-{secrets.token_hex(6)}/database/"
        stack = make_stack(tmp_path_factory.mktemp("stack"), conninfo, url, object_store_access, recipients=recipients)
        return KeptBackup.of(stack.database_repository(), dump_database(stack, database).place)

    yield take
    for database in made:
        postgres_server.execute(f'drop database if exists "{database}" with (force)')


@pytest.fixture(scope="module")
def backup(take_backup: Callable[..., KeptBackup]) -> KeptBackup:
    return take_backup()


@pytest.fixture
def repository(bucket_url: str, object_store_access: StoreAccess) -> Repository:
    """An empty repository."""
    return open_repository(bucket_url, object_store_access)


@pytest.fixture
def work_dir(programs_dir: Path) -> Iterator[Path]:
    """A place for throwaway servers; fails the test that leaves something in it.

    What stays there by design, the copies of programs that a checkout below a private home needs, is the worker's own.
    """
    folder = servers_dir("work")
    (folder / "programs").symlink_to(programs_dir)
    yield folder
    (folder / "programs").unlink()
    left = [path.name for path in folder.iterdir()]
    shutil.rmtree(folder, ignore_errors=True)
    assert not left, f"left behind: {left}"


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that the servers' user can enter."""
    folder = servers_dir("cluster")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
