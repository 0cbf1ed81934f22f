"""A restore makes something new, whole and compared, or nothing; what exists is never touched."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from synapse_ops.errors import ConfigError, IntegrityError, KeyMissing, SynapseOpsError, TargetNotEmpty
from synapse_ops.operations.backup.throwaway_directory import throwaway_base
from synapse_ops.operations.database.restore import apply_restore, plan_restore
from synapse_ops.operations.database.restore_target import DirectoryTarget, ServerTarget
from synapse_ops.operations.database.restore_to_server import DIFFERS, INCOMPLETE
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.host.processes import server_identity
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.server import PgServer, make_socket_dir
from tests.operations.database.backups import KeptBackup, flip
from tests.servers import PostgresServer, servers_dir


@pytest.fixture
def new_name(postgres_server: PostgresServer) -> Iterator[str]:
    """A name that no database has; what a test restores there is dropped."""
    name = f"restored {secrets.token_hex(4)}"
    yield name
    postgres_server.execute(f'drop database if exists "{name}" with (force)')


def databases(server: PostgresServer) -> set[str]:
    with psycopg.connect(server.conninfo()) as connection:
        return {row[0] for row in connection.execute("select datname from pg_database")}


def test_a_backup_becomes_a_new_database_beside_its_source(
    backup: KeptBackup, repository: Repository, work_dir: Path, postgres_server: PostgresServer, new_name: str
) -> None:
    """The live source stays as it is; the copy has every row and is analysed."""
    place = backup.put(repository)
    target = ServerTarget(postgres_server.conninfo(), new_name)

    plan = plan_restore(repository, place, target)
    report = apply_restore(repository, plan, work_dir=work_dir)

    assert plan.where.endswith(f"/{new_name}")
    assert plan.roles_missing == ()
    assert report.item_count == 3200
    with psycopg.connect(postgres_server.conninfo(new_name)) as connection:
        assert connection.execute("select count(*) from shop.orders").fetchone() == (3000,)
        assert connection.execute("select reltuples from pg_class where relname = 'orders'").fetchone() == (3000,)
    assert not [name for name in databases(postgres_server) if name.startswith(INCOMPLETE)]


def test_settings_and_comment_of_the_database_follow_it_under_its_new_name(
    backup: KeptBackup,
    take_backup: Callable[..., KeptBackup],
    repository: Repository,
    work_dir: Path,
    postgres_server: PostgresServer,
    new_name: str,
) -> None:
    """ALTER DATABASE SET, its privileges and its comment come with a restore, and do not get in its way."""
    place = take_backup(
        "do $$ begin execute format('alter database %1$I set default_transaction_read_only = on', current_database());"
        " execute format('alter database %1$I set statement_timeout = 5000', current_database());"
        " execute format('comment on database %1$I is ''the shop''', current_database());"
        " execute format('revoke connect on database %1$I from public', current_database()); end $$"
    ).put(repository)
    plan = plan_restore(repository, place, ServerTarget(postgres_server.conninfo(), new_name))

    apply_restore(repository, plan, work_dir=work_dir)

    with psycopg.connect(postgres_server.conninfo(), autocommit=True) as connection:
        row = connection.execute(
            "select shobj_description(d.oid, 'pg_database'), datacl::text like '%%=T/%%', setconfig"
            " from pg_database d join pg_db_role_setting s on s.setdatabase = d.oid where datname = %s",
            [new_name],
        ).fetchone()
    assert row == ("the shop", True, ["default_transaction_read_only=on", "statement_timeout=5000"])


def test_a_database_that_exists_is_refused_even_when_it_came_into_being_after_the_plan(
    backup: KeptBackup, repository: Repository, work_dir: Path, postgres_server: PostgresServer, new_name: str
) -> None:
    """Neither the live source nor anything else is ever restored over."""
    place = backup.put(repository)
    with pytest.raises(TargetNotEmpty, match="already exists"):
        plan_restore(repository, place, ServerTarget(postgres_server.conninfo(), place.subject))
    plan = plan_restore(repository, place, ServerTarget(postgres_server.conninfo(), new_name))
    postgres_server.execute(f'create database "{new_name}"')

    with pytest.raises(TargetNotEmpty, match="already exists"):
        apply_restore(repository, plan, work_dir=work_dir)

    assert not [name for name in databases(postgres_server) if name.startswith(INCOMPLETE)]


def test_a_copy_that_differs_is_kept_and_later_plans_call_it_what_it_is(
    take_backup: Callable[..., KeptBackup],
    repository: Repository,
    work_dir: Path,
    postgres_server: PostgresServer,
    new_name: str,
) -> None:
    """It is no left-over of an interrupted restore; and one that another restore fills now is no left-over, either."""
    before = take_backup()
    after = take_backup("delete from shop.orders where id = 1", name=before.place.subject)
    place = before.with_objects(database_dump=after.objects["database.dump"]).put(repository)
    target, left = ServerTarget(postgres_server.conninfo(), new_name), f"{INCOMPLETE}left_{secrets.token_hex(3)}"

    with pytest.raises(IntegrityError, match="differs from its backup") as raised:
        apply_restore(repository, plan_restore(repository, place, target), work_dir=work_dir)

    [kept] = [name for name in databases(postgres_server) if name.startswith(DIFFERS)]
    postgres_server.execute(f'create database "{left}"')
    try:
        free = "\n".join(plan_restore(repository, place, target).notes)
        with psycopg.connect(postgres_server.conninfo(left)):
            used = "\n".join(plan_restore(repository, place, target).notes)
    finally:
        for name in (kept, left):
            postgres_server.execute(f'drop database "{name}" with (force)')
    assert raised.value.hint.endswith(f'remove it with: DROP DATABASE "{kept}"')
    assert f'database "{kept}" was kept for inspection: it differs from backup {place.backup_id};' in free
    assert f'database "{left}" was left by an interrupted restore' in free
    assert f'database "{left}" is in use: another restore fills it now' in used


def test_a_damaged_backup_leaves_no_database_behind(
    backup: KeptBackup, repository: Repository, work_dir: Path, postgres_server: PostgresServer, new_name: str
) -> None:
    """Every byte is verified before the first statement is executed."""
    data = backup.objects["database.dump"]
    place = backup.put(repository, database_dump=flip(data, len(data) // 2))
    plan = plan_restore(repository, place, ServerTarget(postgres_server.conninfo(), new_name))
    before = databases(postgres_server)

    with pytest.raises(IntegrityError, match=r"database\.dump"):
        apply_restore(repository, plan, work_dir=work_dir)

    assert databases(postgres_server) == before


def test_a_restore_that_fails_half_way_removes_only_what_it_made(
    take_backup: Callable[..., KeptBackup],
    repository: Repository,
    work_dir: Path,
    postgres_server: PostgresServer,
    new_name: str,
) -> None:
    """The incomplete database is ours, so it goes; its name never was the final one."""
    place = take_backup(
        "create function shop.fails(text) returns text immutable language plpgsql as"
        " 'begin if current_database() like ''synapse_incomplete%'' then raise ''no''; end if; return $1; end';"
        "create index fails_index on shop.customers (shop.fails(name));"
    ).put(repository)
    plan = plan_restore(repository, place, ServerTarget(postgres_server.conninfo(), new_name))
    before = databases(postgres_server)

    with pytest.raises(SynapseOpsError, match="pg_restore"):
        apply_restore(repository, plan, work_dir=work_dir)

    assert databases(postgres_server) == before


def test_roles_that_a_failed_restore_created_are_named(
    take_backup: Callable[..., KeptBackup],
    repository: Repository,
    work_dir: Path,
    postgres_server: PostgresServer,
    new_name: str,
) -> None:
    """They stay, superusers among them, so an operator who stops here knows of them; those that were there are not."""
    suffix = secrets.token_hex(4)
    plain, powerful, present = f"plain_{suffix}", f"powerful_{suffix}", f"present_{suffix}"
    postgres_server.execute(f"create role {plain}; create role {powerful} superuser; create role {present}")
    place = take_backup(
        "create function shop.fails(text) returns text immutable language plpgsql as"
        " 'begin if current_database() like ''synapse_incomplete%'' then raise ''no''; end if; return $1; end';"
        "create index fails_index on shop.customers (shop.fails(name));"
    ).put(repository)
    postgres_server.execute(f"drop role {plain}; drop role {powerful}")
    try:
        plan = plan_restore(repository, place, ServerTarget(postgres_server.conninfo(), new_name))

        with pytest.raises(SynapseOpsError, match="pg_restore") as failed:
            apply_restore(repository, plan, work_dir=work_dir)

        assert f'created stay on the server: "{plain}", "{powerful}" (superuser).' in failed.value.hint
        assert present not in failed.value.hint
    finally:
        for role in (plain, powerful, present):
            postgres_server.execute(f"drop role if exists {role}")


def test_a_plan_without_the_key_says_whose_key_is_missing(
    take_backup: Callable[..., KeptBackup],
    repository: Repository,
    postgres_server: PostgresServer,
    key_pair: tuple[str, str],
    new_name: str,
) -> None:
    """It is told before anything is begun."""
    place = take_backup(recipients=(key_pair[0],)).put(repository)

    with pytest.raises(KeyMissing) as missing:
        plan_restore(repository, place, ServerTarget(postgres_server.conninfo(), new_name))

    assert missing.value.recipients == (key_pair[0],)


def test_a_conninfo_is_not_shown_by_a_target() -> None:
    """A password in it would reach every traceback."""
    assert "hunter2" not in repr(ServerTarget("postgresql://u:hunter2@h/d", "new"))


@pytest.fixture
def directory() -> Iterator[Path]:
    """The name of a directory that does not exist yet, in a place that the server's identity can enter."""
    parent = servers_dir("directory")
    (parent / "beside").mkdir(mode=0o755)
    yield parent / "restored"
    left = [path.name for path in parent.iterdir()]
    shutil.rmtree(parent)
    assert sorted(left) in (["beside"], ["beside", "restored"])


