"""WAL that a server's archive_command hands over and its restore_command asks for, by the rules of received WAL."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pyrage
import pytest

from synapse_ops.domain.database.wal import Segment
from synapse_ops.domain.database.wal_keys import facts_key, history_key, segment_key
from synapse_ops.errors import IntegrityError, Refused, Unreachable, WrongIdentity
from synapse_ops.operations.backup.restoring import RestoreRequest
from synapse_ops.operations.backup_kinds import BASES
from synapse_ops.operations.database import wal_restore
from synapse_ops.operations.database.base_backup import take_base_backup
from synapse_ops.operations.database.wal_check import check_wal
from synapse_ops.operations.database.wal_restore import WalFiles, answer
from synapse_ops.operations.database.wal_writer import OtherWal
from synapse_ops.services.wal_receiver.pusher import Pusher
from synapse_ops.services.wal_receiver.standing import Standing
from synapse_ops.systems.host.processes import make_private_dir, reachable_by, server_identity
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.database.clusters import started
from tests.servers import PostgresServer, running_postgres, running_standby, servers_dir
from tests.services.wal_receiver.receiving import DEADLINE_S, Receiving, receiving, wait_until

MIB = 1 << 20
PACKAGE = Path(wal_restore.__file__).parents[2]
CALL = "import sys\nsys.path.insert(0, {!r})\nfrom synapse_ops.cli.entry import main\nmain()\n"


@dataclass
class Archiving:
    """A server that hands its WAL over, and the resident process. command: `synapse-ops`, for the server's user."""

    server: PostgresServer
    wal: Receiving
    command: str

    def start(self) -> subprocess.Popen[bytes]:
        before = os.umask(0)  # where tests run as root, the server's user comes to the socket
        try:
            process = self.wal.start()
        finally:
            os.umask(before)
        wait_until(lambda: self.wal.health().get("healthy"), "it takes WAL")
        return process

    def write(self, segments: int, conninfo: str | None = None) -> list[str]:
        """Fill segments and return their names."""
        names = []
        with psycopg.connect(conninfo or self.wal.conninfo, autocommit=True) as connection:
            for _ in range(segments):
                row = connection.execute("select pg_walfile_name(pg_current_wal_insert_lsn())").fetchone()
                assert row is not None
                names.append(row[0])
                connection.execute("insert into handed select repeat(md5(n::text), 8) from generate_series(1, 100) n")
                connection.execute("select pg_switch_wal()")
        return names

    def archived(self) -> str:
        return str(self.wal.execute("select coalesce(last_archived_wal, '') from pg_stat_archiver"))

    def failed(self) -> int:
        return int(self.wal.execute("select failed_count from pg_stat_archiver"))

    def wait_archived(self, name: str) -> None:
        wait_until(lambda: self.archived() >= name, f"{name} is handed over")

    def file(self, name: str) -> Path:
        return self.wal.data_dir / "pg_wal" / name

    def pusher(self, host: str = "own") -> Pusher:
        (self.wal.folder / host).mkdir(exist_ok=True)
        return Pusher(self.wal.stack, self.wal.folder / host, Standing(), None)

    def stored(self, name: str) -> bytes:
        archive = self.wal.archive()
        return self.wal.fetched(Segment.parse(name, MIB), archive)[0]


@pytest.fixture(scope="module")
def server(server_tools: PgTools) -> Iterator[PostgresServer]:
    """Segments of 1 MiB, which are kept: tests push them again."""
    settings = {"archive_mode": True, "archive_command": "false", "wal_level": "replica", "wal_keep_size": "256MB"}
    with running_postgres(server_tools, settings=settings, init=["--wal-segsize=1"]) as own:
        yield own


@pytest.fixture
def archiving(server: PostgresServer, object_store_access: StoreAccess, bucket_url: str) -> Iterator[Archiving]:
    """A server with its own repository; nothing runs yet that takes its WAL."""
    python = Path(sys.executable)
    if not reachable_by(server_identity(), python):
        python = Path("/usr/bin/python3")
        if not reachable_by(server_identity(), python):
            pytest.skip("the server's user can run no Python")
    folder = servers_dir("commands")
    for name in ("__init__.py", "cli/__init__.py", "cli/entry.py", "cli/wal_client.py"):
        copy = folder / "code" / "synapse_ops" / name
        copy.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        shutil.copyfile(PACKAGE / name, copy)
    (folder / "code" / "call.py").write_text(CALL.format(str(folder / "code")))
    (folder / "wal").mkdir(mode=0o755)
    command = f"{python} -I -S {folder}/code/call.py wal {{}} --state-dir {folder}"
    server.execute("drop table if exists handed")
    server.execute("create table handed (t text)")
    server.execute(f"alter system set archive_command = '{command.format('push')} %p'")
    server.execute("select pg_reload_conf(), pg_stat_reset_shared('archiver')")
    data_dir = server.server.data_dir
    with receiving(folder, server.conninfo(), data_dir, object_store_access, bucket_url) as wal:
        wal.spec.write_text(wal.spec.read_text().replace("wal: {chunk_interval: 200ms}", "wal_archiving: command"))
        yield Archiving(server, wal, command)
    shutil.rmtree(folder, ignore_errors=True)


