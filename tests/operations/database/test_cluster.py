"""The whole cluster, physically: a base backup, its WAL, and every moment since as a new data directory."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
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
from synapse_ops.domain.database.wal_keys import wal_prefix
from synapse_ops.domain.progress import Progress
from synapse_ops.errors import Refused, Unreachable
from synapse_ops.operations.backup.restoring import RestoreRequest
from synapse_ops.operations.backup_kinds import BASES
from synapse_ops.operations.database import base_backup, restore_cluster, wal_archive, wal_check, wal_prefetch
from synapse_ops.operations.database.base_backup import BaseReport, take_base_backup
from synapse_ops.operations.database.restore_cluster import ClusterRestorePlan
from synapse_ops.operations.database.wal_check import check_wal, judge_slot_limit
from synapse_ops.operations.database.wal_fetch import ChunksMerged
from synapse_ops.operations.stack import Stack
from synapse_ops.systems.host.processes import give_to, make_private_dir, server_identity
from synapse_ops.systems.postgres import identity as identity_module
from synapse_ops.systems.postgres.connection import connect
from synapse_ops.systems.postgres.identity import ensure_identity, read_identity
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.server import make_socket_dir
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.database.backups import make_stack
from tests.operations.database.by_hand import environment_of, run_page, stop_server
from tests.operations.database.clusters import killed_while_it_replays, restart, started
from tests.operations.database.wal_uploads import WalUploads, uploading
from tests.servers import PostgresServer, running_postgres, servers_dir
from tests.services.wal_receiver.receiving import wait_until


@dataclass
class Cluster:
    """A server with a base backup and a ledger: row n was committed as the n-th, and is known by its LSN and time.

    commands: what the base backup asked the server for.
    """

    server: PostgresServer
    stack: Stack
    upload: WalUploads
    base: BaseReport
    commands: set[str]
    commits: list[tuple[Lsn, datetime]]

    def request(self, target: Path, until: str, work_dir: Path) -> RestoreRequest:
        return RestoreRequest(
            repository=self.stack.database_repository(),
            place=self.base.place,
            target=str(target),
            open_stack=None,
            work_dir=work_dir,
            until=until,
            timeout_s=300,
        )

    def commit(self, count: int = 1) -> None:
        with psycopg.connect(self.server.conninfo(), autocommit=True) as connection:
            for _ in range(count):
                number = len(self.commits) + 1
                connection.execute("insert into ledger values (%s, repeat(md5(%s::text), 40))", [number, number])
                row = connection.execute(
                    "select pg_current_wal_insert_lsn()::text, pg_xact_commit_timestamp(xmin) from ledger where n = %s",
                    [number],
                ).fetchone()
                assert row is not None
                self.commits.append((Lsn.parse(row[0]), row[1]))


@pytest.fixture(scope="module")
def cluster(
    server_tools: PgTools,
    tmp_path_factory: pytest.TempPathFactory,
    bucket: str,
    object_store_access: StoreAccess,
) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    tablespace = make_private_dir(servers_dir("tablespace") / "space", server_identity())
    with running_postgres(server_tools) as server:
        server.execute("alter system set track_commit_timestamp = on")
        server.execute("alter system set primary_conninfo = 'host=live.example'")
        restart(server)
        server.execute("create table ledger (n int primary key, filling text)")
        server.execute(f"create tablespace elsewhere location '{tablespace}'")
        server.execute("create table beside tablespace elsewhere as select generate_series(1, 1000) as n")
        for name in ("standby.signal", "synapse.fenced"):  # read at a start only
            (server.server.data_dir / name).touch()
            give_to(server_identity(), server.server.data_dir / name)
        bucket_url = f"{bucket}{secrets.token_hex(8)}/database/"
        stack = make_stack(
            folder, server.conninfo(), bucket_url, object_store_access, wal_archiving="continuous", max_rate="900Mi"
        )
        with connect(server.conninfo()) as connection:
            identity = ensure_identity(connection)
        upload = WalUploads(
            stack.database_repository(), identity, server.conninfo(), server.server.data_dir, folder / "wal"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base_backup, "RECEIVER_WAIT_S", 0.5)
            with pytest.raises(Refused, match="no WAL receiver"):
                take_base_backup(stack)
        upload()
        commands: set[str] = set()

        def look(_: Progress) -> None:
            with psycopg.connect(server.conninfo()) as beside:
                rows = beside.execute("select query from pg_stat_activity where query like 'BASE_BACKUP%'").fetchall()
            commands.update(query for (query,) in rows)

        with uploading(upload):
            base = take_base_backup(stack, progress=look)
        for name in ("standby.signal", "synapse.fenced"):
            (server.server.data_dir / name).unlink()
        found = Cluster(server, stack, upload, base, commands, [])
        found.commit(20)
        server.execute("select pg_create_restore_point('before_import')")
        found.commit(20)
        server.execute("select pg_switch_wal()")
        upload()
        server.execute("alter system set max_connections = 200")
        server.execute("alter system set max_prepared_transactions = 20")
        restart(server)
        for number in range(8):
            server.execute(f"begin; insert into ledger values ({1000 + number}); prepare transaction 'p{number}'")
        found.commit(5)
        upload()
        yield found
    shutil.rmtree(tablespace.parent)


def restore(cluster: Cluster, target: Path, until: str, *, work_dir: Path) -> list[int]:
    """Restore to a moment and return the ledger's rows there."""
    request = cluster.request(target, until, work_dir)
    BASES.apply_restore(request, BASES.plan_restore(request))
    with started(target, cluster.server.server.tools) as conninfo, psycopg.connect(conninfo) as connection:
        return [number for (number,) in connection.execute("select n from ledger order by n").fetchall()]


