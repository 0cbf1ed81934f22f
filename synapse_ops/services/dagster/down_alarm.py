"""Raises an alarm when a program of Dagster does not stay up: nothing that runs in it could tell.

The alarm sensors live in the code server and are called by the daemon. When the definitions do not load, or the daemon
ends again and again or hangs, none of them ticks, while the UI only says "UNAVAILABLE", or that all daemons are well.
So the supervisor tells, through the same address, with the end of the program's log and the line of the spec that it
quotes.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog

from synapse_ops.domain.runbooks import DOWN_PAGE, alarm_url
from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.recovery.last_tick import last_tick_file
from synapse_ops.redaction import redact
from synapse_ops.systems.alert_outlet import Alarm, AlertOutlet, find_outlet

AGAIN_S = 3600.0  # what is sent ends by itself after six hours
RETRY_S = 30.0  # an outlet that did not take it
SILENT_AFTER_S = 300.0  # ten ticks of the sensor that writes last-tick
_TAIL_BYTES = 20_000
_MOST_LINES = 6

log = structlog.get_logger()


class DownAlarm:
    """Tells once when a program is down, again each hour, and once when it is up again."""

    def __init__(
        self,
        stack_name: str,
        runbook_base: str | None = None,
        *,
        find: Callable[[], AlertOutlet | None] = find_outlet,
        retry_s: float = RETRY_S,
    ) -> None:
        self._stack_name = stack_name
        self._runbook_base = runbook_base
        self._find = find
        self._retry_s = retry_s
        self._due_s: dict[str, float] = {}
        self._posting: threading.Thread | None = None

    def look(self, down: Mapping[str, Callable[[], str]]) -> None:
        """Take what is down now, by name, each with its reason. Called often; it posts in a thread of its own."""
        now_s = time.monotonic()
        if self._posting is not None and self._posting.is_alive():
            return
        new = [name for name in down if now_s >= self._due_s.get(name, 0.0)]
        ended = [name for name in self._due_s if name not in down]
        if not new and not ended:
            return
        alarms = [self._alarm(name, down[name]()) for name in new]
        alarms += [self._alarm(name, "it stays up again", is_resolved=True) for name in ended]
        for name in new:
            self._due_s[name] = now_s + self._retry_s
        self._posting = threading.Thread(target=self._post, args=(alarms, new, ended), name="down-alarm", daemon=True)
        self._posting.start()

    def _post(self, alarms: Sequence[Alarm], new: Sequence[str], ended: Sequence[str]) -> None:
        for alarm in alarms:
            log.error(alarm.summary, detail=alarm.description)
        try:
            outlet = self._find()
            if outlet is not None:
                outlet.post(alarms)
        except SynapseOpsError as error:
            log.warning("the alarm was not taken", fault=error.message)
            return
        self._due_s |= dict.fromkeys(new, time.monotonic() + AGAIN_S)
        for name in ended:
            self._due_s.pop(name, None)

    def _alarm(self, name: str, why: str, *, is_resolved: bool = False) -> Alarm:
        labels = {"alertname": "DagsterProgramDown", "severity": "critical", "program": name}
        return Alarm(
            labels={**labels, "stack": self._stack_name, "source": "synapse-ops"},
            summary=f"Dagster's {name} is {'up again' if is_resolved else 'down'}",
            description=why,
            at=datetime.now(UTC),
            is_resolved=is_resolved,
            runbook_url=alarm_url(DOWN_PAGE, self._runbook_base),
        )


def why_silent(state_dir: Path, since_s: float, now_s: float, log_path: Path) -> str:
    """Return that no sensor ticks, as in a daemon that hangs and calls itself well; "" while one does.

    since_s: when the daemon could tick first, now_s: seconds since the epoch. `recoverability_sensor` writes the ticks.
    """
    with suppress(OSError):
        since_s = max(since_s, last_tick_file(state_dir).stat().st_mtime)
    silent_s = now_s - since_s
    return (
        f"no sensor has ticked for {silent_s / 60:.0f} min; its log is {log_path}" if silent_s > SILENT_AFTER_S else ""
    )


def why_it_ended(log_path: Path, spec_path: Path) -> str:
    """Return why a program ends again and again: its log's last error, and the lines of the spec that it quotes."""
    try:
        tail = log_path.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace")
        spec = spec_path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"its log {log_path} could not be read: {error.strerror}"
    told = [line for line in tail.splitlines() if re.match(r"[\w.]*(Error|Exception|error)\b", line)]
    why = (told or [line for line in tail.splitlines() if line.strip()] or ["its log is empty"])[-1]
    quoted = [text for pair in re.findall(r"'([^']{5,})'|\"([^\"]{5,})\"", why) for text in pair if text]
    lines = [
        f"{spec_path.name}, line {number}: {line.strip()}"
        for number, line in enumerate(spec, start=1)
        if any(text in line for text in quoted)
    ]
    return redact("\n".join([f"it ends again and again: {why}", *lines[:_MOST_LINES], f"Its log is {log_path}."]))
