"""PostgreSQL servers that live for one restore, inert: what they run cannot listen, call out, replicate or archive.

What is restored is the source superuser's code, and it runs here. The server therefore has its own configuration,
a Unix socket that only its identity can reach and no TCP, no archiving, no WAL senders or slots, no logical replication
workers, no preloaded libraries, event triggers off, autovacuum off. As root it runs in a network namespace with nothing
in it as well, so that restored code cannot call out. It is not durable either (fsync off): it is never needed after a
crash. It ends with the thread that started it; what lies on disk is operations/backup/throwaway_directory.py's.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import psutil

from synapse_ops.domain.backup.restore_estimate import wal_limit_for
from synapse_ops.operations.backup.deadline import Deadline
from synapse_ops.operations.backup.throwaway_directory import ThrowawayDir
from synapse_ops.systems.host.empty_network import enter_empty_network
from synapse_ops.systems.host.processes import START_TIMEOUT_S
from synapse_ops.systems.postgres.programs import PgTools, tools_for
from synapse_ops.systems.postgres.server import PgServer, make_socket_dir

NICENESS = 5  # a proof gives way to what is live on the same host
PORT = 5432  # part of the socket's name only: nothing listens on TCP


@dataclass(frozen=True)
class Throwaway:
    """A running throwaway; `superuser` is its bootstrap role.

    is_isolated: in a network namespace with nothing in it, so that what it runs cannot call out.
    """

    server: PgServer
    superuser: str
    is_isolated: bool

    def conninfo(self, database: str) -> str:
        """Return the superuser's conninfo; it holds no secret."""
        return self.server.conninfo(database, self.superuser)


def _inert_settings(major: int, *, database_size_bytes: int) -> dict[str, object]:
    """Return postgresql.conf of a throwaway: nothing leaves it, nothing outlives it, and a restore into it is quick."""
    memory = psutil.virtual_memory().total
    mib = 1024 * 1024
    settings: dict[str, object] = {
        "archive_mode": "off",
        "wal_level": "minimal",  # COPY into a table made in the same transaction then writes no WAL
        "max_wal_senders": 0,
        "max_replication_slots": 0,
        "max_logical_replication_workers": 0,
        "max_worker_processes": 4,  # of parallel queries and index builds; background workers need preloading
        "shared_preload_libraries": "",
        "session_preload_libraries": "",
        "local_preload_libraries": "",
        "autovacuum": False,
        "fsync": False,
        "synchronous_commit": "off",
        "full_page_writes": False,
        "checkpoint_timeout": "1h",
        "max_wal_size": f"{wal_limit_for(database_size_bytes) // mib}MB",
        "max_connections": 40,
        "max_locks_per_transaction": 2048,  # a comparison locks every table at once; 22 MiB for 80,000 relations
        "shared_buffers": f"{max(32, min(256, memory // 32 // mib))}MB",
        "maintenance_work_mem": f"{max(32, min(256, memory // 32 // mib))}MB",
        "dynamic_shared_memory_type": "mmap",  # files of the data directory: kill -9 leaves none in /dev/shm
        "jit": False,
        "max_prepared_transactions": 0,
        "log_min_error_statement": "panic",  # statements may hold verifiers of passwords
        "log_checkpoints": False,
    }
    if major >= 17:
        settings["event_triggers"] = False
    return settings


@contextlib.contextmanager
def throwaway_server(
    directory: ThrowawayDir,
    *,
    tools: PgTools,
    superuser: str,
    database_size_bytes: int,
    deadline: Deadline,
    recovery: Mapping[str, object] | None = None,
) -> Iterator[Throwaway]:
    """Run an inert server of `tools`' major version in the directory while the block lasts.

    superuser: name of its bootstrap role. When the deadline passes the server is killed, so that no query outlasts it.
    recovery: further settings for a cluster that lies in the directory already, and recovers as it starts; None: a new
    one is made. Raises what initdb and postgres say.
    """
    tools = tools_for(directory.identity, tools, directory.programs_dir)
    data_dir = directory.path / "data"
    server = PgServer(
        tools=tools,
        identity=directory.identity,
        data_dir=data_dir,
        socket_dir=make_socket_dir(data_dir, directory.identity),
        port=PORT,
        log_path=directory.path / "postgres.log",
        settings={**_inert_settings(tools.major, database_size_bytes=database_size_bytes), **(recovery or {})},
    )
    keeper = _Keeper(server, None if recovery is not None else superuser, deadline)
    try:
        is_isolated = keeper.run_server()
        _give_way(server)
        with _killed_at(deadline, server):
            yield Throwaway(server, superuser, is_isolated)
    finally:
        server.stop("immediate")
        keeper.end()


@contextlib.contextmanager
def _killed_at(deadline: Deadline, server: PgServer) -> Iterator[None]:
    """Kill the server when the deadline passes inside the block; raises DeadlineExceeded when it has passed."""
    watchdog = threading.Timer(deadline.remaining_s(), _kill, [server])  # read here: initdb and start took their part
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


class _Keeper:
    """The thread that a throwaway server is started from: outside the network, and alive for as long as the server.

    The server dies with the thread that started it, and a thread that has left the network cannot come back.
    """

    def __init__(self, server: PgServer, superuser: str | None, deadline: Deadline) -> None:
        self._server, self._superuser, self._deadline = server, superuser, deadline
        self._is_up, self._may_end = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._is_isolated = False
        self._thread = threading.Thread(target=self._keep, name="throwaway", daemon=True)

    def run_server(self) -> bool:
        """Make and start the server; return whether it is cut off from every network."""
        self._thread.start()
        self._is_up.wait()
        if self._error is not None:
            raise self._error
        return self._is_isolated

    def _keep(self) -> None:
        try:
            self._is_isolated = enter_empty_network()
            if self._superuser is not None:
                self._server.init(self._superuser, durable=False)
                self._server.start(self._deadline.remaining_s(START_TIMEOUT_S))
            else:
                self._server.start(self._deadline.remaining_s())
                self._server.wait_recovered(self._deadline.remaining_s())  # takes as long as its WAL is
        except BaseException as error:  # noqa: BLE001 - carried over to the thread that waits
            self._error = error
        self._is_up.set()
        self._may_end.wait()

    def end(self) -> None:
        self._may_end.set()
        self._thread.join()


def _give_way(server: PgServer) -> None:
    mark = server.mark()
    if mark is not None:
        with contextlib.suppress(psutil.Error, OSError):
            psutil.Process(mark.pid).nice(NICENESS)


def _kill(server: PgServer) -> None:
    mark = server.mark()
    if mark is not None:
        mark.signal(signal.SIGQUIT)
        if not mark.wait_gone(2.0):
            mark.signal(signal.SIGKILL)
