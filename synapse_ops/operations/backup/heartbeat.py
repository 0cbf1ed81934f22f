"""A small object that is rewritten while work goes on: the objects beside it are not left over, or are being read.

It stays when the work is done or dies (`heartbeat.json`: its age decides when left-overs may go), or is removed at the
end (`reading-<reader>.json`: a hold against expiry). Its age is judged by the store's own clock, never by ours.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from synapse_ops.errors import DeadlineExceeded, SynapseOpsError
from synapse_ops.systems.host.process_presence import presence_of_this_process

if TYPE_CHECKING:
    from synapse_ops.systems.s3.store import ObjectStore

INTERVAL_S = 20.0
LOST_AFTER_S = 600.0  # far under the least grace for left-overs, far over a restart of the store


class Heartbeat:
    """One beating object. `raise_if_lost` belongs before every step that must not happen unprotected.

    first_failure: of a hold whose first write failed.

    Safe to use from several threads: one writes at a time, so an older body never lands over a newer one.
    clock: in seconds, of this process alone.
    """

    def __init__(
        self, store: ObjectStore, key: str, body: Mapping[str, Any], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._key = key
        self._body = {**presence_of_this_process(), **body}  # the writer's own host can see that it died
        self._beats = 0
        self._clock = clock
        self._writing = threading.Lock()
        self._last_success = clock()
        self._last_error = ""
        self.first_failure: SynapseOpsError | None = None

    def beat(self) -> None:
        """Write the object once; raises what the store raises."""
        self.tell()

    def tell(self, **facts: Any) -> None:
        """Beat at once with further fields, kept in every later beat: what a later run must know if this dies."""
        with self._writing:
            self._beats += 1
            self._body = {**self._body, **facts}
            body = {**self._body, "beats": self._beats, "at": datetime.now(UTC).isoformat(timespec="seconds")}
            self._store.put_bytes(self._key, (json.dumps(body, sort_keys=True) + "\n").encode())
            self._last_success = self._clock()

    def keep_beating(self, stop: threading.Event, interval_s: float) -> None:
        """Beat until stopped; a beat that fails is tried again at the next interval."""
        while not stop.wait(interval_s):
            try:
                self.beat()
            except SynapseOpsError as error:
                self._last_error = error.message  # raised by raise_if_lost when it lasts

    def raise_if_lost(self) -> None:
        """Raise DeadlineExceeded when no beat has reached the store for LOST_AFTER_S seconds."""
        silence_s = self._clock() - self._last_success
        if silence_s > LOST_AFTER_S:
            raise DeadlineExceeded(
                f"could not write {self._store.full_url(self._key)} for {silence_s:.0f} s, limit {LOST_AFTER_S:.0f} s",
                detail=self._last_error,
            )


@contextmanager
def keep_heartbeat(
    store: ObjectStore,
    key: str,
    *,
    body: Mapping[str, Any],
    interval_s: float = INTERVAL_S,
    is_hold: bool = False,
) -> Iterator[Heartbeat]:
    """Write `key` now and every `interval_s` seconds until the block ends; the first write must succeed.

    is_hold: its presence means "in use", so it is removed at the end; a holder that dies leaves it, and its age frees
    it. What only reads must not need keys that write: every write may fail, the first one too, and so may the removal.
    """
    heartbeat = Heartbeat(store, key, body)
    try:
        heartbeat.beat()
    except SynapseOpsError as error:
        if not is_hold:
            raise
        heartbeat.first_failure = error
    stop = threading.Event()
    thread = threading.Thread(target=heartbeat.keep_beating, args=(stop, interval_s), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield heartbeat
    finally:
        stop.set()
        thread.join()
        if is_hold:
            with suppress(SynapseOpsError):
                store.delete([key])
