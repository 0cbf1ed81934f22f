"""The proof that an old primary cannot write: a cause, and its effect. One without the other proves nothing.

Measured: after kill -9 of the postmaster both probes fail while an orphaned backend goes on to commit. So the cause is
that no process of that data directory lives, twice a second apart, and that nobody is attached to its shared memory;
and whoever says so must have seen the living server by the same means before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from synapse_ops.domain.failover.evidence import Sign


@dataclass(frozen=True, slots=True)
class Living:
    """A server as an authority saw it while it lived. processes: at least one; shmid: of its System V segment."""

    processes: int
    shmid: int | None


@dataclass(frozen=True, slots=True)
class Cause:
    """What ended the server. killed: processes that were sent SIGKILL; left: of two looks, one second apart.

    attached: processes attached to its shared memory segment; None where it is unknown. marker: incident in PGDATA.
    saw_alive: the server as this authority saw it while it was armed; None: it never did.
    """

    system_identifier: str
    data_dir: str
    boot_id: str
    killed: int
    left: tuple[int, int]
    attached: int | None
    marker: str
    saw_alive: Living | None

    def fault(self, incident: str) -> str:
        """Return why this proves nothing; empty: it does."""
        if self.saw_alive is None or self.saw_alive.processes == 0:
            return "the authority never saw the server alive, so that it sees none proves nothing"
        if any(self.left):
            return f"{max(self.left)} processes still work in {self.data_dir}"
        if self.attached is None:
            return "whether a process is attached to its shared memory is not known"
        if self.attached:
            return f"{self.attached} processes are attached to its shared memory"
        if self.marker != incident:
            return f'the marker in {self.data_dir} is of incident "{self.marker}"'
        return ""

    def as_json(self) -> dict[str, Any]:
        return {
            "system_identifier": self.system_identifier,
            "data_dir": self.data_dir,
            "boot_id": self.boot_id,
            "killed": self.killed,
            "left": list(self.left),
            "attached": self.attached,
            "marker": self.marker,
        }


@dataclass(frozen=True, slots=True)
class Effect:
    """What clients see. new: of a new session; kept: of the session that was open before."""

    new: Sign
    kept: Sign

    @property
    def fault(self) -> str:
        """Return why this does not fit a fenced server; empty: it does. A time-out proves nothing."""
        if self.new is not Sign.REFUSED:
            return f"a new session: {self.new}, expected: {Sign.REFUSED}"
        if not self.kept.is_hard:
            return f"a session that was open: {self.kept}, expected: {Sign.ENDED}"
        return ""

    def as_json(self) -> dict[str, Any]:
        return {"new_session": str(self.new), "open_session": str(self.kept)}
