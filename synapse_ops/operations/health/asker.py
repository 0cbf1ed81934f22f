"""Asking one probe within its time, whatever the other side does.

The verdict never waits for the end of the question: what does not answer is cancelled and left to end by itself, and as
long as it lingers it is not asked again, so that a thing that hangs costs one connection, not one more each interval.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from math import isfinite

from synapse_ops.domain.health.states import ProbeVerdict, State
from synapse_ops.domain.printable_text import printable
from synapse_ops.errors import SynapseOpsError
from synapse_ops.redaction import redact
from synapse_ops.systems.probe_stage import Stage

ENDPOINT = "endpoint"
SERVER = "server"

Question = Callable[[Stage], Awaitable[ProbeVerdict]]

_OWN_TROUBLE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


@dataclass(frozen=True)
class Probe:
    """One question and when it is asked. kind: ENDPOINT or SERVER. target: what is asked, for people; no secret.

    ask: answers with a verdict, raises ours or an OSError, may never return.
    """

    name: str
    kind: str
    target: str
    interval_s: float
    timeout_s: float
    ask: Question = field(compare=False, repr=False)


class Asker:
    """Asks one probe again and again. `fault`: the last exception that was our own mistake, for the log."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.fault: Exception | None = None
        self._lingering: asyncio.Task[ProbeVerdict] | None = None

    async def ask(self) -> ProbeVerdict:
        """Return a verdict within the probe's timeout; never raises but when cancelled."""
        if self._lingering is not None and not self._lingering.done():
            return ProbeVerdict(State.FAILED, "the previous check is still running: it was cancelled and has not ended")
        stage = Stage()
        began = time.monotonic()
        task = asyncio.ensure_future(self.probe.ask(stage))
        try:
            await asyncio.wait({task}, timeout=self.probe.timeout_s)
        except asyncio.CancelledError:
            task.cancel()
            raise
        took_s = time.monotonic() - began
        if not task.done():
            task.cancel()
            task.add_done_callback(_take_error)
            self._lingering = task
            return ProbeVerdict(State.FAILED, f"no verdict within {self.probe.timeout_s:g} s: {stage.words}")
        return self._verdict_of(task, took_s)

    def _verdict_of(self, task: asyncio.Task[ProbeVerdict], took_s: float) -> ProbeVerdict:
        if task.cancelled():
            return ProbeVerdict(State.UNKNOWN, "the probe was cancelled")
        error = task.exception()
        if error is None:
            verdict = task.result()
            latency_s = took_s if verdict.latency_s is None else verdict.latency_s
            measurements = {name: value for name, value in verdict.measurements.items() if isfinite(value)}
            return ProbeVerdict(verdict.state, _shown(verdict.reason), latency_s, measurements)
        verdict = self._verdict_of_error(error)
        return replace(verdict, reason=_shown(verdict.reason))

    def _verdict_of_error(self, error: BaseException) -> ProbeVerdict:
        own = next((found for found in _chain(error) if getattr(found, "errno", None) in _OWN_TROUBLE), None)
        if own is not None:
            return ProbeVerdict(State.UNKNOWN, f"the prober could not run the check: {own}")
        if isinstance(error, SynapseOpsError):
            first = error.detail.splitlines()[0].strip() if error.detail else ""
            return ProbeVerdict(State.FAILED, f"{error.message}: {first}"[:400] if first else error.message[:400])
        if isinstance(error, OSError):
            return ProbeVerdict(State.FAILED, error.strerror or type(error).__name__)
        self.fault = error if isinstance(error, Exception) else None
        return ProbeVerdict(State.UNKNOWN, f"internal error of the prober: {type(error).__name__}")


def _shown(reason: str) -> str:
    return printable(redact(reason))


def _take_error(task: asyncio.Task[ProbeVerdict]) -> None:
    """Take what a cancelled question raises in the end, so that the loop does not report it as lost."""
    if not task.cancelled():
        task.exception()


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or seen.__context__
