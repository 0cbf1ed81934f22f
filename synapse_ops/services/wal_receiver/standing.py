"""How the receiver stands: what its metrics, its health and its log say. Written by its threads, read by the server."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from math import isinf
from typing import Any

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal_space import WalPace, say_time_left, time_left_s
from synapse_ops.services.wal_receiver.spool import Spool

HEALTHY_LAG_S = 30.0  # chunks go every second: more than this is no slow put any more
MARK_S = 0.1
NOWHERE = Lsn(0)


@dataclass
class Standing:
    """server: node it receives from, empty while it has none. fault: why it does not get on, empty when it does.

    gap_at_s: Unix time at which WAL was last found to be lost. pace: of the server, once it was asked. unprotected: why
    commits do not wait as the spec wants; empty: they do, or the spec does not want it.
    """

    server: str = ""
    identity: str = ""
    timeline: int = 0
    fault: str = ""
    server_lsn: Lsn = NOWHERE
    received_lsn: Lsn = NOWHERE
    durable_lsn: Lsn = NOWHERE
    spool: Spool | None = None
    pace: WalPace | None = None
    counts: dict[str, int] = field(default_factory=dict)
    put_s: float = 0.0
    gap_bytes: int = 0
    gap_at_s: float | None = None
    unprotected: str = ""
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
    def spool_bytes(self) -> int:
        """WAL on this host's disk."""
        return self.spool.size_bytes if self.spool is not None else 0

    @property
    def lag_bytes(self) -> int:
        """WAL on the server, as far as it is known, that is not durable here; 0 before the first connection."""
        return max(0, self.server_lsn - self.durable_lsn) if self.durable_lsn > NOWHERE else 0

    @property
    def lag_s(self) -> float:
        """For how long the oldest WAL that has arrived waits for the store."""
        with self._lock:
            waiting = [at_s for lsn, at_s in self._waiting if lsn > self.durable_lsn]
        return time.monotonic() - waiting[0] if waiting else 0.0

    def note_pace(self, pace: WalPace) -> None:
        self.pace, self.server_lsn = pace, max(self.server_lsn, pace.flushed)

    @property
    def time_left_s(self) -> float | None:
        """For how long the store may be away from now on before WAL is lost; None: not known, or without a limit."""
        room_bytes = self.spool.room_bytes if self.spool is not None else 0
        return time_left_s(self.pace, room_bytes) if self.pace is not None else None

    def unhealthy(self) -> str:
        """Return why it does not protect at the moment, and until when nothing is lost; empty when it does."""
        why = self.fault
        if not why and not self.server:
            why = "not connected to the server"
        if not why and self.lag_s > HEALTHY_LAG_S:
            why = f"WAL waits for the store for {self.lag_s:.0f} s, limit {HEALTHY_LAG_S:.0f} s"
        return why + say_time_left(self.time_left_s) if why else ""

    def as_json(self) -> dict[str, Any]:
        left_s = self.time_left_s
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
            "time_left_s": None if left_s is None or isinf(left_s) else round(left_s),
            "unprotected": self.unprotected,
        }
