"""Answers archive_command and restore_command over a Unix socket: what starts for each segment knows nothing but that.

The words of a request, and of its answer, are those of `cli/wal_client.py`. The socket lies in a directory that only
our user enters, who is the server's: the files that are named are read and written as that user. A request that was not
answered was not done as far as the server knows, and each may be repeated.
"""

from __future__ import annotations

import os
import socketserver
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.database.wal_restore import WalFiles, answer
from synapse_ops.operations.stack import Stack
from synapse_ops.services.wal_receiver.pusher import Pusher
from synapse_ops.services.wal_receiver.standing import Standing
from synapse_ops.systems.host.errors import host_error

SOCKET = "commands.sock"  # in the receiver's folder of the state directory
REQUEST_S = 10.0

log = structlog.get_logger()


class WalCommands:
    """Answers while the block lasts; `tend` is called now and then meanwhile."""

    def __init__(self, stack: Stack, folder: Path, standing: Standing, digest_key: Path | None) -> None:
        self._stack, self._folder, self._standing = stack, folder, standing
        self._pusher = Pusher(stack, folder, standing, digest_key)
        self._pushing = threading.Lock()
        self._files: tuple[Path, WalFiles] | None = None

    def __enter__(self) -> Self:
        commands = self

        class Handler(socketserver.StreamRequestHandler):
            timeout = REQUEST_S

            def handle(self) -> None:
                code, said = commands._reply(self.rfile.read())
                self.wfile.write(f"{code} {said}".encode("utf-8", errors="replace"))

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            block_on_close = False

        (self._folder / SOCKET).unlink(missing_ok=True)  # of a process that was killed: we hold the lock
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:  # an address has at most 107 bytes
            self._server = Server(f"/proc/self/fd/{folder}/{SOCKET}", Handler)
        finally:
            os.close(folder)
        threading.Thread(target=self._server.serve_forever, name="wal-commands", daemon=True).start()
        self._standing.server, self._standing.fault = "archive_command", ""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        (self._folder / SOCKET).unlink(missing_ok=True)
        with self._pushing:
            self._pusher.close()

    def tend(self) -> None:
        """Give up the lease when nothing is handed over."""
        if self._pushing.acquire(blocking=False):
            try:
                self._pusher.close_idle()
            finally:
                self._pushing.release()

    def _reply(self, request: bytes) -> tuple[int, str]:
        verb, folder, *words = [os.fsdecode(word) for word in request.split(b"\0")]
        data_dir = Path(folder)
        if verb == "fetch":
            name, path = words
            return answer(lambda: self._files_of(data_dir).write(name, data_dir / path, data_dir), data_dir)
        return self._push(lambda: self._pusher.push(data_dir, data_dir / words[0]), Path(words[0]).name)

    def _files_of(self, data_dir: Path) -> WalFiles:
        if self._files is None or self._files[0] != data_dir:
            found = WalFiles(self._stack.database_repository(), age_identities=self._stack.age_identities())
            self._files = (data_dir, found)
        return self._files[1]

    def _push(self, push: Callable[[], str], name: str) -> tuple[int, str]:
        try:
            with self._pushing:
                said = push()
        except SynapseOpsError as error:
            self._standing.fault = error.message
            log.warning("WAL was not stored", file=name, fault=error.message)
            return error.exit_code, error.render()
        except OSError as error:
            known = host_error(error)
            self._standing.fault = known.message if known is not None else str(error)
            return 15, f"error: {self._standing.fault}"
        except Exception:
            log.exception("WAL was not stored", file=name)
            self._standing.fault = "internal error: the log has it"
            return 1, f"error: {self._standing.fault}"
        self._standing.fault = ""
        log.info("WAL was handed over", file=name, result=said)
        return 0, ""
