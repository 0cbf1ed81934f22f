"""How the receiver stands: what its metrics, its health and its log say. Written by its threads, read by the server."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from synapse_ops.domain.database.lsn import Lsn

HEALTHY_LAG_S = 30.0  # chunks go every second: more than this is no slow put any more
MARK_S = 0.1
NOWHERE = Lsn(0)


@dataclass
class Standing:
    """server: node it receives from, empty while it has none. fault: why it does not get on, empty when it does.

    gap_at_s: Unix time at which WAL was last found to be lost.
    """

    server: str = ""
    identity: str = ""
    timeline: int = 0
    fault: str = ""
    server_lsn: Lsn = NOWHERE
    received_lsn: Lsn = NOWHERE
    durable_lsn: Lsn = NOWHERE
    spool_bytes: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    put_s: float = 0.0
    gap_bytes: int = 0
    gap_at_s: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _waiting: deque[tuple[Lsn, float]] = field(default_factory=deque, repr=False)

    def count(self, name: str, by: int = 1) -> None:
        with self._lock:
            self.counts[name] = self.counts.get(name, 0) + by

    def note_waiting(self, received: Lsn) -> None:
        """Remember when WAL arrived that is not durable yet."""
        now_s = time.monotonic()
        with self._lock:
            while self._waiting and self._waiting[0][0] <= self.durable_lsn:
                self._waiting.popleft()
            if received > self.durable_lsn and (not self._waiting or now_s - self._waiting[-1][1] >= MARK_S):
                self._waiting.append((received, now_s))

    @property
    def lag_bytes(self) -> int:
        """WAL on the server that is not durable here."""
        return max(0, self.server_lsn - self.durable_lsn) if self.server else 0

    @property
    def lag_s(self) -> float:
        """For how long the oldest WAL that has arrived waits for the store."""
        with self._lock:
            waiting = [at_s for lsn, at_s in self._waiting if lsn > self.durable_lsn]
        return time.monotonic() - waiting[0] if waiting else 0.0

    def unhealthy(self) -> str:
        """Return why it does not protect at the moment; empty when it does."""
        if self.fault:
            return self.fault
        if not self.server:
            return "not connected yet"
        if self.lag_s > HEALTHY_LAG_S:
            return f"WAL waits for the store for {self.lag_s:.0f} s, limit {HEALTHY_LAG_S:.0f} s"
        return ""

    def as_json(self) -> dict[str, Any]:
        return {
            "healthy": not self.unhealthy(),
            "reason": self.unhealthy(),
            "server": self.server,
            "identity": self.identity,
            "timeline": self.timeline,
            "server_lsn": str(self.server_lsn),
            "received_lsn": str(self.received_lsn),
            "durable_lsn": str(self.durable_lsn),
            "lag_bytes": self.lag_bytes,
            "lag_s": round(self.lag_s, 3),
            "spool_bytes": self.spool_bytes,
        }