def test_latest_is_all_that_was_stored(cluster: Cluster, place: Path) -> None:
    """Also where settings were raised since the base backup, and prepared transactions wait for their end (W4)."""
    assert restore(cluster, place / "latest", "latest", work_dir=place / "work") == list(range(1, 46))


def test_a_copy_is_tied_to_nothing(cluster: Cluster, place: Path) -> None:
    """A standby's signal outranks recovery.signal, and an old connection string would follow the live primary (W16)."""
    target = place / "inert"
    restore(cluster, target, "immediate", work_dir=place / "work")
    kept = {path.name for path in target.iterdir()}

    assert not kept & {"standby.signal", "synapse.fenced", "recovery.signal", "tablespace_map"}
    assert "live.example" not in (target / "postgresql.auto.conf").read_text()
    [space] = (target / "pg_tblspc").iterdir()
    assert space.resolve().is_relative_to(place / "inert.tablespaces")
    with started(target, cluster.server.server.tools) as conninfo, psycopg.connect(conninfo) as connection:
        assert connection.execute("select count(*) from beside").fetchone() == (1000,)


def test_a_failing_store_is_never_taken_for_the_end_of_wal(
    cluster: Cluster, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With exit 1 for an error of S3 the server would open without what came later (W2)."""
    whole = wal_prefetch.fetch_segment

    def fails(repository: object, archive: object, segment: Segment, *rest: object, **more: object) -> None:
        if segment.number > Lsn.parse(cluster.base.record.stop_lsn).position // segment.size_bytes:
            raise Unreachable("S3 answers 503")
        whole(repository, archive, segment, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(wal_prefetch, "fetch_segment", fails)
    monkeypatch.setattr(wal_prefetch, "TRIES", 1)

    with pytest.raises(Unreachable, match="503"):
        restore(cluster, place / "cut", "latest", work_dir=place / "work")
    assert not (place / "cut").exists()

    monkeypatch.undo()
    monkeypatch.setattr(restore_cluster, "stage_cluster", forbidden)  # the copy is not read a second time
    assert restore(cluster, place / "cut", "latest", work_dir=place / "work") == list(range(1, 46))
    assert not list(place.glob("throwaway-*"))


def forbidden(*_: object) -> None:
    raise AssertionError("the base backup is read again")


def killed(cluster: Cluster, target: Path) -> AbstractContextManager[None]:
    plan = BASES.plan_restore(cluster.request(target, "latest", target.parent))
    assert isinstance(plan, ClusterRestorePlan)
    return killed_while_it_replays(cluster.stack, target, plan.recovery.segments[-1].name)


def test_a_killed_restore_is_taken_up(cluster: Cluster, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy was read and verified: the same command again recovers it further, and leaves nothing beside it."""
    with killed(cluster, place / "killed"):
        monkeypatch.setattr(restore_cluster, "stage_cluster", forbidden)
        assert restore(cluster, place / "killed", "latest", work_dir=place / "work") == list(range(1, 46))
    assert not list(place.glob("throwaway-*"))


def test_a_restore_that_was_killed_when_replay_had_ended_begins_anew(cluster: Cluster, place: Path) -> None:
    """Whether that server ended where it should is not known any more: the copy is read again, into an empty place."""
    with killed(cluster, place / "killed"):
        [left] = [path for path in place.glob("throwaway-*") if path.is_dir()]
        (left / "data" / "recovery.signal").unlink()  # as its promotion does
        assert restore(cluster, place / "killed", "latest", work_dir=place / "work") == list(range(1, 46))
    assert not list(place.glob("throwaway-*"))


@pytest.mark.scenario
def test_another_restore_removes_what_a_killed_one_left(cluster: Cluster, place: Path) -> None:
    with killed(cluster, place / "killed"):
        assert restore(cluster, place / "other", "immediate", work_dir=place / "work") == []
    assert not list(place.glob("throwaway-*"))


@pytest.mark.scenario
def test_a_killed_restore_is_finished_by_hand(cluster: Cluster, place: Path, object_store_access: StoreAccess) -> None:
    """As docs/wal.md says: its copy, recovered by a stock server from WAL that was fetched with an S3 client."""
    repository, base = cluster.stack.database_repository(), cluster.base.place
    with killed(cluster, place / "killed"):
        [left] = [path for path in place.glob("throwaway-*") if path.is_dir()]
        wait_until(lambda: not (left / "data" / "postmaster.pid").exists(), "its server has ended")
        left.rename(place / "mine")
        socket_dir = make_socket_dir(place / "mine", server_identity())
        environment = {
            **environment_of(place, cluster.server.server.tools, object_store_access),
            "REPOSITORY": repository.url,
            "BACKUP": repository.store.full_url(base.prefix),
            "WAL": repository.store.full_url(wal_prefix(base.identity)),
            "SCRATCH": str(place / "scratch"),
            "PGDATA": str(place / "mine" / "data"),
            "PGHOST": str(socket_dir),
        }
        try:
            done = run_page("wal.md", environment, place, without="pg_verifybackup")
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            with psycopg.connect(host=str(socket_dir), user="postgres", dbname="postgres") as connection:
                assert connection.execute("select array_agg(n order by n) from ledger").fetchone() == (
                    list(range(1, 46)),
                )
        finally:
            stop_server(environment)
            shutil.rmtree(socket_dir)


def test_a_copy_that_goes_live_is_another_server(cluster: Cluster, place: Path) -> None:
    """With the generation of its source both would write one archive."""
    target = place / "live"
    request = replace(cluster.request(target, "latest", place / "work"), goes_live=True)
    report = BASES.apply_restore(request, BASES.plan_restore(request))

    with started(target, cluster.server.server.tools) as conninfo, connect(conninfo) as connection:
        identity = read_identity(connection)
    assert identity is not None
    assert identity.system_identifier == cluster.base.place.identity.system_identifier
    assert identity.generation != cluster.base.place.identity.generation
    committed_at = cluster.commits[-1][1].isoformat(timespec="milliseconds")
    assert any(f"the last transaction in it was committed at {committed_at}" in note for note in report.notes)


def test_a_moment_is_what_had_committed_until_then(cluster: Cluster, place: Path) -> None:
    moment = cluster.commits[9][1]

    assert restore(cluster, place / "time", f"time:{moment.isoformat()}", work_dir=place / "work") == list(range(1, 11))


def test_a_position_is_what_lies_before_it(cluster: Cluster, place: Path) -> None:
    """A position is exclusive: inclusive replay would go on to the end of the record that begins there (W3)."""
    lsn = cluster.commits[14][0]

    assert restore(cluster, place / "lsn", f"lsn:{lsn}", work_dir=place / "work") == list(range(1, 16))


def test_a_restore_point_is_what_lies_before_it(cluster: Cluster, place: Path) -> None:
    assert restore(cluster, place / "name", "name:before_import", work_dir=place / "work") == list(range(1, 21))


def test_a_proof_recovers_the_cluster_from_the_repository_alone(cluster: Cluster, place: Path) -> None:
    """By turns to the end of the archive and to a moment before it; who ends at the same position finds the same."""
    proofs = []
    for _ in range(3):
        report = BASES.prove(cluster.stack.database_repository(), place=cluster.base.place, work_dir=place / "work")
        assert report is not None
        assert report.record.verdict is Verdict.PROVEN, report.record
        assert report.record.base is not None
        assert report.record.amcheck_relations > 0
        proofs.append(report.record.base)

    first, between, again = proofs
    assert (first.target, between.target[:5], again.target) == ("latest", "time:", "latest")
    assert first.contents == again.contents
    assert first.last_commit_at == cluster.commits[-1][1]
    assert between.last_commit_at is None or between.last_commit_at < first.last_commit_at  # None: before the first
    assert first.rpo_observed_s >= 0
    assert between.rpo_observed_s is None
    assert Lsn.parse(between.end_lsn) < Lsn.parse(first.end_lsn)
    rows = {one.name: one.rows for one in first.contents}
    assert rows == {"postgres": 45 + 1000, "template1": 0}


@pytest.mark.parametrize(
    ("until", "said"),
    [
        ("time:2020-01-01T00:00:00Z", "the oldest base backup ended at"),
        ("time:2040-01-01T00:00:00Z", "no later commit is stored"),
        ("lsn:0/1", "is consistent from"),
        ("lsn:FF/0", "WAL is stored up to"),
        ("name:nowhere", "before_import"),
    ],
)
def test_what_cannot_be_reached_is_refused_before_the_disk_is_touched(
    cluster: Cluster, place: Path, until: str, said: str
) -> None:
    """PostgreSQL would recover silently to the first commit, or fail after the last byte (W17)."""
    with pytest.raises(Refused) as refused:
        restore(cluster, place / "refused", until, work_dir=place / "work")

    assert said in f"{refused.value.message} {refused.value.detail}"
    assert not (place / "refused").exists()


def test_a_base_backup_says_what_it_holds(cluster: Cluster) -> None:
    record = cluster.base.record

    assert isinstance(record, BaseRecord)
    assert Lsn.parse(record.start_lsn) < Lsn.parse(record.stop_lsn)
    assert record.to_json() == BaseRecord.from_json(record.to_json(), key="k").to_json()


def test_a_base_backup_reads_no_faster_than_the_spec_allows(cluster: Cluster) -> None:
    """backup.database.base.max_rate reaches the server, in its KiB a second."""
    [command] = cluster.commands

    assert f"MAX_RATE {900 * 1024}," in command


def test_a_check_sees_wal_arrive_and_names_what_would_stop_it(cluster: Cluster) -> None:
    """The settings of this server keep WAL without a bound, and no receiver has made its slot."""
    with uploading(cluster.upload):
        rows = {row.what: row for row in check_wal(cluster.stack)}

    assert {row.what for row in rows.values() if row.fault} == {"max_slot_wal_keep_size", "slot"}
    assert "was in the repository after" in rows["arrival"].found
    assert "was read back" in rows["readable"].found
    assert all(row.fix for row in rows.values() if row.fault)


@pytest.mark.parametrize(
    ("limit_bytes", "volume", "fault", "corrected"),
    [
        (-1, (1 << 30, 1 << 29), "until it stops", "'256MB'"),
        (-1, None, "until it stops", "'10240MB'"),
        (10 << 30, (1 << 30, 900 << 20), "900 MiB free", "'256MB'"),
        (10 << 30, (100 << 30, 3 << 30), "3072 MiB free", "'1536MB'"),
        (10 << 30, (100 << 30, 80 << 30), "", ""),
        (10 << 30, None, "", ""),
    ],
)
def test_a_check_refuses_a_slot_limit_that_its_disk_cannot_hold(
    limit_bytes: int, volume: tuple[int, int] | None, fault: str, corrected: str
) -> None:
    """The command that corrects it names a size that fits; where this host does not see the disk, none is judged."""
    row = judge_slot_limit("as shown", limit_bytes, volume)

    assert (fault in row.fault, bool(row.fault)) == (True, bool(fault))
    assert corrected in row.fix
    assert bool(row.fix) == bool(fault)


def test_a_server_that_is_too_old_is_refused_by_its_version(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by a syntax error of BASE_BACKUP, and not by a receiver that does not run for it."""
    monkeypatch.setattr(identity_module, "OLDEST_MAJOR", 99)

    with pytest.raises(Refused, match="is older than 99"):
        take_base_backup(cluster.stack)


def test_a_check_is_red_when_wal_does_not_arrive(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal_check, "WAIT_S", 1.0)
    rows = {row.what: row for row in check_wal(cluster.stack)}

    assert "did not arrive" in rows["arrival"].fault
    assert "readable" not in rows


def test_chunks_that_are_merged_while_they_are_read_are_listed_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver merges chunks of the open segment all the time: a base backup failed of it once in the demo."""
    whole, failed = wal_archive.read_chunks, []

    def merged_once(*given: Any, **more: Any) -> None:
        if not failed:
            failed.append(1)
            raise ChunksMerged("merged")
        whole(*given, **more)

    monkeypatch.setattr(wal_archive, "read_chunks", merged_once)
    archive = wal_archive.read_wal_archive(cluster.stack.database_repository(), cluster.base.place.identity)

    assert failed
    assert archive.newest.last_lsn is not None