def test_what_was_handed_over_is_restored_though_the_process_was_killed(archiving: Archiving, tmp_path: Path) -> None:
    """Nothing is done while nobody answers: the server keeps the file and hands it over again."""
    wal, place = archiving.wal, make_private_dir(servers_dir("restored") / "place", server_identity())
    process = archiving.start()
    base = take_base_backup(wal.stack)
    archiving.wait_archived(archiving.write(2)[-1])
    names = archiving.write(8)
    process.kill()
    process.wait(DEADLINE_S)
    names += archiving.write(1)
    wait_until(archiving.failed, "a file is refused")
    assert archiving.archived() < names[-1]
    archiving.start()
    names += archiving.write(1)
    archiving.wait_archived(names[-1])
    rows = check_wal(wal.stack)

    assert [row.what for row in rows if row.fault] == ["archive_timeout"]
    assert wal.archive().newest.gaps == ()
    request = RestoreRequest(
        wal.repository, base.place, str(place / "copy"), None, tmp_path / "work", until="latest", timeout_s=300
    )
    BASES.apply_restore(request, BASES.plan_restore(request))
    with started(place / "copy", archiving.server.server.tools) as conninfo, psycopg.connect(conninfo) as connection:
        assert connection.execute("select count(*) from handed").fetchone() == (12 * 100,)
    shutil.rmtree(place.parent)


