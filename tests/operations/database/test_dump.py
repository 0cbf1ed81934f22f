"""A dump is whole or not there: written in order, read back, restorable, and cut at every step."""

from __future__ import annotations

import io
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pyrage
import pytest

from synapse_ops.domain.backup.dump_record import DumpRecord
from synapse_ops.domain.database import fingerprint, structure
from synapse_ops.domain.database.fingerprint import Fingerprint
from synapse_ops.domain.database.structure import Structure
from synapse_ops.errors import ConfigError, Refused, ToolFailed, Unreachable
from synapse_ops.operations.database.dump import DumpReport, _fitting_tools, dump_database
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.stack import Stack
from synapse_ops.systems.encryption import decrypt_stream
from synapse_ops.systems.host.processes import ProcessMark
from synapse_ops.systems.postgres.connection import connect
from synapse_ops.systems.postgres.deparse import same_definitions
from synapse_ops.systems.postgres.dump_tools import open_tool
from synapse_ops.systems.postgres.fingerprint import read_fingerprint
from synapse_ops.systems.postgres.identity import SETTING, ServerFacts, ensure_identity
from synapse_ops.systems.postgres.programs import find_pg_tools
from synapse_ops.systems.postgres.structure import read_structure
from synapse_ops.systems.s3.records import StoreFeatures
from synapse_ops.systems.s3.store import ObjectReader, ObjectStore, StoreAccess
from tests.operations.database.backups import make_stack
from tests.rich_database import CONTENT, CREATE_ROLES
from tests.servers import PASSWORD, PostgresServer

CHILD_DEADLINE_S = 60.0
SESSION_GONE_S = 3.0  # a closed session is still listed for a moment
WRITES = ["started.json", "heartbeat.json", "database.dump", "globals.sql", "fingerprint.json", "structure.json"]
WRITES += ["supplement.sql"]


@pytest.fixture(scope="module")
def rich(postgres_server: PostgresServer) -> Iterator[str]:
    """The conninfo of a database that holds an object of every kind."""
    name = f"rich_{secrets.token_hex(4)}"
    postgres_server.execute(CREATE_ROLES)
    postgres_server.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    postgres_server.execute(CONTENT, name)
    yield postgres_server.conninfo(name)
    postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def stack(tmp_path: Path, rich: str, bucket_url: str, object_store_access: StoreAccess) -> Stack:
    return make_stack(tmp_path, rich, bucket_url, object_store_access)


def database_of(stack: Stack) -> str:
    return stack.spec.database.databases[0]


def restore(report: DumpReport, store: ObjectStore, target: str) -> str:
    """Pour the dump into an empty database and return what pg_restore complained of."""
    data = store.read_bytes(report.place.key("database.dump"))
    program = str(find_pg_tools(17).path("pg_restore"))
    done = subprocess.run([program, "--dbname", target], input=data, capture_output=True, check=False)
    return done.stderr.decode()


def test_what_was_dumped_restores_to_the_same_fingerprint_and_structure(
    stack: Stack, fresh_database: Callable[..., str]
) -> None:
    """A database with an object of every kind survives dump and restore without one difference."""
    store = stack.database_repository().store
    report = dump_database(stack, database_of(stack), set_id="tick")
    target = fresh_database()

    assert restore(report, store, target) == ""

    expected = Fingerprint.from_json(store.read_bytes(report.place.key("fingerprint.json")))
    shape = Structure.from_json(store.read_bytes(report.place.key("structure.json")))
    of_the_database = ["database", "setting"]  # carried by pg_restore --create only
    assert fingerprint.compare(expected, read_fingerprint(target)) == ()
    with same_definitions(target) as is_same:
        copy = read_structure(target)
        assert structure.compare(shape, copy, is_same=is_same, without_kinds=of_the_database) == ()


def test_the_record_names_every_object_as_it_is_stored(stack: Stack) -> None:
    """backup.json holds size and sha256 of each object, the digests of the two documents, and no secret."""
    store = stack.database_repository().store
    report = dump_database(stack, database_of(stack), set_id="tick")
    listed = {info.key.removeprefix(report.place.prefix): info.size_bytes for info in store.list_objects()}
    stored = store.read_bytes(report.place.key("backup.json"))
    record = DumpRecord.from_json(stored, key="backup.json")

    assert record == report.record
    assert {written.name: written.size_bytes for written in record.objects} == {
        name: size for name, size in listed.items() if name in WRITES[2:]
    }
    assert set(listed) == {*WRITES, "backup.json"}
    assert record.fingerprint_digest == report.fingerprint.digest()
    assert record.row_count == report.fingerprint.row_count > 1000
    assert (record.source.database, record.set_id, record.role_passwords) == (database_of(stack), "tick", False)
    assert PASSWORD.encode() not in stored
    assert b"SCRAM-SHA-256" not in store.read_bytes(report.place.key("globals.sql"))
    assert any(warning.startswith("not encrypted") for warning in report.warnings)


