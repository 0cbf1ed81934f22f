"""Whatever is done to one object of a base backup or its WAL: it is named, and less is never restored in silence.

PostgreSQL takes what it cannot get for the end of WAL and opens with less; a repository without a history or a claim
looks like an older one. The matrix is every kind of object times everything that can happen to it.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from synapse_ops.domain.backup.base_record import BaseRecord
from synapse_ops.domain.backup.proof_record import Verdict
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Segment
from synapse_ops.domain.database.wal_chain import WalArchive
from synapse_ops.domain.database.wal_facts import SegmentIndex, TimelineClaim
from synapse_ops.domain.database.wal_keys import (
    chunk_key,
    claim_key,
    facts_key,
    first_of_group,
    history_key,
    index_key,
    segment_key,
    wal_prefix,
)
from synapse_ops.domain.progress import ignore_progress
from synapse_ops.errors import DocumentUnreadable, IntegrityError, SynapseOpsError
from synapse_ops.operations.backup.restoring import RestoreRequest
from synapse_ops.operations.backup_kinds import BASES
from synapse_ops.operations.database import base_proof, wal_prefetch
from synapse_ops.operations.database.base_backup import BaseReport, take_base_backup
from synapse_ops.operations.database.restore_cluster import ClusterRestorePlan
from synapse_ops.operations.database.wal_prefetch import WalPrefetcher
from synapse_ops.systems.host.processes import START_TIMEOUT_S, give_to, make_private_dir, server_identity
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.server import make_socket_dir
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.database.by_hand import environment_of, run_page, stop_server
from tests.operations.database.clusters import started
from tests.servers import PostgresServer, running_postgres, servers_dir
from tests.services.wal_receiver.receiving import Receiving, receiving, wait_durable, wait_until

HARMS = ("flipped", "missing", "truncated", "swapped", "empty", "other magic")
KINDS = ("archive", "manifest", "backup.json", "segment", "chunk", "index", "facts", "claim", "history")
ROWS = 30
# the segments are there and name themselves: what is lost with it are times and names of restore points
HARMLESS = {("index", "missing"), ("facts", "missing")}


@dataclass(frozen=True)
class Repository:
    """A base backup with WAL of two timelines, indexes, chunks; moment: before which all but the last row committed;
    before: the newest promotion, all but rows 7 and 8 of its timeline.

    objects: for each kind a key, one to exchange it with, and the word that names it.
    """

    wal: Receiving
    tools: PgTools
    base: BaseReport
    moment: datetime
    before: datetime
    objects: dict[str, tuple[str, str, str]]

    def request(self, target: Path, until: str) -> RestoreRequest:
        return RestoreRequest(
            repository=self.wal.repository,
            place=self.base.place,
            target=str(target),
            open_stack=None,
            work_dir=target.parent / "work",
            until=until,
            timeout_s=120,
        )


def commit(wal: Receiving, *numbers: int) -> datetime:
    for number in numbers:
        wal.execute(f"insert into ledger values ({number}, repeat(md5('{number}'), 40))")
    moment: datetime = wal.execute("select clock_timestamp()")
    return moment


def promote(server: PostgresServer) -> None:
    """Let the server begin timeline 2, as a promoted standby does."""
    server.server.stop("fast")
    (server.server.data_dir / "standby.signal").touch()
    give_to(server_identity(), server.server.data_dir / "standby.signal")
    server.server.start(START_TIMEOUT_S)
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        assert connection.execute("select pg_promote(true, 30)").fetchone() == (True,)


@pytest.fixture(scope="module")
def repository(
    server_tools: PgTools, tmp_path_factory: pytest.TempPathFactory, bucket: str, object_store_access: StoreAccess
) -> Iterator[Repository]:
    folder = tmp_path_factory.mktemp("damage")
    tablespace = make_private_dir(servers_dir("tablespace") / "space", server_identity())
    with running_postgres(server_tools) as server, pytest.MonkeyPatch.context() as patch:
        for place in ("domain.database.wal_keys", "operations.database.wal_archive", "services.wal_receiver.uploader"):
            patch.setattr(f"synapse_ops.{place}.GROUP", 2)
        data_dir, url = server.server.data_dir, f"{bucket}{folder.name}/database/"
        with receiving(folder, server.conninfo(), data_dir, object_store_access, url) as wal:
            wal.execute("create table ledger (n int primary key, filling text)")
            wal.execute(f"create tablespace elsewhere location '{tablespace}'")
            wal.execute("create table beside tablespace elsewhere as select generate_series(1, 1000) as n")
            with wal.in_process() as receiver:
                wait_durable(wal, receiver)
                other, base = take_base_backup(wal.stack), take_base_backup(wal.stack)
                for number in range(1, 6):
                    commit(wal, number)
                    wal.execute("select pg_switch_wal()")
                    wait_until(lambda n=number: receiver.standing.counts.get("segments", 0) >= n, "a segment")
                before = commit(wal, 6)
                commit(wal, 7, 8)
                wait_durable(wal, receiver)
            promote(server)
            with wal.in_process() as receiver:
                wait_until(lambda: receiver.standing.timeline == 2, "it streams timeline 2")
                commit(wal, *range(9, 20))
                wal.execute("select pg_switch_wal()")
                wait_until(lambda: receiver.standing.counts.get("segments"), "a segment")
                for number in range(20, ROWS):
                    moment = commit(wal, number)
                    if number % 4 == 0:
                        wait_durable(wal, receiver)
                commit(wal, ROWS)
                wait_durable(wal, receiver)
            archive = wal.archive()
            assert archive.history(archive.newest.timeline).timeline == 2
            yield Repository(wal, server.server.tools, base, moment, before, objects(archive, base, other))
    shutil.rmtree(tablespace.parent)


def objects(archive: WalArchive, base: BaseReport, other: BaseReport) -> dict[str, tuple[str, str, str]]:
    identity, (old, new) = archive.identity, archive.timelines
    size, start = old.segment_bytes, Lsn.parse(base.record.start_lsn)
    segment = Segment.at(1, start, size).next()
    number = max(new.chunks)
    one, another, *_ = new.chunks[number]
    open_segment = new.segment(number)
    indexes = [index_key(identity, old.segment(n)) for n in sorted(old.indexed)]
    index = index_key(identity, first_of_group(segment))
    facts, other_facts = new.segment(max(new.unindexed)), old.segment(max(old.unindexed))
    archive_name, manifest = base.record.archives[0], "backup_manifest"
    ours, theirs = base.place, other.place
    return {
        "archive": (ours.key(archive_name), theirs.key(archive_name), archive_name),
        "manifest": (ours.key(manifest), theirs.key(manifest), manifest),
        "backup.json": (ours.key("backup.json"), theirs.key("backup.json"), "backup.json"),
        "segment": (
            segment_key(identity, segment, encrypted=False),
            segment_key(identity, segment.next(), encrypted=False),
            segment.name,
        ),
        "chunk": (
            chunk_key(identity, open_segment, one.start, one.stop, encrypted=False),
            chunk_key(identity, open_segment, another.start, another.stop, encrypted=False),
            open_segment.name,
        ),
        "index": (index, next(key for key in indexes if key != index), index.rpartition("/")[2]),
        "facts": (facts_key(identity, facts), facts_key(identity, other_facts), facts.name),
        "claim": (claim_key(identity, 2), claim_key(identity, 1), "claim.json"),
        "history": (history_key(identity, 2), claim_key(identity, 1), "00000002.history"),
    }


@contextmanager
def harmed(repository: Repository, kind: str, harm: str) -> Iterator[tuple[str, ...]]:
    """Do something to an object while the block lasts; yield the words of which one must name it."""
    store, (key, other, name) = repository.wal.repository.store, repository.objects[kind]
    kept = {one: store.read_bytes(one) for one in (key, other)}
    data, half = kept[key], len(kept[key]) // 2
    if harm == "missing":
        store.delete([key])
    elif harm == "swapped":
        store.put_bytes(key, kept[other])
        store.put_bytes(other, data)
    else:
        changed = {
            "flipped": data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :],
            "truncated": data[:half],
            "empty": b"",
            "other magic": b"\0\0\0\0" + data[4:],
        }
        store.put_bytes(key, changed[harm])
    try:
        yield (name, other.rpartition("/")[2]) if harm == "swapped" else (name,)
    finally:
        for one, whole in kept.items():
            store.put_bytes(one, whole)


def restored(repository: Repository, target: Path, until: str) -> list[int]:
    request = repository.request(target, until)
    BASES.apply_restore(request, BASES.plan_restore(request))
    with started(target, repository.tools) as conninfo, psycopg.connect(conninfo) as connection:
        return [number for (number,) in connection.execute("select n from ledger order by n").fetchall()]


def attempt(action: Callable[[], Any]) -> Any:
    """Return what an action returns, or the error that it ends with."""
    try:
        return action()
    except SynapseOpsError as error:
        return error


def is_named(names: tuple[str, ...], error: SynapseOpsError) -> bool:
    return any(name in f"{error.message} {error.detail} {error.hint}" for name in names)


def case(kind: str, harm: str) -> Any:
    """Return a case of the matrix; those that need a server's replay, and are read like the others, are scenarios."""
    is_slow = (kind == "segment" and harm != "flipped") or (kind, harm) in HARMLESS
    return pytest.param(kind, harm, marks=[pytest.mark.scenario] if is_slow else [])


