"""A server of the embedded stack that is one plain process: Redis, the stand-in application.

It is found again through its mark in state.json, and never restarted by itself: `local up` starts what is missing.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synapse_ops.errors import DeadlineExceeded, ToolFailed
from synapse_ops.systems.local_processes import ProcessMark, ServerIdentity, end_process, spawn

POLL_S = 0.02
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0


@dataclass
class ProgramServer:
    """One process by its command line. Objects only; nothing runs until `begin_start`.

    is_ready: asked until it says yes. known: its mark from an earlier supervisor, if any.
    """

    name: str
    argv: Sequence[str | Path]
    identity: ServerIdentity | None
    log_path: Path
    environment: Mapping[str, str]
    is_ready: Callable[[], bool]
    cwd: Path = Path("/")
    known: ProcessMark | None = None
    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def begin_start(self) -> None:
        """Launch without waiting; it ends when the calling thread ends."""
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        self._child = spawn(
            self.identity,
            self.argv,
            log_path=self.log_path,
            env=self.environment,
            cwd=self.cwd,
            die_with_parent=signal.SIGTERM,
        )
        self.known = ProcessMark.of(self._child.pid)

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
        if self._child is not None and self._child.poll() is not None:
            self._child = None
        return self.known if self.known is not None and self.known.is_alive() else None

    def stop(self) -> None:
        if self.known is not None:
            end_process(self.known, signal.SIGTERM, timeout_s=STOP_TIMEOUT_S)
        if self._child is not None:
            self._child.wait(STOP_TIMEOUT_S)
            self._child = None
