"""Who watches the database's nodes: the one that fails over, the one that only looks, or nobody, as the spec says.

`failover.manager: external`: another manager promotes. We ask both nodes once a second, say which takes writes and
follow it when that changes; nothing is fenced, claimed or promoted, and nothing is armed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import structlog

from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.failover.control import FailoverPlace
from synapse_ops.operations.failover.status import EXTERNAL, PULSE_S, forget_watch, write_watch
from synapse_ops.operations.health.server_probes import node_conninfo
from synapse_ops.operations.stack import Stack
from synapse_ops.services.prober.failover_watch import APPLICATION_NAME, INTERVAL_S, FailoverWatch
from synapse_ops.services.prober.watched_node import WatchedNode
from synapse_ops.systems.postgres.kept_session import KeptSession

log = structlog.get_logger()


class _Watch(Protocol):
    def run(self) -> None: ...
    def stop(self) -> None: ...


@dataclass
class PrimaryWatch:
    """Says in `failover/watch.json` which node takes writes. `run` blocks until `stop`."""

    stack: Stack
    state_dir: Path
    _told: dict[str, Any] = field(default_factory=dict)
    _told_at_s: float = 0.0
    _stopping: threading.Event = field(default_factory=threading.Event, repr=False)

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        nodes = [
            WatchedNode(name, KeptSession(node_conninfo(self.stack, name), application_name=APPLICATION_NAME))
            for name in self.stack.spec.failover.nodes
        ]
        try:
            while not self._stopping.is_set():
                self._tell(nodes)
                self._stopping.wait(INTERVAL_S)
        finally:
            for node in nodes:
                node.session.close()

    def _tell(self, nodes: list[WatchedNode]) -> None:
        """Ask each node, and write what is so at a change and now and then."""
        takes_writes = {node.name: _answer(node) for node in nodes}
        primaries = [name for name, answer in takes_writes.items() if answer]
        found: dict[str, Any] = {
            "state": EXTERNAL,
            "primary": primaries[0] if len(primaries) == 1 else None,
            "standby": next((name for name, answer in takes_writes.items() if answer is False), None),
            "unarmed": f"{len(primaries)} nodes take writes" if len(primaries) != 1 else "",
        }
        if found != self._told:
            log.info("the nodes of the database", **found)
        elif time.monotonic() - self._told_at_s < PULSE_S:
            return
        self._told, self._told_at_s = found, time.monotonic()
        write_watch(self.state_dir, found)


def _answer(node: WatchedNode) -> bool | None:
    """Return whether a node takes writes; None: it does not answer now."""
    node.seen = None
    node.ask()
    return node.seen.takes_writes if node.seen is not None else None


@dataclass
class DatabaseWatch:
    """Runs the watch that the spec in force asks for, and another one when that changes.

    place: what a failover works with on this host; None: nothing may be fenced from here.
    """

    stack: Callable[[], Stack]
    state_dir: Path
    place: FailoverPlace | None
    _stopping: threading.Event = field(default_factory=threading.Event, repr=False)

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        while not self._stopping.is_set():
            wanted = self._wanted()
            watch = self._make()
            if watch is None:
                forget_watch(self.state_dir)
                self._stopping.wait(INTERVAL_S)
                continue
            thread = threading.Thread(target=self._run, args=(watch,), name="failover", daemon=True)
            thread.start()
            while thread.is_alive() and self._wanted() == wanted and not self._stopping.wait(INTERVAL_S):
                pass
            watch.stop()
            thread.join()
            self._stopping.wait(INTERVAL_S)

    def _run(self, watch: _Watch) -> None:
        try:
            watch.run()
        except SynapseOpsError as fault:
            log.warning("the database's nodes cannot be watched", fault=fault.message)
        except Exception:
            log.exception("the watch of the database's nodes ended unexpectedly, and begins again")

    def _wanted(self) -> object:
        """Return what a watch depends on for its whole life."""
        spec = self.stack().spec
        return (spec.failover.manager, spec.failover.nodes, spec.database)

    def _make(self) -> _Watch | None:
        failover = self.stack().spec.failover
        if failover.standby is None:
            return None
        if failover.manager == "external":
            return PrimaryWatch(self.stack(), self.state_dir)
        return FailoverWatch(self.stack, self.state_dir, self.place) if self.place is not None else None
