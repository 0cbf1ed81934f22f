"""Base backups that hold changes alone: a chain is restored whole, proven, kept whole, and never too long."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest

from synapse_ops.domain.backup.base_record import BaseRecord
from synapse_ops.domain.backup.catalog import CatalogEntry, doubt_broken_chains
from synapse_ops.domain.backup.proof_record import Verdict
from synapse_ops.domain.backup.retention import Clocks, RetentionPolicy, Rule, plan_retention
from synapse_ops.domain.database.base_chain import MOST_MEMBERS, why_full
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal_retention import BaseSpan, kept_wal
from synapse_ops.errors import KeyMissing, Refused, Unproven
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup.restoring import RestoreRequest
from synapse_ops.operations.backup_kinds import BASES
from synapse_ops.operations.database import base_parent
from synapse_ops.operations.database.base_backup import BaseReport, take_base_backup
from synapse_ops.operations.database.restore_cluster import ClusterRestorePlan
from synapse_ops.operations.stack import Stack
from synapse_ops.systems.host.processes import make_private_dir, server_identity
from synapse_ops.systems.postgres.connection import connect
from synapse_ops.systems.postgres.identity import ensure_identity
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.s3.store import StoreAccess
from tests.domain.database.test_wal_retention import entry as base_entry
from tests.operations.database.backups import make_stack
from tests.operations.database.clusters import started
from tests.operations.database.wal_uploads import WalUploads, uploading
from tests.servers import PostgresServer, running_postgres, servers_dir

FULL_EVERY = timedelta(days=7)
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


@dataclass
class Chained:
    """A server, and a full base backup with two incremental ones behind it; 1,000 rows came before each."""

    server: PostgresServer
    stack: Stack
    upload: WalUploads
    chain: list[BaseReport]

    def take(self) -> BaseReport:
        with uploading(self.upload):
            return take_base_backup(self.stack)

    def add(self) -> None:
        """Add 1,000 rows, in both tablespaces."""
        for table in ("ledger", "beside"):
            self.server.execute(f"insert into {table} select g, md5(g::text) from generate_series(1, 1000) as g")


@pytest.fixture(scope="module")
def chained(
    server_tools: PgTools, tmp_path_factory: pytest.TempPathFactory, bucket: str, object_store_access: StoreAccess
) -> Iterator[Chained]:
    folder = tmp_path_factory.mktemp("chain")
    tablespace = make_private_dir(servers_dir("tablespace") / "space", server_identity())
    with running_postgres(server_tools) as server:
        server.execute("alter system set summarize_wal = on")
        server.execute("select pg_reload_conf()")
        server.execute("create table ledger (n int, filling text)")
        server.execute(f"create tablespace elsewhere location '{tablespace}'")
        server.execute("create table beside (n int, filling text) tablespace elsewhere")
        url = f"{bucket}{secrets.token_hex(8)}/database/"
        stack = make_stack(
            folder, server.conninfo(), url, object_store_access, wal_archiving="continuous", full_every="7d"
        )
        with connect(server.conninfo()) as connection:
            identity = ensure_identity(connection)
        data_dir = server.server.data_dir
        upload = WalUploads(stack.database_repository(), identity, server.conninfo(), data_dir, folder / "wal")
        upload()
        found = Chained(server, stack, upload, [])
        for _ in range(3):
            found.add()
            found.chain.append(found.take())
        yield found
    shutil.rmtree(tablespace.parent)


@pytest.fixture
def place() -> Iterator[Path]:
    folder = servers_dir("incremental")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_an_incremental_base_backup_is_small_and_names_what_it_rests_on(chained: Chained) -> None:
    full, *others = (report.record for report in chained.chain)

    assert full.incremental is None
    assert [one.rests_on for one in others] == [
        (full.backup_id,),
        (full.backup_id, others[0].backup_id),
    ]
    assert all(one.dumped_bytes < full.dumped_bytes / 3 for one in others)
    entries = read_catalog(chained.stack.database_repository()).only("base").backups
    assert {entry.place.backup_id: entry.rests_on for entry in entries}[others[1].backup_id] == others[1].rests_on


def test_a_chain_is_restored_and_proven_as_one(chained: Chained, place: Path) -> None:
    """Both tablespaces, to the end of WAL; the plan says what it is made of, and asks for the room of all members."""
    chained.add()
    chained.upload()
    repository, last = chained.stack.database_repository(), chained.chain[-1]
    request = RestoreRequest(repository, last.place, str(place / "restored"), None, place / "work", until="latest")

    proof = BASES.prove(repository, place=last.place, work_dir=place / "work")
    plan = BASES.plan_restore(request)
    BASES.apply_restore(request, plan)

    assert proof is not None
    assert proof.record.verdict is Verdict.PROVEN, (proof.record.reason, proof.record.differences)
    assert plan.facts()["made of"].split(", ") == [report.record.backup_id for report in chained.chain]
    with started(place / "restored", chained.server.server.tools) as conninfo, psycopg.connect(conninfo) as connection:
        for table in ("ledger", "beside"):
            assert connection.execute(f"select count(*) from {table}").fetchone() == (4000,)  # type: ignore[call-overload]
    assert not list(place.glob("restored/../throwaway-*"))


def test_a_chain_without_room_for_all_its_members_is_not_begun(
    chained: Chained, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = RestoreRequest(
        chained.stack.database_repository(), chained.chain[-1].place, str(place / "restored"), None, place / "work"
    )
    plan = cast("ClusterRestorePlan", BASES.plan_restore(request))
    huge = plan.chain[0].source.model_copy(update={"cluster_size_bytes": 1 << 60})
    wide = replace(plan, chain=(plan.chain[0].model_copy(update={"source": huge}), *plan.chain[1:]))

    with pytest.raises(Unproven, match="not enough space"):
        BASES.apply_restore(request, wide)


def test_what_rests_on_a_lost_backup_is_proven_no_more(chained: Chained) -> None:
    """Its own objects are whole, and nothing can be made of them."""
    store, middle = chained.stack.database_repository().store, chained.chain[1].place
    key = middle.key("backup.json")
    data = store.read_bytes(key)
    store.delete([key])
    try:
        entries = read_catalog(chained.stack.database_repository()).only("base").backups
    finally:
        store.put_bytes(key, data)

    [last] = [entry for entry in entries if entry.place == chained.chain[-1].place]
    assert last.proven_at is None
    assert f"rests on backup {middle.backup_id}" in last.doubt


@pytest.mark.parametrize("doubt", ["damaged: base.tar is missing", "proof is void: base.tar has changed since"])
def test_what_rests_on_a_changed_backup_is_proven_no_more(doubt: str) -> None:
    full = base_entry(NOW - timedelta(days=2), 1, proven=True)
    made = base_entry(NOW - timedelta(days=1), 2, proven=True)
    last = replace(made, rests_on=(full.place.backup_id,))

    sound = list(doubt_broken_chains([full, last]))
    [_, broken] = doubt_broken_chains([replace(full, proven_at=None, doubt=doubt), last])

    assert sound == [full, last]
    assert broken.proven_at is None


def test_without_the_key_of_the_parent_a_full_one_is_taken_and_says_why(
    chained: Chained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changed is told by the parent's manifest, which only its key opens; backups need no key otherwise."""

    def locked(*_: object) -> None:
        raise KeyMissing("no key opens it", recipients=["age1"])

    monkeypatch.setattr(base_parent.BackupReader, "read_document", locked)

    report = chained.take()

    assert report.record.incremental is None
    assert any("no key opens it" in words for words in report.warnings)


