"""A confirmed outage carried to its end: fence, proof, promotion, slots, verification; each entry before its effect.

Whoever was killed between two entries is followed by another who reads the last one and does its effect again: every
effect carries its own condition (a marker, a position, a timeline), so that doing it twice, or an hour late, changes
nothing that has moved on. What ends the chain without success ends it for good, with the command that goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.failover.fence import Effect, Living
from synapse_ops.domain.failover.incident import Entry, Incident, Limits, objection
from synapse_ops.domain.failover.transitions import Event, State
from synapse_ops.errors import DeadlineExceeded, Refused, SynapseOpsError, Unreachable
from synapse_ops.operations.failover.claims import Claim, take_claim
from synapse_ops.operations.failover.control import NodeControl
from synapse_ops.operations.failover.ledger import Asked, Ledger
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.postgres.connection import connect, postgres_errors
from synapse_ops.systems.postgres.promotion import make_slots, promote, read_fork, read_standing, settled_standing

if TYPE_CHECKING:
    import psycopg

SETTLE_LIMIT_S = 2.0
PROMOTE_TRY_S = 5.0
VERIFY_POLL_S = 0.05
GOES_ON = "`synapse-ops failover run` goes on"
MESSAGE_PREFIX = "synapse_ops.failover"
_WRITE = "SELECT pg_logical_emit_message(true, %s, %s)::text, inet_server_port()"
_READ_BACK = """
SELECT inet_server_port(), ('x' || left(pg_walfile_name(flushed), 8))::bit(32)::int, flushed >= %s::pg_lsn
FROM pg_current_wal_flush_lsn() AS flushed"""
Done = TypeVar("Done")
Step = Callable[[Incident], tuple[Event, dict[str, Any]]]


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Chain:
    """What one incident is carried out with.

    old: authority over the node that is fenced; None: there is none. new: conninfo of the standby as superuser.
    application: conninfo by which the application writes. effect: asks what clients see of the old node now.
    limits: of the spec and a person, asked anew. slots: to make on the new primary. is_by_hand: a person asked, so that
    pauses, cool-down and `automatic` do not count; accept_loss_bytes: what the person accepts instead of
    `max_lag_bytes`. on_entry: told of each entry.
    """

    ledger: Ledger
    repository: Callable[[], Repository]
    old: NodeControl | None
    new: str = field(repr=False)
    application: Callable[[], str] = field(repr=False)
    effect: Callable[[], Effect]
    limits: Callable[[], Limits]
    slots: tuple[str, ...]
    timeout_s: float
    saw_alive: Living | None = None
    is_by_hand: bool = False
    accept_loss_bytes: int | None = None
    on_entry: Callable[[Entry], None] = lambda entry: None

    def carry_on(self, incident_id: str) -> Incident:
        """Carry an incident to its end, from wherever it is; return it. The caller holds the ledger's lock.

        Raises OSError when the ledger cannot be written: then nothing more is done.
        """
        steps = self.steps()
        while (incident := self.ledger.find(incident_id)).is_open:
            event, facts = steps[incident.state](incident)
            entry = incident.followed_by(event, utc_now(), facts)
            self.ledger.append(entry)
            self.on_entry(entry)
        return incident

    def steps(self) -> dict[State, Step]:
        """Return the effect of each state that is no end."""
        return {
            State.CONFIRMED: self._allow,
            State.FENCING: self._fence,
            State.FENCED: self._weigh,
            State.PROMOTING: self._promote,
            State.SWITCHING: self._switch,
            State.VERIFYING: self._verify,
        }

    def _allow(self, incident: Incident) -> tuple[Event, dict[str, Any]]:
        facts, limits = incident.facts, self.limits()
        earlier = [one for one in self.ledger.incidents() if one.id != incident.id]
        reason = "" if self.is_by_hand else objection(limits, earlier, utc_now())
        if reason and limits.manager != "external":
            reason = f"{reason}; {GOES_ON}"
        if not reason and self.old is None:
            reason = _beyond_reach(incident)
        if not reason:
            reason = self._lag_fault(facts["known_lag_bytes"], facts)
        if not reason and (reason := self._claim(incident)):
            reason = f"{reason}; {GOES_ON} when the store takes the claim"
        return (Event.NOT_ALLOWED, {"reason": reason}) if reason else (Event.ALLOWED, {})

    def _claim(self, incident: Incident) -> str:
        facts = incident.facts
        identifier, succeeds = facts["system_identifier"], self._succeeds(incident)
        return take_claim(self.repository(), Claim(identifier, facts["timeline"], incident.id, succeeds, utc_now()))

    def _succeeds(self, incident: Incident) -> frozenset[str]:
        """Return the incidents about the same timeline that ended without a promotion: another goes on with them."""
        same = ("system_identifier", "timeline", "old")
        return frozenset(
            one.id
            for one in self.ledger.incidents()
            if not one.is_open
            and one.at(State.SWITCHING) is None
            and all(one.facts[name] == incident.facts[name] for name in same)
        )

    def _lag_fault(self, lag_bytes: int | None, facts: Mapping[str, Any]) -> str:
        limit = self.limits().max_lag_bytes if self.accept_loss_bytes is None else self.accept_loss_bytes
        between = f"primary at {facts['primary_lsn']}, standby at {facts['standby_lsn']}"
        if lag_bytes is None and self.accept_loss_bytes is None:
            why = f"how far the standby was behind is not known: {between}, limit {limit}"
            return f"{why}; `synapse-ops failover run --accept-loss SIZE` measures it in the fenced server's WAL"
        if lag_bytes is None:
            return ""  # before anybody is promoted it is known: _weigh
        if lag_bytes > limit:
            return (
                f"the standby is {lag_bytes} bytes behind ({between}), limit {limit}; "
                f"`synapse-ops failover run --accept-loss {lag_bytes}` goes on"
            )
        return ""

    def _fence(self, incident: Incident) -> tuple[Event, dict[str, Any]]:
        try:
            cause = self._old().fence(incident.id, incident.facts["timeline"], self.saw_alive, self._succeeds(incident))
        except SynapseOpsError as error:
            return Event.FENCE_UNPROVEN, {"reason": f"{error.message}; {GOES_ON} when that is mended"}
        effect = self.effect()
        reason = cause.fault(incident.id) or effect.fault
        facts = {"cause": cause.as_json(), "effect": effect.as_json()}
        words = f"{reason}; {GOES_ON} when that is mended"
        return (Event.FENCE_UNPROVEN, {**facts, "reason": words}) if reason else (Event.FENCE_PROVEN, facts)

    def _weigh(self, incident: Incident) -> tuple[Event, dict[str, Any]]:
        """Measure what the standby lacks, by the fenced server's own WAL, and decide."""
        facts = incident.facts
        try:
            standing = self._insisting(lambda: settled_standing(self.new, facts["timeline"], SETTLE_LIMIT_S))
            received, replayed = standing.received, standing.replayed
            if not standing.in_recovery or standing.timeline != facts["timeline"] or not received or not replayed:
                reason = f"the standby is on timeline {standing.timeline}, expected {facts['timeline']}, in recovery"
                return Event.LOSS_TOO_LARGE, {"reason": reason}
            end = self._old().wal_behind(facts["timeline"], replayed).end
        except SynapseOpsError as error:
            reason = f"what would be lost is not known: {error.message}; {GOES_ON} when that is mended"
            return Event.LOSS_TOO_LARGE, {"reason": reason}
        lacking = max(0, end - received)
        found = {"chosen_lsn": str(received), "end_lsn": str(end), "lacking_bytes": lacking}
        reason = self._lag_fault(lacking, {"primary_lsn": str(end), "standby_lsn": str(received)})
        return (Event.LOSS_TOO_LARGE, {**found, "reason": reason}) if reason else (Event.LOSS_ACCEPTABLE, found)

    def _old(self) -> NodeControl:
        if self.old is None:
            raise Refused("nothing on this host may fence the old primary or read its WAL")
        return self.old

    def _promote(self, incident: Incident) -> tuple[Event, dict[str, Any]]:
        """Promote, on the condition that the standby stands where it was chosen; count what was lost by the fork.

        A standby that does not answer or does not end its recovery raises, and the incident stays open: whether it was
        promoted is not known, and the old primary is fenced. It is tried again until a person gives it up.
        """
        facts = incident.facts
        chosen, old_timeline = Lsn.parse(facts["chosen_lsn"]), facts["timeline"]
        if self.ledger.take_request(utc_now(), Asked.ABANDON) is not None:
            return self._abandon(incident)
        try:
            done = self._insisting(lambda: promote(self.new, chosen, old_timeline, PROMOTE_TRY_S), PROMOTE_TRY_S)
            reason, fork = self._insisting(lambda: self._forked(old_timeline, chosen, is_done=done), PROMOTE_TRY_S)
            if fork is None:
                return Event.NOT_PROMOTED, {"reason": reason}
            lost = self._old().wal_behind(old_timeline, fork)
        except (Unreachable, DeadlineExceeded):
            raise
        except SynapseOpsError as error:
            return Event.NOT_PROMOTED, {"reason": error.message}
        facts = {"new_timeline": old_timeline + 1, "fork_lsn": str(fork)}
        return Event.PROMOTED, {**facts, "lost_bytes": lost.end - fork, "lost_commits": lost.commits}

    def _forked(self, old_timeline: int, chosen: Lsn, *, is_done: bool) -> tuple[str, Lsn | None]:
        """Return where the new timeline begins; None, and why: it was not promoted by this incident.

        is_done: the promotion said so. Otherwise it may have been promoted by an earlier try, whose answer was lost.
        """
        with connect(self.new, timeout_s=2) as connection:
            standing = read_standing(connection)
            if not is_done and (standing.in_recovery or not self._is_ours(connection, old_timeline, chosen)):
                return f"the standby stands at {standing.received} on timeline {standing.timeline}, not {chosen}", None
            return "", read_fork(connection, old_timeline + 1)

    def _abandon(self, incident: Incident) -> tuple[Event, dict[str, Any]]:
        """Start the old primary again, after a person stated that the standby is gone."""
        facts = incident.facts
        reason = f"a person gave it up: {facts['new']} is gone"
        try:
            self._old().start_again(incident.id)
        except (SynapseOpsError, OSError) as error:
            fault = error.message if isinstance(error, SynapseOpsError) else str(error)
            return Event.NOT_PROMOTED, {"reason": f"{reason}; {facts['old']} did not start again: {fault}"}
        return Event.NOT_PROMOTED, {"reason": f"{reason}; {facts['old']} was started again"}

    def _insisting(self, action: Callable[[], Done], timeout_s: float | None = None) -> Done:
        """Do what is safe to repeat again where the standby did not answer in time: a busy host is no reason to end."""
        deadline_s = time.monotonic() + (timeout_s or self.timeout_s)
        while True:
            try:
                return action()
            except Unreachable:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(VERIFY_POLL_S)

    def _is_ours(self, connection: psycopg.Connection[Any], old_timeline: int, chosen: Lsn) -> bool:
        """Return whether the server was promoted where this incident chose: by whom we follow."""
        with postgres_errors("the new timeline"):
            row = connection.execute("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)").fetchone()
        is_next = row is not None and int(row[0], 16) == old_timeline + 1
        return is_next and read_fork(connection, old_timeline + 1) <= chosen

    def _switch(self, incident: Incident) -> tuple[Event, dict[str, Any]]:
        """Make the slots that a promotion does not bring. Clients find the new primary by its session attributes."""
        try:
            self._insisting(lambda: make_slots(self.new, incident.facts["new_timeline"], self.slots))
        except SynapseOpsError as error:
            return Event.SWITCHED, {"slots_fault": error.message}  # writes go on without them
        return Event.SWITCHED, {}

    def _verify(self, incident: Incident) -> tuple[Event, dict[str, Any]]:
        """Write as the application does, and read back on another session that it is on the new timeline.

        It does not wait for whoever commits wait for: that one may not be there yet.
        """
        deadline_s, fault = time.monotonic() + self.timeout_s, "nothing was tried"
        while time.monotonic() < deadline_s:
            try:
                with connect(self.application(), timeout_s=2) as connection, postgres_errors("the verification"):
                    connection.execute("SET synchronous_commit = local")
                    written = connection.execute(_WRITE, [MESSAGE_PREFIX, incident.id]).fetchone()
                with connect(self.application(), timeout_s=2) as connection, postgres_errors("the verification"):
                    read = connection.execute(_READ_BACK, written[:1] if written else [None]).fetchone()
                if written is not None and read == (written[1], incident.facts["new_timeline"], True):
                    facts = {"verified_lsn": written[0], "verified_port": read[0], "verified_timeline": read[1]}
                    return Event.VERIFIED, facts
                fault = f"written, read back: {written}, {read}; timeline {incident.facts['new_timeline']} was expected"
            except SynapseOpsError as error:
                fault = error.message
            time.sleep(VERIFY_POLL_S)
        return Event.NOT_VERIFIED, {"reason": f"no write through the application's address: {fault}"}


def _beyond_reach(incident: Incident) -> str:
    """Return what is said where the old primary's host is another one, or gone: whether it lives is not known here."""
    facts = incident.facts
    node, at = facts["old"], f"primary at {facts['primary_lsn']}, standby at {facts['standby_lsn']}"
    ends = f"`synapse-ops failover fence-here --incident {incident.id} --node {node} --timeline {facts['timeline']}`"
    return (
        f"nothing on this host may fence {node} ({at}): no standby is promoted over it. Started again, where it is, by "
        f"`synapse-ops local up` it has lost nothing; {ends} ends it there for good"
    )
