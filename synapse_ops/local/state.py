"""`state.json`: what the embedded stack runs, readable by people and by every later command.

Written under the stack's lock, whole or not at all. It says what was true when it was written; whether a process still
lives is asked of the process (pid and start time), never of this file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from synapse_ops.systems.host.processes import ProcessMark

FORMAT = 1


@dataclass
class ServerState:
    """One server. state: running, ended (by itself), stopped (by `down`) or fenced. address: without a password."""

    name: str
    state: str
    address: str = ""
    pid: int | None = None
    started_s: float | None = None
    data_dir: str = ""
    log: str = ""
    detail: str = ""

    @property
    def mark(self) -> ProcessMark | None:
        if self.pid is None or self.started_s is None:
            return None
        return ProcessMark(self.pid, self.started_s)


@dataclass
class StackState:
    """owner: the process that the servers end with; None: they run until `down`.

    ports: by server and listener; kept when the stack is down, so that addresses stay the same.
    """

    owner: ProcessMark | None = None
    servers: dict[str, ServerState] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)


def read_state(path: Path) -> StackState:
    """Return what the file says; an absent or torn file reads as nothing running."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        owner = document["owner"]
        return StackState(
            owner=ProcessMark(**owner) if owner else None,
            servers={name: ServerState(**entry) for name, entry in document["servers"].items()},
            ports={str(name): int(port) for name, port in document["ports"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return StackState()


def write_state(path: Path, state: StackState) -> None:
    """Replace the file in one step, or leave it as it is when the disk is full.

    A report that cannot be written must not keep `up` or `down` from their work.
    """
    document: dict[str, Any] = {"format": FORMAT, **asdict(state)}
    making = path.with_suffix(".making")
    try:
        making.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        making.replace(path)
    except OSError:
        making.unlink(missing_ok=True)