def test_a_file_may_be_handed_over_twice_and_another_under_its_name_may_not(
    archiving: Archiving, tmp_path: Path
) -> None:
    """PostgreSQL repeats a file after a crash; other WAL under its name is another server's, and nothing is changed."""
    [name, following] = archiving.write(2)
    data_dir, file, pusher = archiving.wal.data_dir, archiving.file(name), archiving.pusher()
    assert pusher.push(data_dir, file) == "stored"
    assert pusher.push(data_dir, file) == "stored"
    assert archiving.stored(name) == file.read_bytes()

    other = tmp_path / name
    data = bytearray(file.read_bytes())
    data[200] ^= 1
    other.write_bytes(data)
    with pytest.raises(OtherWal, match="holds other WAL than this server has"):
        pusher.push(data_dir, other)
    data[100_000 // 8192 * 8192 + 8] ^= 1  # the page says another position
    other.write_bytes(data)
    with pytest.raises(IntegrityError, match="says that it is the one at"):
        pusher.push(data_dir, other)
    other.write_bytes(data[:-8192])
    with pytest.raises(IntegrityError, match="its first page says segments of 1048576"):
        pusher.push(data_dir, other)
    (tmp_path / following).write_bytes(file.read_bytes())
    with pytest.raises(IntegrityError):
        pusher.push(data_dir, tmp_path / following)
    assert pusher.push(data_dir, tmp_path / f"{name}.partial") == "not stored: nothing reads it"
    assert archiving.stored(name) == file.read_bytes()
    pusher.close()


def test_encrypted_wal_that_cannot_be_compared_is_not_taken_for_stored(archiving: Archiving) -> None:
    """The server would forget what it believes to be stored: only the same digest key, or an age key, tells."""
    with archiving.wal.spec.open("a") as spec:
        spec.write(f"encryption: {{recipients: ['{pyrage.x25519.Identity.generate().to_public()}']}}\n")
    [name] = archiving.write(1)
    data_dir, pusher = archiving.wal.data_dir, archiving.pusher()

    assert [pusher.push(data_dir, archiving.file(name)) for _ in range(2)] == ["stored", "stored"]
    pusher.close()
    with pytest.raises(Refused, match="cannot be compared with what this server has"):
        archiving.pusher("another host").push(data_dir, archiving.file(name))


def test_a_clone_is_refused_and_nothing_is_overwritten(archiving: Archiving) -> None:
    """It has the same identifier, generation and timeline: only its bytes tell (W13)."""
    archiving.start()
    with running_standby(archiving.server, is_clone=True) as clone:
        names = archiving.write(2)
        archiving.wait_archived(names[-1])
        own = {name: archiving.file(name).read_bytes() for name in names}
        archiving.write(2, clone.conninfo())
        with psycopg.connect(clone.conninfo(), autocommit=True) as connection:
            query = "select failed_count > 0 from pg_stat_archiver"
            wait_until(lambda: connection.execute(query).fetchone() == (True,), "the clone's WAL is refused")
        reason = archiving.wal.health()["reason"]

    assert "holds other WAL than this server has" in reason
    assert {name: archiving.stored(name) for name in names} == own


def test_a_server_follows_by_restore_command_alone_through_its_own_promotion(archiving: Archiving) -> None:
    """It is told apart where WAL ends; its history is stored after its own segment with the fork (W1); the old primary,
    which was promoted away, is refused.
    """
    archiving.start()
    wal = archiving.wal
    archiving.wait_archived(archiving.write(2)[-1])
    restore = archiving.command.format("fetch") + " %f %p"
    with running_standby(archiving.server, settings={"restore_command": restore, "primary_conninfo": ""}) as standby:
        archiving.wait_archived(archiving.write(3)[-1])
        with psycopg.connect(standby.conninfo(), autocommit=True) as connection:
            count = "select count(*) from handed"
            wait_until(lambda: connection.execute(count).fetchone() == (500,), "it has replayed what was stored")
            connection.execute("select pg_promote(true, 30)")
            names = archiving.write(2, standby.conninfo())
            query = "select coalesce(last_archived_wal, '') from pg_stat_archiver"
            wait_until(lambda: connection.execute(query).fetchone() == (names[-1],), "its WAL is handed over")
        archive = wal.archive()
        assert archive.newest.timeline == 2
        assert wal.repository.store.head(history_key(archive.identity, 2)) is not None
        assert archiving.stored(names[0]) == (standby.server.data_dir / "pg_wal" / names[0]).read_bytes()
        lost = archiving.write(2)
        wait_until(lambda: "this server hands over timeline 1" in wal.health()["reason"], "the old primary is refused")
        for name in lost:
            key = segment_key(archive.identity, Segment.parse(name, MIB), encrypted=False)
            assert wal.repository.store.head(key) is None
        second = Segment.parse(names[0], MIB)
        wal.repository.store.delete([segment_key(archive.identity, second, encrypted=False)])
        wal.repository.store.delete([facts_key(archive.identity, second)])
        files = WalFiles(wal.repository)
        wanted = wal.folder / "RECOVERYXLOG"
        assert answer(lambda: files.write(names[0], wanted, wal.data_dir), wal.data_dir)[0] == 255
        pusher = archiving.pusher()
        with pytest.raises(Refused, match="timeline 2, this server hands over timeline 1"):
            pusher.push(wal.data_dir, archiving.file(lost[0]))
        forged = wal.folder / "00000002.history"
        forged.write_text("1\t0/1000000\tno recovery target specified\n")
        with pytest.raises(WrongIdentity, match="its history differs"):
            pusher.push(wal.data_dir, forged)


def test_a_fetch_tells_the_end_of_wal_from_what_is_lost_and_from_a_store_that_is_away(
    archiving: Archiving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 1 opens the server, 255 ends its recovery (W2); nothing resident is needed."""
    wal, pusher = archiving.wal, archiving.pusher()
    names = archiving.write(4)
    for name in names[:3]:
        pusher.push(wal.data_dir, archiving.file(name))
    pusher.close()
    wanted = tmp_path / "RECOVERYXLOG"

    def fetch(name: str) -> tuple[int, str]:
        argv = [sys.executable, "-m", "synapse_ops", "wal", "fetch", "--state-dir", str(wal.folder)]
        argv += ["--spec", str(wal.spec), name, str(wanted)]
        done = subprocess.run(argv, cwd=wal.data_dir, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        return done.returncode, done.stderr

    assert fetch(names[0]) == (0, "")
    assert wanted.read_bytes() == archiving.file(names[0]).read_bytes()
    archive = wal.archive()
    lost = Segment.parse(names[1], MIB)
    wal.repository.store.delete([segment_key(archive.identity, lost, encrypted=False)])
    wal.repository.store.delete([facts_key(archive.identity, lost)])
    files = WalFiles(wal.repository)

    def answered(name: str, data_dir: Path = wal.data_dir) -> tuple[int, str]:
        return answer(lambda: files.write(name, wanted, wal.data_dir), data_dir)

    assert answered(names[0])[0] == 0
    code, said = answered(names[1])
    assert code == 255
    assert f"is missing from {lost.start} on, and WAL was stored up to" in said
    assert answered(names[3])[0] == 1
    assert answered("00000002.history")[0] == 1
    assert answered("000000020000000000000001")[0] == 1
    assert answered(f"{names[0]}.partial")[0] == 1

    def away(*_: object, **__: object) -> None:
        raise Unreachable("the store is away")

    monkeypatch.setattr(wal_restore, "read_wal_archive", away)
    monkeypatch.setattr(wal_restore, "WAIT_S", 0.0)
    assert answered(names[3])[0] == 255
    (tmp_path / "standby.signal").touch()
    assert answered(names[3], tmp_path) == (12, "error: the store is away")