def test_an_encrypted_dump_holds_verifiers_and_opens_with_its_key_only(
    tmp_path: Path, rich: str, bucket_url: str, object_store_access: StoreAccess
) -> None:
    """With recipients every object is age, and role passwords are part of it (role_passwords: encrypted)."""
    identity = pyrage.x25519.Identity.generate()
    stack = make_stack(tmp_path, rich, bucket_url, object_store_access, recipients=(str(identity.to_public()),))
    store = stack.database_repository().store
    report = dump_database(stack, database_of(stack))
    plain = {}
    for written in report.record.objects:
        sink = io.BytesIO()
        data = store.read_bytes(report.place.key(written.name))
        assert data.startswith(b"age-encryption.org/v1\n")
        decrypt_stream(io.BytesIO(data), sink, [str(identity)], what=written.name)
        plain[written.name] = sink.getvalue()
        assert written.plain_size_bytes == len(plain[written.name])

    assert set(plain) == {f"{name}.age" for name in WRITES[2:]}
    assert plain["database.dump.age"].startswith(b"PGDMP")
    assert b"SCRAM-SHA-256" in plain["globals.sql.age"]
    assert report.record.role_passwords
    assert Fingerprint.from_json(plain["fingerprint.json.age"]) == report.fingerprint


class CutStore(ObjectStore):
    """A real store whose connection breaks at the n-th object that it is to write, before or after writing it."""

    def __init__(self, url: str, access: StoreAccess, cut_at: str, *, after: bool) -> None:
        super().__init__(url, access)
        self.cut_at = cut_at
        self.after = after

    def put_bytes(self, key: str, data: bytes, **conditions: Any) -> Any:
        if key.endswith("/" + self.cut_at):
            if self.after:
                super().put_bytes(key, data, **conditions)
            raise Unreachable("the store is gone")
        return super().put_bytes(key, data, **conditions)


@dataclass(frozen=True)
class CutStack(Stack):
    """A stack over a store that breaks."""

    cut_at: str = ""
    after: bool = False

    def database_repository(self) -> Repository:
        whole = super().database_repository().store
        return Repository(CutStore(whole.url, whole.access, self.cut_at, after=self.after))


@pytest.mark.parametrize(
    ("name", "after"), [*((name, False) for name in WRITES), ("database.dump", True), ("structure.json", True)]
)
def test_a_dump_cut_at_any_write_is_never_listed(stack: Stack, name: str, *, after: bool) -> None:
    """Whatever object the connection breaks at, no backup.json appears, and no upload dangles."""
    cut = CutStack(stack.loaded, stack.state_dir, cut_at=name, after=after)

    with pytest.raises(Unreachable, match="the store is gone"):
        dump_database(cut, database_of(stack))

    store = stack.database_repository().store
    assert not [info.key for info in store.list_objects() if info.key.endswith("backup.json")]
    assert list(store.list_uploads()) == []


class ReadsLate(ObjectStore):
    """A real store taken for one without checksums. held: whether the snapshot was held as each object was read."""

    def __init__(self, url: str, access: StoreAccess, conninfo: str) -> None:
        super().__init__(url, access)
        self.conninfo = conninfo
        self.held: list[tuple[str, bool]] = []

    @property
    def features(self) -> StoreFeatures:  # type: ignore[override]
        return replace(super().features, keeps_checksums=False)

    def open_reader(self, key: str) -> ObjectReader:
        self.held.append((key.rpartition("/")[2], self._is_held()))
        return super().open_reader(key)

    def _is_held(self) -> bool:
        """Return whether its session is still there when a session that has been closed would be gone."""
        statement = "select count(*) from pg_stat_activity where application_name = 'synapse-ops snapshot'"
        deadline = time.monotonic() + SESSION_GONE_S
        with connect(self.conninfo) as connection:
            while connection.execute(statement).fetchone() != (0,):
                if time.monotonic() > deadline:
                    return True
        return False


def test_the_snapshot_on_the_source_is_released_before_the_dump_is_read_back(stack: Stack, rich: str) -> None:
    """Reading every byte again takes as long as the dump; vacuum on the source is not held back for it."""
    whole = stack.database_repository().store
    late = ReadsLate(whole.url, whole.access, rich)

    class LateStack(Stack):
        def database_repository(self) -> Repository:
            return Repository(late)

    report = dump_database(LateStack(stack.loaded, stack.state_dir), database_of(stack))

    assert sorted(late.held) == [(name, False) for name in sorted(WRITES[2:])]
    assert whole.head(report.place.key("backup.json")) is not None


