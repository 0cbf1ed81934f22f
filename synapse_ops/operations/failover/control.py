"""What a failover needs of the host of a node: to see its server alive, to end it for good, to bring it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.failover.fence import Cause, Living
from synapse_ops.domain.failover.incident import WalBehind


class NodeControl(Protocol):
    """The authority over one node. Where there is none for a node, nothing is failed over automatically."""

    name: str

    def living(self) -> Living | None:
        """Return what lives of the server; None: nothing is seen."""

    def wal_written_ns(self) -> int | None:
        """Return when the server last wrote WAL, in ns of the host's clock; None: it cannot be seen."""

    def fence(
        self, incident: str, timeline: int, saw_alive: Living | None, succeeds: frozenset[str] = frozenset()
    ) -> Cause:
        """End the server so that no start as a primary follows, and return the cause half of the proof.

        Acts only on a server of this timeline; a marker of another incident than those that this one succeeds, or a
        newer timeline, is left alone.
        """

    def wal_behind(self, timeline: int, position: Lsn) -> WalBehind:
        """Return what the dead server's WAL holds behind the end of a record."""

    def stop_cleanly(self, incident: str, timeline: int, senders: Sequence[int], timeout_s: float) -> Lsn:
        """Mark the running primary so that nothing starts it, stop it in order; return where its last checkpoint is.

        senders: pids that send WAL to others than its standby; the shutdown waits for them for half a second.
        Raises a SynapseOpsError when it has not ended in order: nothing of its end is proven then.
        """

    def start_again(self, incident: str) -> None:
        """Take `stop_cleanly` back, wherever it was cut: the server takes writes, and the marker is gone."""

    def rejoin(self, incident: str, source: str, fork: Lsn) -> dict[str, Any]:
        """Bring the fenced server back as a standby of `source` (a conninfo of a superuser; never logged).

        Returns how, of JSON types. WAL behind the fork is kept beside it.
        """


@dataclass(frozen=True)
class FailoverPlace:
    """What a failover works with on this host. controls: by name of the node, of which there are two.

    application: conninfo by which the application writes, whichever node takes writes. slots: of the standby and the
    WAL receiver, for a new primary.
    """

    controls: Mapping[str, NodeControl]
    application: Callable[[], str] = field(repr=False)
    slots: tuple[str, ...]