def test_a_server_that_keeps_no_summaries_gives_a_full_one_and_says_why(chained: Chained) -> None:
    chained.server.execute("alter system set summarize_wal = off")
    chained.server.execute("select pg_reload_conf()")

    report = chained.take()

    assert report.record.incremental is None
    assert any(words.startswith("a full one, for the server refused") for words in report.warnings)


def test_an_older_server_is_refused_by_its_version(chained: Chained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_parent, "OLDEST_INCREMENTAL_MAJOR", 99)

    with pytest.raises(Refused, match="need PostgreSQL 99, and this server is 17"):
        take_base_backup(chained.stack)


def member(days_ago: float, size: int = 100, timeline: int = 1) -> BaseRecord:
    record: Any = BaseRecord.model_construct(
        started_time=NOW - timedelta(days=days_ago), dumped_bytes=size, timeline=timeline
    )
    return cast("BaseRecord", record)


@pytest.mark.parametrize(
    ("chain", "why"),
    [
        ([member(1)], ""),
        ([], "none to build on"),
        ([member(7)], "old enough"),
        ([member(1, timeline=2)], "of timeline 2"),
        ([member(1), *[member(0.1, size=0)] * (MOST_MEMBERS - 1)], "at most"),
        ([member(2), member(1, size=61)], "larger than 1.6 times"),
        ([member(2), member(1, size=60)], ""),
    ],
)
def test_a_chain_is_bounded_in_time_number_and_size(chain: list[BaseRecord], why: str) -> None:
    found = why_full(chain, FULL_EVERY, 1, NOW)

    assert why in found
    assert bool(found) == bool(why)


def test_what_a_kept_base_backup_rests_on_stays_and_its_wal_may_go() -> None:
    """A window of 10 d: of the chain that began 14 d ago the last member lies in it, and a later full one is proven."""
    chain: list[CatalogEntry] = []
    for number, days in enumerate((14, 13, 9)):
        made = base_entry(NOW - timedelta(days=days), number, proven=True)
        chain.append(replace(made, rests_on=tuple(one.place.backup_id for one in chain)))
    ids = [one.place.backup_id for one in chain]
    later = [base_entry(NOW - timedelta(days=days), days, proven=True) for days in (11, 1)]
    policy = RetentionPolicy(timedelta(days=10))

    decisions = list(plan_retention([*chain, *later], policy, Clocks(NOW, NOW), lambda *_: True))

    by_id = {row.entry.place.backup_id: row for row in decisions}
    assert [by_id[one].expires for one in ids] == [False, False, False]
    assert by_id[ids[0]].rule is Rule.NEEDED
    assert ids[2] in by_id[ids[0]].reason
    spans = kept_wal([by_id[ids[0]]], (), lambda _: BaseSpan(1, Lsn(1), Lsn(2)), lambda _: False, Clocks(NOW, NOW))
    assert spans == ()
