"""A prober's history as it would have written it, for tests of those who read it."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from synapse_ops.domain.health.states import Condition, ProbeVerdict, State, initial_condition, next_condition
from synapse_ops.operations.health.asker import ENDPOINT, Probe
from synapse_ops.operations.health.history import HistoryWriter, StoredVerdict, history_file
from synapse_ops.operations.health.report import is_watched
from synapse_ops.systems.probe_stage import Stage

INTERVAL = timedelta(seconds=30)


async def _never_asked(stage: Stage) -> ProbeVerdict:
    raise AssertionError(stage)


class WrittenHistory:
    """Probes by name, each asked every `interval` from `since` on."""

    def __init__(
        self,
        state_dir: Path,
        names: Sequence[str],
        since: datetime,
        *,
        interval: timedelta = INTERVAL,
        targets: Mapping[str, str] | None = None,
    ) -> None:
        self._interval = interval
        urls = {name: f"http://{name}" for name in names} | dict(targets or {})
        history_file(state_dir).parent.mkdir(exist_ok=True)
        self._writer = HistoryWriter(history_file(state_dir))
        self._conditions: dict[str, Condition] = {name: initial_condition(since) for name in names}
        probes = [Probe(name, ENDPOINT, urls[name], interval.total_seconds(), 5.0, _never_asked) for name in names]
        self._writer.set_probes(probes, self._conditions)
        self._at = dict.fromkeys(names, since)

    def add(self, name: str, *states: State, reason: str = "it said no") -> datetime:
        """Store verdicts of one probe, one every interval, at once; return when the last was given."""
        stored = []
        for state in states:
            before, at = self._conditions[name], self._at[name] + self._interval
            verdict = ProbeVerdict(state, "" if state is State.HEALTHY else reason, 0.02, {"http_status": 200.0})
            after = next_condition(before, verdict, at)
            stored.append(StoredVerdict(name, at, verdict, before, after, self._interval.total_seconds()))
            self._conditions[name], self._at[name] = after, at
        self._writer.store(stored)
        return self._at[name]

    def close(self) -> None:
        self._writer.close()


@contextmanager
def watched(state_dir: Path) -> Iterator[None]:
    """Hold the lock that says that a prober runs."""
    with (state_dir / "watch" / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_address(state_dir: Path) -> Mapping[str, Any] | None:
    """Return what `watch/address.json` says of the running prober, None when there is none."""
    try:
        found: Mapping[str, Any] = json.loads((state_dir / "watch" / "address.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if is_watched(state_dir) else None
