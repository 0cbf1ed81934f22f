"""A receiver under test: as a process of its own or in this one, and what the repository holds in the end."""

from __future__ import annotations

import io
import json
import secrets
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Segment
from synapse_ops.domain.database.wal_chain import WalArchive
from synapse_ops.operations.database.wal_archive import list_wal_identities, read_wal_archive
from synapse_ops.operations.database.wal_fetch import fetch_segment
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.stack import Stack, open_stack
from synapse_ops.services.wal_receiver.receiver import SLOT, Receiver
from synapse_ops.systems.s3.store import StoreAccess

DEADLINE_S = 30.0


def wait_until(is_true: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Return the first true answer. Fails after `deadline_s`."""
    deadline = time.monotonic() + deadline_s
    while not (found := is_true()):
        assert time.monotonic() < deadline, f"not in {deadline_s} s: {what}"
        time.sleep(0.02)
    return found


class _Running(threading.Thread):
    """A receiver in a thread. fault: what it should never raise."""

    def __init__(self, receiver: Receiver) -> None:
        super().__init__(daemon=True)
        self._receiver = receiver
        self.fault: BaseException | None = None

    def run(self) -> None:
        try:
            self._receiver.run()
        except BaseException as fault:  # noqa: BLE001 - the test asks for it
            self.fault = fault


@dataclass
class Receiving:
    """One repository and state directory, and the server whose WAL goes there."""

    folder: Path
    spec: Path
    conninfo: str
    data_dir: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def stack(self) -> Stack:
        return open_stack(self.spec, self.folder)

    @property
    def repository(self) -> Repository:
        return self.stack.database_repository()

    def archive(self) -> WalArchive:
        [identity] = list_wal_identities(self.repository)
        return read_wal_archive(self.repository, identity, age_identities=self.stack.age_identities())

    def execute(self, *statements: str) -> Any:
        """Run statements and return the first value of the last one."""
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            for statement in statements:
                found = connection.execute(statement)  # type: ignore[call-overload]
            return found.fetchone()[0] if found.description else None

    def flushed(self) -> Lsn:
        return Lsn.parse(self.execute("select pg_current_wal_flush_lsn()::text"))

    @contextmanager
    def in_process(self) -> Iterator[Receiver]:
        """Run a receiver in threads of this process."""
        receiver = Receiver(self.stack, self.folder)
        thread = _Running(receiver)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.stop()
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
            assert thread.fault is None

    def start(self) -> subprocess.Popen[bytes]:
        """Start a receiver as its own process."""
        argv = [sys.executable, "-m", "synapse_ops.services.wal_receiver"]
        argv += ["--spec", str(self.spec), "--state-dir", str(self.folder)]
        with (self.folder / "receiver.log").open("ab") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        self.processes.append(process)
        return process

    def health(self) -> dict[str, Any]:
        """Return what /health says; empty while nothing is served."""
        try:
            url = json.loads((self.folder / "wal" / "address.json").read_text())["url"]
            with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
                return dict(json.loads(reply.read()))
        except urllib.error.HTTPError as error:
            return dict(json.loads(error.read()))
        except (OSError, ValueError):
            return {}

    def wait_durable(self, lsn: Lsn | None = None) -> Lsn:
        """Wait until the process has stored WAL up to a position: by default what is flushed now."""
        wanted = lsn or self.flushed()
        wait_until(lambda: Lsn.parse(self.health().get("durable_lsn", "0/0")) >= wanted, f"durable {wanted}")
        return wanted

    def fetched(self, segment: Segment, archive: WalArchive | None = None) -> tuple[bytes, int]:
        """Return a segment as a restore gets it, and how many bytes of it were stored."""
        sink = io.BytesIO()
        archive = archive or self.archive()
        stored = fetch_segment(
            self.repository,
            archive,
            segment,
            sink,
            history=archive.history(archive.newest.timeline),
            age_identities=self.stack.age_identities(),
        )
        return sink.getvalue(), stored

    def own_file(self, segment: Segment) -> bytes:
        return (self.data_dir / "pg_wal" / segment.name).read_bytes()

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait(DEADLINE_S)

        def drop() -> bool:
            with psycopg.connect(self.conninfo, autocommit=True) as connection:
                connection.execute(
                    "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots where active_pid > 0"
                )
                connection.execute(
                    "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = %s", [SLOT]
                )
            return True

        wait_until(drop, "the slot is dropped")


@contextmanager
def receiving(
    folder: Path, conninfo: str, data_dir: Path, access: StoreAccess, bucket_url: str, more: str = ""
) -> Iterator[Receiving]:
    """Yield what a receiver needs; nothing runs yet. more: lines of the spec, at its top level."""
    (folder / "admin.url").write_text(conninfo)
    keys = f"[default]\naws_access_key_id = {access.access_key}\naws_secret_access_key = {access.secret_key}\n"
    (folder / "store.keys").write_text(keys)
    for name in ("admin.url", "store.keys"):
        (folder / name).chmod(0o600)
    spec = folder / f"spec-{secrets.token_hex(4)}.yaml"
    spec.write_text(
        f"database: {{admin: 'file:{folder}/admin.url'}}\n"
        f"object_store: {{endpoint: '{access.endpoint}', credentials: 'file:{folder}/store.keys'}}\n"
        f"backup: {{database: {{destination: '{bucket_url}', wal: {{chunk_interval: 200ms}}}}}}\n" + more
    )
    found = Receiving(folder, spec, conninfo, data_dir)
    try:
        yield found
    finally:
        found.end()


def wait_durable(wal: Receiving, receiver: Receiver) -> Lsn:
    """Wait until a receiver of this process has stored what is flushed now."""
    wanted = wal.flushed()
    wait_until(lambda: receiver.standing.durable_lsn >= wanted, f"durable {wanted}: {receiver.standing}")
    return wanted
