"""A server of the embedded stack that is one plain process: Redis, the stand-in application.

It is found again by the folder that it works in, which is its own: what it starts works elsewhere. Nothing restarts it
but the next `local up`.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synapse_ops.errors import DeadlineExceeded, ToolFailed
from synapse_ops.systems.host.processes import (
    START_TIMEOUT_S,
    ProcessMark,
    ServerIdentity,
    end_process,
    processes_in,
    spawn,
)

POLL_S = 0.02
STOP_TIMEOUT_S = 15.0


@dataclass
class ProgramServer:
    """One process by its command line. Objects only; nothing runs until `begin_start`.

    is_ready: asked until it says yes. folder: its own, made where it is missing.
    """

    name: str
    argv: Sequence[str | Path]
    identity: ServerIdentity | None
    log_path: Path
    environment: Mapping[str, str]
    is_ready: Callable[[], bool]
    folder: Path
    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def begin_start(self, *, die_with_parent: bool = True) -> None:
        """Launch without waiting. die_with_parent: it ends when the calling thread ends."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self._child = spawn(
            self.identity,
            self.argv,
            log_path=self.log_path,
            env=self.environment,
            cwd=self.folder,
            die_with_parent=signal.SIGTERM if die_with_parent else None,
        )

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once it answers. Raises ToolFailed with its last words when it ended, DeadlineExceeded."""
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            if self._child is not None and self._child.poll() is not None:
                raise ToolFailed([self.name], status=self._child.returncode, stderr_tail=self.log_tail())
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"{self.name} was not ready within {timeout_s:g} s", detail=self.log_tail())
            time.sleep(POLL_S)

    def log_tail(self) -> str:
        return self.log_path.read_text(errors="replace")[-1500:].strip() if self.log_path.exists() else ""

    def mark(self) -> ProcessMark | None:
        """Return the living process: our child, else whichever works in its folder."""
        if self._child is not None:
            return ProcessMark.of(self._child.pid) if self._child.poll() is None else None
        return next(iter(processes_in(self.folder)), None)

    def stop(self) -> None:
        """End it, politely first. No-op when nothing runs."""
        for mark in processes_in(self.folder):
            end_process(mark, signal.SIGTERM, timeout_s=STOP_TIMEOUT_S)
        if self._child is not None:
            self._child.wait(STOP_TIMEOUT_S)
            self._child = None
