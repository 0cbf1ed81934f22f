"""What pg_dump and pg_dumpall leave out is carried by ourselves, or named on the backup before it is missed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from synapse_ops.domain.backup.dump_record import NAMES_LIMIT, DumpRecord, limited
from synapse_ops.domain.backup.proof_record import ProofRecord, Verdict
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup_kinds import DUMPS
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.postgres.supplement import settings_of_all_roles
from tests.operations.database.backups import KeptBackup
from tests.servers import PostgresServer

MONITOR = "left_out_monitor"
CARRIED = f"""
alter default privileges grant execute on functions to {MONITOR};
alter default privileges revoke execute on functions from public;
create extension pgstattuple;
alter default privileges grant execute on functions to public;
create extension pg_stat_statements;
alter function public.pg_stat_statements_reset owner to {MONITOR};
grant select (query) on public.pg_stat_statements to {MONITOR};
grant select (rolpassword) on pg_catalog.pg_authid to {MONITOR};
"""
NAMED = """
create function pg_catalog.nvl2(a text) returns text language sql as 'select $1';
create table information_schema.notes (a text);
revoke select on information_schema.tables from public;
create extension hstore;
create table public.adopted (v text);
insert into public.adopted values ('x');
alter extension hstore add table public.adopted;
create or replace function public.hstore_hash(public.hstore) returns int language sql immutable as 'select 1';
alter extension hstore drop function public.tconvert(text, text);
drop function public.tconvert(text, text);
"""


@pytest.fixture(scope="module")
def taken(postgres_server: PostgresServer, take_backup: Callable[..., KeptBackup]) -> Iterator[KeptBackup]:
    """A backup of a database with all of it."""
    postgres_server.execute(f"create role {MONITOR}")
    postgres_server.execute("alter role all set work_mem = '12MB'")
    postgres_server.execute("""alter role all set search_path = "$user", 'odd "x', public""")
    yield take_backup(NAMED + CARRIED)
    postgres_server.execute("alter role all reset all")


@pytest.fixture(scope="module")
def record(taken: KeptBackup) -> DumpRecord:
    return DumpRecord.from_json(taken.objects["backup.json"], key="backup.json")


def test_owners_and_privileges_of_an_extensions_members_and_settings_of_all_roles_are_carried(
    taken: KeptBackup, repository: Repository, work_dir: Path
) -> None:
    """Each is compared in the copy, so that the proof holds the supplement to it."""
    taken.put(repository)

    report = DUMPS.prove(repository, work_dir=work_dir)

    assert report is not None
    assert report.record.differences == ()
    assert report.record.verdict is Verdict.PROVEN
    assert read_catalog(repository).backups[0].proven_at == report.record.finished_at


def test_the_comparison_sees_what_the_supplement_carries(taken: KeptBackup) -> None:
    """What the test above rests on."""
    entries = json.loads(taken.objects["structure.json"])["entries"]

    assert f"{MONITOR}=X/" in str(entries["extension's privileges: function public.pgstattuple(pg_catalog.text)"])
    assert entries["setting of all roles: work_mem"] == {"value": "12MB"}
    assert "extension's privileges: column public.pg_stat_statements.query" in entries
    assert "changed column privileges: column pg_catalog.pg_authid.rolpassword" in entries


@pytest.mark.parametrize(
    "name",
    [
        "function pg_catalog.nvl2(pg_catalog.text)",
        "table information_schema.notes",
        "changed privileges of information_schema.tables",
        "rows of public.adopted: those that its extension hstore leaves out of dumps",
        "passwords of roles: backup.database.role_passwords",
    ],
)
def test_what_no_dump_carries_is_named_on_the_backup(record: DumpRecord, name: str) -> None:
    """Before the day it is missed, and whatever the verdict of a proof."""
    assert name in record.not_in_backup
    assert name in str(record.facts()["not_in_backup"])


def test_what_was_changed_in_an_extension_is_named_by_the_proof(
    taken: KeptBackup, repository: Repository, work_dir: Path
) -> None:
    """Only a copy tells what the extension's own script makes: its proof names the rest."""
    place = taken.put(repository)
    report = DUMPS.prove(repository, place=place, work_dir=work_dir)

    assert report is not None
    assert report.record.not_in_backup == (
        "function: public.hstore_hash(public.hstore), as it was changed in an extension",
        "function: public.tconvert(text,text), which was taken out of an extension",
        "table: public.adopted, which was added to an extension",
    )
    stored = ProofRecord.from_json(repository.store.read_bytes(report.url.removeprefix(repository.url)), key="proof")
    assert stored.not_in_backup == report.record.not_in_backup


def test_an_ordinary_database_lacks_nothing_but_passwords(backup: KeptBackup) -> None:
    """A list that is never empty is not read."""
    record = DumpRecord.from_json(backup.objects["backup.json"], key="backup.json")

    assert record.not_in_backup == ("passwords of roles: backup.database.role_passwords",)


def test_settings_of_all_roles_are_written_as_pg_dumpall_writes_those_of_one() -> None:
    """A list of names is quoted name by name: as one literal it would be one name."""
    entries = {
        "setting of all roles: search_path": {"value": '"$user", "odd ""x", public'},
        "setting of all roles: work_mem": {"value": "12MB"},
        "role: x": {},
    }

    text = settings_of_all_roles(entries).decode()

    assert """ALTER ROLE ALL SET "search_path" TO '$user', 'odd "x', 'public';""" in text
    assert """ALTER ROLE ALL SET "work_mem" TO '12MB';""" in text
    assert settings_of_all_roles({}) == b""


def test_very_many_names_end_with_their_number() -> None:
    """A thousand collations are one line, not a thousand."""
    names = [str(number) for number in range(NAMES_LIMIT + 7)]

    assert limited(names)[-1] == "and 7 more"
    assert limited(names[:NAMES_LIMIT]) == tuple(names[:NAMES_LIMIT])
