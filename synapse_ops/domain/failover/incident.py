"""One incident: what is known of it, its entries in the ledger, and whether it may go on. Pure: `now` is passed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Self

from synapse_ops.domain.backup.layout import format_time
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.durations import format_age, format_days
from synapse_ops.domain.failover.transitions import ENDS, Event, State, next_state

HOUR = timedelta(hours=1)
BY_HAND = "failover.automatic is false: a person decides"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger, written before the effect that belongs to its state.

    incident: `20261130T114210Z-3f9a1c`. event: what led here; None for the first. at: our clock, aware UTC. facts: of
    JSON types, without secrets.
    """

    incident: str
    state: State
    event: Event | None
    at: datetime
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "incident": self.incident,
            "state": str(self.state),
            "event": str(self.event) if self.event else None,
            "at": self.at.isoformat(),
            "facts": dict(self.facts),
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Raises KeyError, ValueError or TypeError for what is none."""
        return cls(
            incident=str(body["incident"]),
            state=State(body["state"]),
            event=Event(body["event"]) if body["event"] else None,
            at=datetime.fromisoformat(body["at"]),
            facts=dict(body["facts"]),
        )


@dataclass(frozen=True, slots=True)
class Incident:
    """The entries of one incident, in order; never empty."""

    entries: tuple[Entry, ...]

    @property
    def id(self) -> str:
        return self.entries[0].incident

    @property
    def state(self) -> State:
        return self.entries[-1].state

    @property
    def is_open(self) -> bool:
        return self.state not in ENDS

    @property
    def is_planned(self) -> bool:
        """Whether a person asked for it while the primary was well: a switchover."""
        return self.entries[0].state is State.ASKED

    @property
    def begun_at(self) -> datetime:
        return self.entries[0].at

    @property
    def facts(self) -> dict[str, Any]:
        """All facts, later entries over earlier ones."""
        return {name: value for entry in self.entries for name, value in entry.facts.items()}

    def at(self, state: State) -> datetime | None:
        """Return when a state was reached."""
        return next((entry.at for entry in self.entries if entry.state is state), None)

    def phases_s(self) -> dict[str, float]:
        """Return the seconds to each state that was reached, in order: from the first failed probe, or from the stop.

        Of a switchover, `asked` is negative.
        """
        failed_at = self.facts.get("first_failed_at")
        first = datetime.fromisoformat(failed_at) if failed_at else self.at(State.STOPPING) or self.begun_at
        return {str(entry.state): round((entry.at - first).total_seconds(), 3) for entry in self.entries}

    def followed_by(self, event: Event, now: datetime, facts: Mapping[str, Any] | None = None) -> Entry:
        """Return the next entry; raises IllegalTransition."""
        return Entry(self.id, next_state(self.state, event), event, now, dict(facts or {}))


def new_incident_id(now: datetime, entropy: bytes) -> str:
    return f"{format_time(now)}-{entropy[:3].hex()}"


def incidents_of(entries: Sequence[Entry]) -> tuple[Incident, ...]:
    """Return the incidents of a ledger, oldest first."""
    grouped: dict[str, list[Entry]] = {}
    for entry in entries:
        grouped.setdefault(entry.incident, []).append(entry)
    return tuple(Incident(tuple(rows)) for rows in grouped.values())


@dataclass(frozen=True, slots=True)
class Limits:
    """What the spec and an operator allow. paused_until: None when it is not paused; pause_reason: why."""

    automatic: bool
    manager: str
    cool_down: timedelta
    max_per_hour: int
    max_lag_bytes: int
    paused_until: datetime | None = None
    pause_reason: str = ""

    @classmethod
    def of(cls, spec: Any, paused_until: datetime | None = None, pause_reason: str = "") -> Self:
        """spec: `synapse_ops.spec.Spec`, which decisions may not import."""
        rules = spec.failover
        return cls(
            automatic=rules.automatic,
            manager=rules.manager,
            cool_down=rules.cool_down,
            max_per_hour=rules.max_per_hour,
            max_lag_bytes=rules.max_lag_bytes,
            paused_until=paused_until,
            pause_reason=pause_reason,
        )


def objection(limits: Limits, earlier: Sequence[Incident], now: datetime) -> str:
    """Return why a confirmed outage may not be failed over now, with both values; empty: it may.

    earlier: all former incidents, in any order. Only those that promoted count, and no switchovers.
    """
    done = sorted(one.begun_at for one in earlier if one.at(State.PROMOTING) is not None and not one.is_planned)
    if limits.manager == "external":
        return "failover.manager is external: another manager promotes, this one only watches"
    if not limits.automatic:
        return BY_HAND
    if limits.paused_until is not None and now < limits.paused_until:
        until = limits.paused_until.isoformat(timespec="seconds")
        return f"failover is paused until {until}: {limits.pause_reason or 'no reason given'}"
    if done and now - done[-1] < limits.cool_down:
        passed = format_age(now - done[-1])
        return f"the last failover was {passed} ago, failover.cool_down is {format_days(limits.cool_down)}"
    recent = sum(now - one < HOUR for one in done)
    if recent >= limits.max_per_hour:
        return f"{recent} failovers in the last hour, failover.max_per_hour is {limits.max_per_hour}"
    return ""


def ended_by(node: str, cluster: tuple[str, int], incidents: Sequence[Incident], holder: str | None) -> str:
    """Return the incident that ended the timeline on which a node would start as the primary; empty: it may start.

    cluster: system identifier and timeline of its control file. holder: the incident whose claim of that timeline's end
    is in the repository; None: there is none, or the store did not answer. One that the ledger does not know counts:
    nothing here says how it ended. One that it knows counts for its old primary alone, and only once the other node was
    promoted, whose control file may still name the old timeline.
    """
    for one in incidents:
        facts = one.facts
        about = facts.get("system_identifier"), facts.get("timeline"), facts.get("old")
        if about == (*cluster, node) and one.at(State.SWITCHING) is not None:
            return one.id
    return holder if holder is not None and all(one.id != holder for one in incidents) else ""


@dataclass(frozen=True, slots=True)
class WalBehind:
    """WAL of the old primary behind a position. end: of its last whole record; commits: whole transactions in it."""

    end: Lsn
    commits: int
