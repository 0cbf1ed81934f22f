"""What can be done when the stack is down: each way back with its time and its loss, and the one to take. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from synapse_ops.domain.database.recovery_target import RecoveryTarget
from synapse_ops.domain.durations import format_when
from synapse_ops.domain.recovery.drill_score import Expected

RESTART, FAILOVER, TO_LATEST, TO_MOMENT = "restart", "failover", "restore to latest", "restore to a moment"


@dataclass(frozen=True, slots=True)
class Node:
    """A node of PostgreSQL as it was seen. has_data: its data directory is there; fence: its marker, empty without.

    is_here: it is of this host, so that its directory can be seen.
    """

    name: str
    runs: bool
    takes_writes: bool = False
    has_data: bool = False
    fence: str = ""
    is_here: bool = True


@dataclass(frozen=True, slots=True)
class Situation:
    """What was seen. down: servers and endpoints that are not well, `name: why`.

    from_at, to_at: the first and the last moment to which PostgreSQL can be restored, None: none; because: why not.
    moment_because: why it cannot be restored to the moment that is asked for; empty: it can.
    restore: of the whole recovery; restore_s: of restoring alone, by the proofs, None: never measured. failover: of
    this system's. armed: whether a failover would happen; armed_because: the sentence that says so.
    """

    nodes: tuple[Node, ...]
    down: tuple[str, ...]
    from_at: datetime | None
    to_at: datetime | None
    because: str
    moment_because: str
    restore: Expected
    restore_s: float | None
    failover: Expected
    armed: bool
    armed_because: str


@dataclass(frozen=True, slots=True)
class Option:
    """One way back. lost: in words. why: of it, or why it is not possible. expected: None: nothing is counted.

    restore_s: of a restore, how long restoring alone takes by the proofs; None: never measured. command: that goes it.
    """

    name: str
    is_possible: bool
    why: str
    lost: str = ""
    expected: Expected | None = None
    restore_s: float | None = None
    command: str = ""

    @property
    def takes(self) -> str:
        """How long it takes, in words."""
        if not self.is_possible or self.expected is None:
            return "-"
        alone = f"; restoring alone about {self.restore_s:.1f} s" if self.restore_s is not None else ""
        return self.expected.words + ("" if self.expected.predicted is not None else alone)

    def as_json(self) -> dict[str, Any]:
        found = self.expected.predicted if self.expected is not None and self.is_possible else None
        return {
            "option": self.name,
            "possible": self.is_possible,
            "why": self.why,
            "predicted_s": found.seconds if found is not None else None,
            "predicted_interval_s": [found.low_s, found.high_s] if found is not None else None,
            "restore_s": self.restore_s,
            "lost": self.lost,
        }

    def row(self) -> dict[str, str]:
        """Return its row of a table, in words."""
        return {
            "way back": self.name,
            "possible": "yes" if self.is_possible else "no",
            "takes": self.takes,
            "lost": self.lost or "-",
            "because": self.why,
        }


@dataclass(frozen=True, slots=True)
class Impact:
    """The situation and what can be done. recommended: name of an option, empty: nothing need be, or can be, done."""

    situation: Situation
    options: tuple[Option, ...]
    recommended: str
    because: str

    @property
    def command(self) -> str:
        """What goes the recommended way; empty where there is none."""
        return next((one.command for one in self.options if one.name == self.recommended), "")

    def as_json(self) -> dict[str, Any]:
        return {
            "down": list(self.situation.down),
            "nodes": [
                {"name": one.name, "runs": one.runs, "takes_writes": one.takes_writes, "has_data": one.has_data}
                for one in self.situation.nodes
            ],
            "options": [one.as_json() for one in self.options],
            "recommended": self.recommended,
            "because": self.because,
            "command": self.command,
        }


def plan_options(situation: Situation, target: RecoveryTarget, now: datetime, time_zone: str) -> Impact:
    """Return the ways back, in the order in which they are to be tried, and the recommended one.

    target: what a person asks for; `latest` asks for nothing but the newest state. Whoever asks for a moment wants
    data back that the newest state does not have, so that neither a restart nor a failover helps.
    """
    latest = target.kind == "latest"
    running = next((node.name for node in situation.nodes if node.takes_writes), "")
    options = (
        _restart(situation, running),
        _failover(situation, running),
        *_restores(situation, target, now, time_zone),
    )
    if latest and running:
        why = f"{running} takes writes; to go back to an earlier moment, name it with --until"
        return Impact(situation, options, "", why)
    wanted = [one for one in options if one.is_possible and (latest or one.name == TO_MOMENT)]
    if not wanted:
        why = "no way back is known" if latest else f"no way back to that moment is known: {options[-1].why}"
        return Impact(situation, options, "", why)
    return Impact(situation, options, wanted[0].name, wanted[0].why)


def _restart(situation: Situation, running: str) -> Option:
    whole = [node for node in situation.nodes if node.has_data and not node.fence]
    if running:
        return Option(RESTART, is_possible=False, why=f"{running} runs and takes writes")
    if whole:
        why = f"the data directory of {whole[0].name} is there"
        command = "synapse-ops local up"
        return Option(RESTART, is_possible=True, why=why, lost="nothing that was flushed", command=command)
    fenced = [f"{node.name} is fenced ({node.fence})" for node in situation.nodes if node.fence]
    gone = [f"{node.name} has no data directory" for node in situation.nodes if node.is_here and not node.has_data]
    away = [f"{node.name} does not answer: its own host may start it" for node in situation.nodes if not node.is_here]
    why = "; ".join((*fenced, *gone, *away)) or "no node is known"
    return Option(RESTART, is_possible=False, why=why)


def _failover(situation: Situation, running: str) -> Option:
    standby = next((node.name for node in situation.nodes if node.runs and not node.takes_writes), "")
    is_possible = bool(standby) and not running
    if running:
        why = f"{running} runs and takes writes"
    elif not standby:
        why = "no standby runs"
    else:
        why = f"{standby} runs: {situation.armed_because}"
    lost = "what the standby had not received" if is_possible else ""
    command = "synapse-ops failover run"
    return Option(FAILOVER, is_possible=is_possible, why=why, lost=lost, expected=situation.failover, command=command)


def _restores(situation: Situation, target: RecoveryTarget, now: datetime, time_zone: str) -> Sequence[Option]:
    first, last = situation.from_at, situation.to_at
    if first is None or last is None:
        why = situation.because or "no proven base backup is in the repository"
        return [Option(name, is_possible=False, why=why) for name in (TO_LATEST, TO_MOMENT)]

    def when(moment: datetime) -> str:
        return format_when(moment, now, time_zone)

    latest = Option(
        TO_LATEST,
        is_possible=True,
        why=f"every commit up to {when(last)} is stored",
        lost=f"what was committed after {when(last)}",
        expected=situation.restore,
        restore_s=situation.restore_s,
        command="synapse-ops recover --plan",
    )
    window = f"every moment from {when(first)} to {when(last)} is stored"
    is_possible = target.kind != "time" or not situation.moment_because
    back = when(target.time) if target.time is not None else "it"
    return [
        latest,
        Option(
            TO_MOMENT,
            is_possible=is_possible,
            why=window if is_possible else situation.moment_because,
            lost=f"what was committed after {back}" if is_possible else "",
            expected=situation.restore,
            restore_s=situation.restore_s if is_possible else None,
            command=f"synapse-ops recover --plan --until {target if target.kind == 'time' else 'time:...'}",
        ),
    ]