def test_a_backup_becomes_a_data_directory_that_starts(
    take_backup: Callable[..., KeptBackup],
    repository: Repository,
    work_dir: Path,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    server_tools: PgTools,
) -> None:
    """The whole cluster is new: checksums on, a configuration of its own, every role and row of the backup."""
    kept = take_backup("create extension citext")
    plan = plan_restore(repository, kept.put(repository), DirectoryTarget(directory))

    flushed = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        flushed.append((Path(f"/proc/self/fd/{descriptor}").readlink(), directory.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    report = apply_restore(repository, plan, work_dir=work_dir)

    assert report.next_steps() == (
        f"pg_ctl -D {directory} start",
        f"psql -h /tmp -U postgres {kept.place.subject}  # as the owner of the directory",
    )
    assert (directory.parent.resolve(), True) in flushed, "a power failure may undo the rename"
    identity = server_identity()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert "restored" in (directory / "pg_hba.conf").read_text()
    server = PgServer(
        tools=server_tools,
        identity=identity,
        data_dir=directory,
        socket_dir=make_socket_dir(directory, identity),
        port=5432,
        log_path=directory.parent / "beside" / "log",
    )
    server.start(30)
    try:
        with psycopg.connect(server.conninfo(kept.place.subject)) as connection:
            assert connection.execute("select count(*) from shop.orders").fetchone() == (3000,)
            assert connection.execute("show data_checksums").fetchone() == ("on",)
    finally:
        server.stop("immediate")


def test_a_directory_that_holds_anything_is_refused(
    backup: KeptBackup, repository: Repository, directory: Path
) -> None:
    """Not even an unrelated file is restored around; a link to an empty directory is not followed."""
    place = backup.put(repository)
    directory.mkdir()
    (directory / "precious").write_text("kept")
    link = directory.parent / "beside" / "link"
    link.symlink_to(directory.parent / "beside")

    for target in (directory, link):
        with pytest.raises(TargetNotEmpty):
            plan_restore(repository, place, DirectoryTarget(target))

    assert (directory / "precious").read_text() == "kept"


def test_a_name_that_postgresql_would_cut_is_refused(
    backup: KeptBackup, repository: Repository, postgres_server: PostgresServer
) -> None:
    """A name of 64 bytes would silently become another one."""
    place = backup.put(repository)

    with pytest.raises(ConfigError, match="63"):
        plan_restore(repository, place, ServerTarget(postgres_server.conninfo(), "é" * 32))


def test_throwaways_of_a_reachable_place_lie_in_it(work_dir: Path) -> None:
    """Only a place that the server's identity cannot enter is replaced."""
    assert throwaway_base(work_dir, server_identity()) == work_dir.resolve()