def test_killed_in_the_middle_it_leaves_no_backup_and_no_pg_dump(
    stack: Stack, rich: str, postgres_server: PostgresServer
) -> None:
    """After kill -9 nothing is listed, and pg_dump dies with its parent instead of holding its snapshot on."""
    code = (
        "import sys; from pathlib import Path; from synapse_ops.operations.stack import open_stack;"
        "from synapse_ops.operations.database.dump import dump_database;"
        "dump_database(open_stack(Path(sys.argv[1]), Path(sys.argv[2])), sys.argv[3])"
    )
    arguments = [str(stack.loaded.path), str(stack.state_dir), database_of(stack)]
    with psycopg.connect(rich) as blocker:
        blocker.execute("LOCK TABLE app.people IN ACCESS EXCLUSIVE MODE")  # pg_dump waits here
        child = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.DEVNULL)
        try:
            wait_for(lambda: dumping_sessions(postgres_server) > 0, "pg_dump did not connect")
            dumps = children_named(child.pid, "pg_dump")
            child.send_signal(signal.SIGKILL)
        finally:
            child.kill()
            child.wait()
        assert dumps
        wait_for(lambda: not any(mark.is_alive() for mark in dumps), "pg_dump outlived its parent")

    store = stack.database_repository().store
    names = {info.key.rpartition("/")[2] for info in store.list_objects()}
    assert "started.json" in names
    assert "backup.json" not in names


def wait_for(is_so: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + CHILD_DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.05)


def dumping_sessions(server: PostgresServer) -> int:
    with psycopg.connect(server.conninfo()) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'synapse-ops pg_dump'"
        row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0


def children_named(pid: int, name: str) -> list[ProcessMark]:
    """Return the marks of a process's living children of one program."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(pid).children(recursive=True)
        return [mark for one in children if one.name() == name and (mark := ProcessMark.of(one.pid))]
    return []


def test_no_program_has_the_password_in_argv_or_environment_or_message(rich: str) -> None:
    """Other users of the host can read argv; a failed program's message is kept and shown."""
    tools = find_pg_tools(17)
    with open_tool(tools, "pg_dump", ["--format=custom"], rich) as tool:
        seen = Path(f"/proc/{tool.pid}/cmdline").read_bytes() + Path(f"/proc/{tool.pid}/environ").read_bytes()
        assert tool.read()[:5] == b"PGDMP"
        assert tool.finish() == ()
    with open_tool(tools, "pg_dump", ["--schema=none_such", "--strict-names"], rich) as failing:
        failing.read()
        with pytest.raises(ToolFailed) as raised:
            failing.finish()

    assert PASSWORD.encode() not in seen
    assert "none_such" in raised.value.detail
    assert PASSWORD not in raised.value.render() + " ".join(raised.value.argv)


def test_a_pg_dump_older_than_the_server_is_refused_with_both_versions() -> None:
    """An older pg_dump can lose what it does not know: refused before anything is written."""
    future = ServerFacts("99.1", 990001, False, 0, "UTF8", "C", None, 1, "postgres")

    with pytest.raises(Refused) as raised:
        _fitting_tools(future)

    assert "99.1" in raised.value.message
    assert find_pg_tools().version in raised.value.message


def test_a_role_that_may_not_read_everything_is_refused(
    tmp_path: Path, rich: str, postgres_server: PostgresServer, bucket_url: str, object_store_access: StoreAccess
) -> None:
    """Row security would hide rows from it without a word."""
    postgres_server.execute("CREATE ROLE weak LOGIN PASSWORD 'feeble'")
    parts = psycopg.conninfo.conninfo_to_dict(rich)
    weak = psycopg.conninfo.make_conninfo("", **{**parts, "user": "weak", "password": "feeble"})
    stack = make_stack(tmp_path, weak, bucket_url, object_store_access)

    with pytest.raises(ConfigError, match='role "weak" is neither a superuser nor'):
        dump_database(stack, database_of(stack))
    assert list(stack.database_repository().store.list_objects()) == []


def test_first_backups_at_once_agree_on_one_generation(postgres_server: PostgresServer) -> None:
    """Several first backups of one server write under one identity, not under one each."""

    def ask(_: int) -> str:
        with connect(postgres_server.conninfo()) as connection:
            return str(ensure_identity(connection))

    before = ask(0).rpartition("-")[2]
    postgres_server.execute(f'ALTER DATABASE postgres RESET "{SETTING}"')
    with ThreadPoolExecutor(6) as pool:
        found = set(pool.map(ask, range(6)))
    postgres_server.execute(f"ALTER DATABASE postgres SET \"{SETTING}\" = '{before}'")

    assert len(found) == 1
    assert not found.pop().endswith(before)


def test_a_sequence_in_use_is_bracketed(stack: Stack, rich: str) -> None:
    """Values drawn while the dump runs do not make the backup differ from its own restore."""
    drawing = True

    def draw() -> None:
        with psycopg.connect(rich, autocommit=True) as connection:
            while drawing:
                connection.execute("SELECT nextval('app.numbers')")

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(draw)
        try:
            report = dump_database(stack, database_of(stack))
        finally:
            drawing = False
        busy.result()

    bracket = report.fingerprint.sequences["app.numbers"]
    assert bracket.before.last_value < bracket.after.last_value
