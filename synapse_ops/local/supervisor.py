"""The one process that owns the servers of an embedded stack: `python -m synapse_ops.local.supervisor STATE_DIR`.

Life: it holds an exclusive lock for as long as it lives, so that two `up` at once end in one supervisor. It runs in a
session of its own, therefore a closed terminal does not cut it off half-way; it watches the sessions that asked for
the stack and stops everything in order when the last of them has ended, unless one asked it to stay or had no terminal.
Death: however it dies, the kernel signals every server to stop (PR_SET_PDEATHSIG), so nothing outlives it. The next
supervisor first ends what state.json and the data directories still show.
It restarts nothing by itself: a primary that was killed may be about to be failed over. `up` starts what is missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import IO, Any

from synapse_ops.errors import SynapseOpsError
from synapse_ops.local.control import control_socket, packed, read_request, reply
from synapse_ops.local.layout import StackLayout, find_layout
from synapse_ops.local.stack import StackServers, make_stack
from synapse_ops.local.stack_spec import write_spec
from synapse_ops.local.state import ServerState, read_state, write_state
from synapse_ops.systems.local_processes import ProcessMark
from synapse_ops.systems.pg_server import remove_socket_dir

LOOK_EVERY_S = 1.0


class Supervisor:
    """Answers requests one after the other in the main thread, whose life is that of the servers."""

    def __init__(self, layout: StackLayout) -> None:
        self.layout = layout
        self.state = read_state(layout.state_file)
        self.stack: StackServers | None = None
        self.sessions: set[ProcessMark] = set()
        self.stays = False
        self.is_ending = False
        self.is_wanted = False  # between an `ensure` and a `stop`: a server that does not live then has ended by itself

    def run(self) -> None:
        """Serve until told to stop, or until the last terminal that asked has been closed."""
        path = control_socket(self.layout)
        path.unlink(missing_ok=True)  # the lock says that nobody listens there
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(16)
            self._write_state()
            try:
                while not self.is_ending:
                    self._serve_once(listener)
            finally:
                self._stop(lambda _: None)
                remove_socket_dir(path.parent)

    def _serve_once(self, listener: socket.socket) -> None:
        ready, _, _ = select.select([listener], [], [], LOOK_EVERY_S)
        if ready:
            connection, _ = listener.accept()
            with connection:
                self._answer(connection, read_request(connection))
        elif self._has_changed():
            self._write_state()
        if self.sessions and not self.stays and not any(mark.is_alive() for mark in self.sessions):
            _log("the terminal that asked for the stack was closed")
            self.is_ending = True

    def _answer(self, connection: socket.socket, body: dict[str, Any]) -> None:
        def tell(stage: str) -> None:
            reply(connection, {"stage": stage})

        try:
            if body.get("action") == "ensure":
                self._ensure(body, tell)
            elif body.get("action") == "stop":
                self._stop(tell)
                self.is_ending = True
            reply(connection, {"done": {"pid": os.getpid()}})
        except SynapseOpsError as error:
            _log(error.render())
            reply(connection, {"error": packed(error)})
            self.is_ending = self.is_ending or not self._anything_lives()
        except OSError as error:  # a full disk, a folder that was taken away
            what = error.strerror or type(error).__name__
            told = SynapseOpsError(f"could not run the embedded stack: {what}", detail=str(error.filename or ""))
            reply(connection, {"error": packed(told)})
            self.is_ending = self.is_ending or not self._anything_lives()
        except Exception:
            traceback.print_exc()
            bug = SynapseOpsError(
                "the supervisor met a fault of its own", detail=f"see {self.layout.log('supervisor')}"
            )
            reply(connection, {"error": packed(bug)})
            raise

    def _ensure(self, body: dict[str, Any], tell: Any) -> None:
        session = body.get("session")
        if session:
            self.sessions.add(ProcessMark(int(session["pid"]), float(session["started_s"])))
        else:
            self.stays = True
        if self.stack is None:
            known = {name: server.mark for name, server in self.state.servers.items()}
            alive = {name: mark for name, mark in known.items() if mark is not None and mark.is_alive()}
            self.stack = make_stack(self.layout, self.state.ports, alive)
            self.stack.stop(lambda _: None)  # what a killed supervisor left is on its way out: wait for it
        self.is_wanted = True
        try:
            self.stack.start(tell)
            write_spec(self.layout, self.stack.ports)
            self.stack.start_watch(tell)
        finally:
            self._write_state()

    def _stop(self, tell: Any) -> None:
        self.is_wanted = False
        if self.stack is not None:
            self.stack.stop(tell)
        self._write_state()

    def _anything_lives(self) -> bool:
        return self.stack is not None and any(self.stack.marks().values())

    def _has_changed(self) -> bool:
        if self.stack is None:
            return False
        shown = {name: server.pid for name, server in self.state.servers.items() if server.state == "running"}
        return shown != {name: mark.pid for name, mark in self.stack.marks().items() if mark is not None}

    def _write_state(self) -> None:
        me = ProcessMark.of(os.getpid())
        log = str(self.layout.log("supervisor"))
        self.state.supervisor = (
            ServerState("supervisor", "running", pid=me.pid, started_s=me.started_s, log=log) if me else None
        )
        if self.stack is not None:
            self.state.ports = self.stack.ports
            self.state.servers = _describe(self.stack, missing="ended" if self.is_wanted else "stopped")
        write_state(self.layout.state_file, self.state)


def _log(line: str) -> None:
    with contextlib.suppress(OSError):  # a full disk must not end us, and every server with us
        print(line, flush=True)


def _describe(stack: StackServers, *, missing: str) -> dict[str, ServerState]:
    ports = stack.ports
    postgres = stack.postgres()
    found = {}
    for name, mark in stack.marks().items():
        fence = postgres[name].fence() if name in postgres else None
        scheme = {"redis": "redis", "s3": "http", "api": "http", "watch": "http", "qdrant": "http"}.get(
            name, "postgresql"
        )
        found[name] = ServerState(
            name=name,
            state="fenced" if fence is not None and mark is None else "running" if mark is not None else missing,
            address=f"{scheme}://127.0.0.1:{ports['s3.port' if name == 's3' else name]}",
            pid=mark.pid if mark is not None else None,
            started_s=mark.started_s if mark is not None else None,
            data_dir=str(stack.layout.data / name) if name not in {"api", "watch"} else "",
            log=str(stack.layout.log(name)),
            detail=(fence or "").strip(),
        )
    return found


def take_lock(layout: StackLayout) -> IO[str] | None:
    """Return the held lock of a stack (keep it open), or None when a supervisor lives."""
    lock = layout.lock_file.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def main(state_dir: Path) -> None:
    layout = find_layout(state_dir)
    lock = take_lock(layout)
    if lock is None:
        return
    supervisor = Supervisor(layout)

    def end(number: int, frame: object) -> None:
        del number, frame
        supervisor.is_ending = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    with contextlib.closing(lock):
        supervisor.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