@pytest.mark.parametrize(("kind", "harm"), [case(kind, harm) for kind in KINDS for harm in HARMS])
def test_damage_is_named_and_the_newest_rows_are_never_missed_in_silence(
    repository: Repository, place: Path, kind: str, harm: str
) -> None:
    target = place / "latest"
    with harmed(repository, kind, harm) as names:
        if (kind, harm) in HARMLESS:
            assert restored(repository, target, "latest") == list(range(1, ROWS + 1))
            return
        with pytest.raises(SynapseOpsError) as error:
            restored(repository, target, "latest")
    assert is_named(names, error.value), error.value.render()
    assert error.value.exit_code in {13, 14}
    assert not target.exists()


@pytest.mark.scenario
@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("kind", KINDS)
def test_damage_never_moves_a_moment_or_lets_a_proof_pass(
    repository: Repository, place: Path, kind: str, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment lies in the open segment: a restore needs everything but what comes after it."""
    monkeypatch.setattr(base_proof, "_target_before", lambda _: random.choice(("", "latest")))
    with harmed(repository, kind, harm) as names:
        restore = attempt(lambda: restored(repository, place / "time", f"time:{repository.moment.isoformat()}"))
        proof = attempt(
            lambda: BASES.prove(repository.wal.repository, place=repository.base.place, work_dir=place / "work")
        )
    if isinstance(restore, SynapseOpsError):
        assert is_named(names, restore), restore.render()
    else:
        assert (kind, harm) in HARMLESS
        assert restore == list(range(1, ROWS))
    if isinstance(proof, SynapseOpsError):
        assert (kind, harm) == ("backup.json", "missing")
        assert is_named(names, proof), proof.render()
    elif (kind, harm) not in HARMLESS:
        assert proof.record.verdict is not Verdict.PROVEN
        assert any(name in proof.record.reason for name in names), proof.record.reason


@pytest.mark.scenario
def test_the_page_restores_the_cluster_with_stock_programs(
    repository: Repository, object_store_access: StoreAccess, place: Path
) -> None:
    """docs/wal.md: two timelines, indexes, chunks and a tablespace, by PostgreSQL's programs, zstd and tar alone."""
    wal, base = repository.wal, repository.base.place
    socket_dir = make_socket_dir(place / "data", server_identity())
    environment = {
        **environment_of(place, repository.tools, object_store_access),
        "REPOSITORY": wal.repository.url,
        "BACKUP": wal.repository.store.full_url(base.prefix),
        "WAL": wal.repository.store.full_url(wal_prefix(base.identity)),
        "SCRATCH": str(place / "scratch"),
        "PGDATA": str(place / "data"),
        "SPACES": str(place / "spaces"),
        "PGHOST": str(socket_dir),
    }
    try:
        done = run_page("wal.md", environment, place)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert done.stdout.count(": OK") == len(repository.base.record.objects)
        assert "backup successfully verified" in done.stdout
        assert "selected new timeline ID: 3" in done.stdout
        assert "damaged" not in done.stdout
        assert "missing" not in done.stdout
        with psycopg.connect(host=str(socket_dir), user="postgres", dbname="postgres") as connection:
            assert connection.execute("select array_agg(n order by n) from ledger").fetchone() == (
                list(range(1, ROWS + 1)),
            )
            assert connection.execute("select count(*) from beside").fetchone() == (1000,)
    finally:
        stop_server(environment)
        shutil.rmtree(socket_dir)


def test_a_segment_that_the_server_asks_for_again_is_there(
    repository: Repository, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads ahead, and goes back to the last applied record at its target: it waited for ten minutes."""
    monkeypatch.setattr(wal_prefetch, "AHEAD", 1)
    plan = BASES.plan_restore(repository.request(place / "again", "latest"))
    assert isinstance(plan, ClusterRestorePlan)
    prefetcher = WalPrefetcher(
        repository.wal.repository,
        plan.archive,
        plan.recovery,
        directory=place / "wal",
        data_dir=place,
        identity=None,
        age_identities=(),
        progress=ignore_progress,
    )
    names = [segment.name for segment in plan.recovery.segments]
    with prefetcher:
        for name in [*names[2:], names[0]]:  # a recovery that goes on in the middle, and goes back
            subprocess.run(["sh", place / "wal" / "restore.sh", name, "taken"], check=True, timeout=20)
            assert (place / "taken").stat().st_size == plan.recovery.segments[0].size_bytes
        assert not (place / "wal" / names[2]).exists()


def test_the_newest_bytes_are_missed_as_well(repository: Repository, place: Path) -> None:
    """Without the last chunk the archive looks like one of a second before: the lease says how far it was stored."""
    store, archive = repository.wal.repository.store, repository.wal.archive()
    number = max(archive.newest.chunks)
    segment, last = archive.newest.segment(number), archive.newest.chunks[number][-1]
    key = chunk_key(archive.identity, segment, last.start, last.stop, encrypted=False)
    data = store.read_bytes(key)
    store.delete([key])
    try:
        with pytest.raises(SynapseOpsError, match=f"{segment.name}.*is missing") as error:
            restored(repository, place / "shorter", "latest")
    finally:
        store.put_bytes(key, data)
    assert f"--until lsn:{segment.start + last.start}" in error.value.hint
    store.delete([key])
    try:  # what the hint says
        rows = restored(repository, place / "before", f"lsn:{segment.start + last.start}")
    finally:
        store.put_bytes(key, data)
    assert rows == list(range(1, len(rows) + 1))
    assert ROWS - 4 <= len(rows) < ROWS


def test_a_moment_before_the_newest_promotion_is_restored(repository: Repository, place: Path) -> None:
    """Recovery follows the newest timeline and ends before its fork: the history that the server writes then names a
    timeline that ends before it begins. On its own timeline the same moment, and what came after it, are there as well.
    """
    until = f"time:{repository.before.isoformat()}"
    assert restored(repository, place / "newest", until) == list(range(1, 7))
    own = replace(repository.request(place / "own", "latest"), timeline=1)
    BASES.apply_restore(own, BASES.plan_restore(own))
    with started(place / "own", repository.tools) as conninfo, psycopg.connect(conninfo) as connection:
        assert connection.execute("select max(n) from ledger").fetchone() == (8,)


def test_a_proof_ends_where_the_newest_promotion_begins(
    repository: Repository, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind one that went to latest: all that stayed of the old timeline is there, and nothing of the new one."""
    monkeypatch.setattr(base_proof, "_target_before", lambda _: "latest")
    archive = repository.wal.archive()
    fork = archive.history(2).begins_at
    proof = BASES.prove(repository.wal.repository, place=repository.base.place, work_dir=place / "work").record

    assert proof.verdict is Verdict.PROVEN, proof.reason
    assert proof.base is not None
    assert (proof.base.target, proof.base.end_lsn) == (f"lsn:{fork}", str(fork))
    [content] = [one for one in proof.base.contents if one.name == "postgres"]
    assert content.rows == 1000 + 8


def test_a_damaged_chunk_of_the_open_segment_is_stored_anew(repository: Repository) -> None:
    """It stopped the receiver for ever, while WAL filled the server's disk; the server still has these bytes."""
    wal = repository.wal
    number = max(wal.archive().newest.chunks)
    segment = wal.archive().newest.segment(number)
    with harmed(repository, "chunk", "flipped"):
        with wal.in_process() as receiver:
            wal.execute("select pg_create_restore_point('healed')")
            end = wait_durable(wal, receiver)
        data, stored = wal.fetched(segment)
    assert stored >= end - segment.start
    assert data[:stored] == wal.own_file(segment)[:stored]


def test_a_page_with_a_wrong_checksum_ends_a_base_backup_and_is_named(repository: Repository) -> None:
    """The server says so after its last byte (W21): nothing is listed, and an operator learns what to mend."""
    wal = repository.wal
    # autovacuum would set hint bits in memory, and the next checkpoint would write the whole page over the damage
    wal.execute(
        "create table rotten with (autovacuum_enabled = false) as select generate_series(1, 1000) as n", "checkpoint"
    )
    path = wal.data_dir / wal.execute("select pg_relation_filepath('rotten')")
    prefix = repository.base.place.prefix.rsplit("/", 2)[0]
    before = [row.key for row in wal.repository.store.list_objects(prefix) if row.key.endswith("backup.json")]
    with path.open("r+b") as file:
        file.seek(8192 + 4000)
        byte = file.read(1)
        file.seek(8192 + 4000)
        file.write(bytes([byte[0] ^ 1]))
    with wal.in_process() as receiver:
        wait_durable(wal, receiver)
        with pytest.raises(IntegrityError, match="wrong checksums: no base backup") as error:
            take_base_backup(wal.stack)

    assert f'{wal.execute("select pg_relation_filepath($$rotten$$)")}", block 1' in error.value.detail
    assert "postgres.public.rotten" in error.value.detail
    assert "REINDEX" in error.value.hint
    after = [row.key for row in wal.repository.store.list_objects(prefix) if row.key.endswith("backup.json")]
    assert after == before
    wal.execute("drop table rotten")


@pytest.mark.parametrize(
    ("kind", "model"), [("backup.json", BaseRecord), ("index", SegmentIndex), ("claim", TimelineClaim)]
)
def test_no_changed_byte_of_a_document_is_a_fact(repository: Repository, kind: str, model: Any) -> None:
    """A digit of a position or a time would send recovery elsewhere: the document carries its own digest."""
    data = repository.wal.repository.store.read_bytes(repository.objects[kind][0])
    whole = model.from_json(data, key="k")
    for position in range(0, len(data), 7):
        changed = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        try:
            assert model.from_json(changed, key="k") == whole  # white space
        except DocumentUnreadable:
            continue
    body = json.loads(data)
    assert body["document_sha256"] != "0" * 64
