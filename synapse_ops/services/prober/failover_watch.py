"""Watches both nodes of the database and carries out a failover: detection, decision, chain, rejoin. No Dagster.

    healthy    a statement a second on a kept session with each node; the end of the primary's is seen at once
    suspect    five looks a second, until the window has passed or somebody shows life
    confirmed  the chain (operations/failover/chain.py), then the old primary is rejoined
    asked      the switchover (operations/failover/switchover.py) of a person, while the primary is well

One thread of the prober. It is *armed* while everything that a failover needs was seen to work: both nodes in their
roles, the old one's authority saw its processes, the store answered, nobody paused it. Why it is not is in
`failover/watch.json`, which is written at each change and every few seconds: its age is the watcher's own pulse.
"""

from __future__ import annotations

import secrets
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.failover.evidence import FRESH_S, Look, Sign, View, Watch, next_watch
from synapse_ops.domain.failover.fence import Effect, Living
from synapse_ops.domain.failover.incident import Entry, Incident, Limits, new_incident_id, objection
from synapse_ops.domain.failover.transitions import Event, State
from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.failover.chain import Chain
from synapse_ops.operations.failover.claims import LIMIT_S
from synapse_ops.operations.failover.control import FailoverPlace
from synapse_ops.operations.failover.ledger import Asked, Ledger, Request
from synapse_ops.operations.failover.status import PULSE_S, write_watch
from synapse_ops.operations.failover.switchover import Switchover
from synapse_ops.operations.health.server_probes import node_conninfo
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.stack import Stack
from synapse_ops.services.prober.watched_node import ANSWER_S, WatchedNode
from synapse_ops.systems.postgres.kept_session import KeptSession

APPLICATION_NAME = "synapse-ops failover"
INTERVAL_S = 1.0
SUSPECT_INTERVAL_S = 0.2
ARM_EVERY_S = 15.0

log = structlog.get_logger()


@dataclass
class FailoverWatch:
    """The watcher of one stack. `run` blocks until `stop`; use it in a thread of its own.

    place: what it works with on this host; None: it only watches. stack: the one in force, asked at each round.
    """

    stack: Callable[[], Stack]
    state_dir: Path
    place: FailoverPlace | None
    on_entry: Callable[[Entry], None] = lambda entry: None
    _nodes: dict[str, WatchedNode] = field(default_factory=dict, repr=False)
    _watch: Watch = field(default_factory=Watch)
    _roles: tuple[str, str] | None = None
    _saw_alive: Living | None = None
    _store_fault: str = "the store has not been asked yet"
    _repository: tuple[str, Repository] | None = field(default=None, repr=False)
    _armed_at_s: float = 0.0
    _told: dict[str, Any] = field(default_factory=dict)
    _told_at_s: float = 0.0
    _refused: str = ""
    _stopping: threading.Event = field(default_factory=threading.Event, repr=False)

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        due_s = time.monotonic()
        while not self._stopping.is_set():
            try:
                self._resume()
                due_s = self._look(due_s)
            except (SynapseOpsError, OSError) as fault:
                log.warning("a look at the database's nodes failed", fault=str(fault))
                self._tell(fault=str(fault))
                self._stopping.wait(INTERVAL_S)
                due_s = time.monotonic()
        for node in self._nodes.values():
            node.session.close()

    # -------------------------------------------------------------- looking

    def _sessions(self) -> dict[str, WatchedNode]:
        stack = self.stack()
        names = stack.spec.failover.nodes
        if set(self._nodes) != set(names):
            for node in self._nodes.values():
                node.session.close()
            controls = self.place.controls if self.place is not None else {}
            self._nodes = {
                name: WatchedNode(
                    name,
                    KeptSession(node_conninfo(stack, name), application_name=APPLICATION_NAME),
                    control=controls.get(name),
                )
                for name in names
            }
        return self._nodes

    def _look(self, due_s: float) -> float:
        """Ask both nodes once, and act; return when the next look is due."""
        began_s = time.monotonic()
        nodes = self._sessions()
        if self._roles is None:
            self._find_roles(nodes)
        if self._roles is None:
            self._tell(fault="no node takes writes with the other one following it")
            self._pause(INTERVAL_S, None)
            return time.monotonic() + INTERVAL_S
        primary, standby = (nodes[name] for name in self._roles)
        answer = primary.ask()
        standby_answer = standby.ask()
        now_s = time.monotonic()
        sign = answer.sign
        view = standby.view_of_primary(standby_answer, self._watch.since_s)
        if primary.notes_writing(sign):
            view = View.ALIVE
        if primary.seen is not None and sign is Sign.ALIVE and not primary.seen.takes_writes:
            self._roles = None  # switched over by somebody else
            return time.monotonic()
        look = Look(now_s, sign, view, max(0.0, began_s - due_s))
        before = self._watch.state
        start_timeout = self.stack().spec.failover.primary_start_timeout
        self._watch = next_watch(self._watch, look, start_timeout.total_seconds())
        if self._watch.state is not before:
            log.info("the primary", node=primary.name, state=str(self._watch.state), sign=str(sign), words=answer.words)
        if self._watch.state is State.HEALTHY:
            self._refused = ""
            self._arm(primary)
            request = Ledger.of(self.state_dir).take_request(datetime.now(UTC), Asked.SWITCHOVER)
            if request is not None:
                self._switch_over(primary, standby, request)
                return time.monotonic()
        elif self._watch.state is State.CONFIRMED:
            self._fail_over(primary, standby)
            return time.monotonic()
        self._tell()
        interval_s = INTERVAL_S if self._watch.state is State.HEALTHY else SUSPECT_INTERVAL_S
        due_s = max(began_s + interval_s, time.monotonic())
        self._pause(due_s - time.monotonic(), primary.session.fileno())
        return due_s

    def _pause(self, seconds: float, descriptor: int | None) -> None:
        """Wait, no longer than until the primary's session ends or we are stopped."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0 and not self._stopping.is_set():
            if descriptor is None or descriptor < 0:
                self._stopping.wait(min(left_s, 0.2))
            elif select.select([descriptor], [], [], min(left_s, 0.2))[0]:
                return

    def _find_roles(self, nodes: dict[str, WatchedNode]) -> None:
        for node in nodes.values():
            node.ask()
        primaries = [node.name for node in nodes.values() if node.seen is not None and node.seen.takes_writes]
        standbys = [node.name for node in nodes.values() if node.seen is not None and not node.seen.takes_writes]
        if len(primaries) == 1 and len(standbys) == 1:
            self._roles = (primaries[0], standbys[0])
            self._watch = Watch()
            self._saw_alive = None
            self._armed_at_s = 0.0

    def _arm(self, primary: WatchedNode) -> None:
        """See, now and then, that what a failover needs works: the authority over the primary, and the store."""
        if time.monotonic() - self._armed_at_s < ARM_EVERY_S:
            return
        self._armed_at_s = time.monotonic()
        if self.place is not None and primary.name in self.place.controls:
            self._saw_alive = self.place.controls[primary.name].living()
        threading.Thread(target=self._ask_store, name="failover-store", daemon=True).start()

    def _ask_store(self) -> None:
        """Ask the store for its time. Its client is kept, so that a claim pays for two requests and no more."""
        began_s = time.monotonic()
        try:
            stack = self.stack()
            if self._repository is None or self._repository[0] != stack.loaded.digest:
                repository = stack.database_repository()
                _ = repository.store.features  # asked once: what a claim relies on
                self._repository = (stack.loaded.digest, repository)
                began_s = time.monotonic()
            self._repository[1].store.server_time()
        except SynapseOpsError as error:
            self._store_fault = f"the store does not answer: {error.message}"
        else:
            took_s = time.monotonic() - began_s
            self._store_fault = f"the store took {took_s:.1f} s, limit {LIMIT_S:g} s" if took_s > LIMIT_S else ""

    def _limits(self) -> Limits:
        pause = Ledger.of(self.state_dir).pause()
        until, reason = (pause.until, pause.reason) if pause is not None else (None, "")
        return Limits.of(self.stack().spec, until, reason)

    def unarmed(self) -> str:
        """Return why a dead primary would not be failed over now; empty: it would."""
        if self._roles is None:
            return "no node takes writes with the other one following it"
        if self.place is None or self._roles[0] not in self.place.controls:
            return f"nothing on this host may fence {self._roles[0]}"
        if self._saw_alive is None:
            return f"the processes of {self._roles[0]} were not seen on this host"
        if self._store_fault:
            return self._store_fault
        follower = self._nodes[self._roles[1]]
        if follower.first_failed_at is not None:
            return f"{follower.name} does not answer since {follower.first_failed_at:%H:%M:%S %Z}"
        standby = follower.seen
        if standby is None or standby.receiver != "streaming":
            return f"{self._roles[1]} does not stream from {self._roles[0]}"
        primary = self._nodes[self._roles[0]].seen
        if primary is None or primary.timeline != standby.timeline:
            on = f"{primary.timeline if primary else '?'} and {standby.timeline}"
            return f"the last checkpoints of both nodes are on different timelines: {on}"
        return objection(self._limits(), Ledger.of(self.state_dir).incidents(), datetime.now(UTC))

    def _tell(self, fault: str = "") -> None:
        """Write what is so into `failover/watch.json`, at a change and now and then."""
        found: dict[str, Any] = {
            "state": str(self._watch.state),
            "primary": self._roles[0] if self._roles else None,
            "standby": self._roles[1] if self._roles else None,
            "unarmed": fault
            or (
                self.unarmed()
                if self._watch.state is State.HEALTHY
                else (self._nodes[self._roles[0]].silence if self._roles else "")
            ),
            "refused": self._refused or None,
        }
        if found == self._told and time.monotonic() - self._told_at_s < PULSE_S:
            return
        self._told, self._told_at_s = found, time.monotonic()
        write_watch(self.state_dir, found)

    # -------------------------------------------------------------- acting

    def _fail_over(self, primary: WatchedNode, standby: WatchedNode) -> None:
        """Begin an incident and carry it to its end.

        What was refused stays refused until the primary shows life, or a person asks to go on.
        """
        ledger, now = Ledger.of(self.state_dir), datetime.now(UTC)
        request = ledger.take_request(now)
        if self._refused and request is None:
            self._watch = Watch(State.SUSPECT, since_s=time.monotonic(), last=self._watch.last)
            return
        entry = Entry(
            new_incident_id(now, secrets.token_bytes(3)), State.CONFIRMED, Event.WINDOW_PASSED, now,
            self._facts(primary, standby, now),
        )  # fmt: skip
        chain = self._chain(ledger, primary, standby)
        if request is not None:
            chain.is_by_hand, chain.accept_loss_bytes = True, request.accept_loss_bytes
        self._begin(chain, entry)

    def _begin(self, chain: Chain, entry: Entry) -> None:
        with chain.ledger.held():
            if not any(one.is_open for one in chain.ledger.incidents()):
                chain.ledger.append(entry)
                self.on_entry(entry)
                self._end(chain.carry_on(entry.incident))

    def _switch_over(self, primary: WatchedNode, standby: WatchedNode, request: Request) -> None:
        """Hand over as a person asked. This thread does it, so that nobody takes the stop for a death."""
        now = datetime.now(UTC)
        facts = {
            "old": primary.name,
            "new": standby.name,
            "system_identifier": primary.seen.system_identifier if primary.seen else "",
            "timeline": primary.seen.timeline if primary.seen else 0,
            "end_sessions": request.end_sessions,
        }
        asked = Entry(new_incident_id(now, secrets.token_bytes(3)), State.ASKED, Event.SWITCHOVER_ASKED, now, facts)
        self._begin(self._handover(primary, standby), asked)

    def _handover(self, primary: WatchedNode, standby: WatchedNode, *, is_resumed: bool = False) -> Switchover:
        chain = self._chain(Ledger.of(self.state_dir), primary, standby)
        of_chain = {one.name: getattr(chain, one.name) for one in fields(chain)}
        return Switchover(**of_chain, old_address=node_conninfo(self.stack(), primary.name), is_resumed=is_resumed)

    def _facts(self, primary: WatchedNode, standby: WatchedNode, now: datetime) -> dict[str, Any]:
        """Return what is known at the moment of confirmation."""
        last, follower = primary.seen, standby.seen
        failed_at = primary.first_failed_at or now
        is_fresh = last is not None and time.monotonic() - last.at_s <= FRESH_S + (now - failed_at).total_seconds()
        known = last is not None and follower is not None and last.lsn is not None and follower.lsn is not None
        lag = max(0, last.lsn - follower.lsn) if known and is_fresh else None  # type: ignore[union-attr, operator]
        return {
            "old": primary.name,
            "new": standby.name,
            "system_identifier": last.system_identifier if last else "",
            "timeline": last.timeline if last else 0,
            "primary_lsn": str(last.lsn) if last and last.lsn else None,
            "standby_lsn": str(follower.lsn) if follower and follower.lsn else None,
            "known_lag_bytes": lag,
            "first_failed_at": failed_at.isoformat(),
            "evidence": f"primary: {self._watch.last.primary if self._watch.last else '?'}; standby: {View.DEAD}",
            "open_session": str(primary.ended or Sign.SILENT),
            "window_s": self._watch.window_s,
            "processes_seen_alive": self._saw_alive.processes if self._saw_alive else 0,
            "shmid": self._saw_alive.shmid if self._saw_alive else None,
        }

    def _chain(self, ledger: Ledger, primary: WatchedNode, standby: WatchedNode) -> Chain:
        stack, place, saw_alive, kept = self.stack(), self.place, self._saw_alive, self._repository

        def effect() -> Effect:
            fresh = KeptSession(node_conninfo(stack, primary.name), application_name=APPLICATION_NAME)
            new = fresh.ask("SELECT 1", ANSWER_S)
            fresh.close()
            kept = primary.ended
            if kept is None and primary.session.fileno() is not None:
                kept = primary.session.ask("SELECT 1", ANSWER_S).sign
            return Effect(new.sign, kept or Sign.SILENT)

        return Chain(
            ledger=ledger,
            repository=lambda: kept[1] if kept is not None else stack.database_repository(),
            old=place.controls.get(primary.name) if place is not None else None,
            new=node_conninfo(stack, standby.name),
            application=place.application if place is not None else lambda: node_conninfo(stack, standby.name),
            effect=effect,
            limits=self._limits,
            slots=place.slots if place is not None else (),
            timeout_s=stack.spec.failover.timeout.total_seconds(),
            saw_alive=saw_alive,
            on_entry=self.on_entry,
        )

    def _end(self, incident: Incident) -> None:
        facts = incident.facts
        if incident.state is State.DONE:
            self._roles, self._watch = None, Watch()
            words = "switched over" if incident.is_planned else "failed over"
            log.warning(words, incident=incident.id, new=facts["new"], seconds=incident.phases_s())
        elif incident.is_planned and incident.at(State.PROMOTING) is None:  # the old primary takes writes, or is dead
            self._watch, self._armed_at_s = Watch(), 0.0
            log.warning("not switched over", incident=incident.id, reason=facts["reason"])
        else:
            self._refused = facts.get("reason", str(incident.state))
            self._watch = Watch(State.SUSPECT, since_s=time.monotonic(), last=self._watch.last)
            log.error("not failed over", incident=incident.id, state=str(incident.state), reason=self._refused)
        self._tell()

    def _resume(self) -> None:
        """Go on with what a killed watcher left: an open incident, or an old primary that was not rejoined."""
        ledger = Ledger.of(self.state_dir)
        incidents = ledger.incidents()
        if not incidents:
            return
        last = incidents[-1]
        if last.is_open:
            nodes = self._sessions()
            if last.is_planned:
                self._roles = (last.facts["old"], last.facts["new"])
                with ledger.held():
                    chain = self._handover(*(nodes[name] for name in self._roles), is_resumed=True)
                    self._end(chain.carry_on(last.id))
                return
            processes = int(last.facts["processes_seen_alive"])
            self._saw_alive = Living(processes, last.facts["shmid"]) if processes else None
            with ledger.held():
                primary, standby = nodes[last.facts["old"]], nodes[last.facts["new"]]
                primary.ask()
                if Sign(last.facts["open_session"]).is_hard:
                    primary.ended = Sign(last.facts["open_session"])  # our predecessor's
                self._end(self._chain(ledger, primary, standby).carry_on(last.id))
        elif last.state is State.DONE and ledger.rejoin(last.id) is None and self.place is not None:
            self._rejoin(ledger, last)

    def _rejoin(self, ledger: Ledger, incident: Incident) -> None:
        place, facts = self.place, incident.facts
        if place is None or facts["old"] not in place.controls:
            return
        with ledger.held():
            if ledger.rejoin(incident.id) is not None:
                return
            try:
                source = node_conninfo(self.stack(), facts["new"])
                found = place.controls[facts["old"]].rejoin(incident.id, source, Lsn.parse(facts["fork_lsn"]))
            except (SynapseOpsError, OSError) as error:
                message = error.message if isinstance(error, SynapseOpsError) else str(error)
                found = {"node": facts["old"], "how": "failed", "fault": message}
                log.exception("the old primary was not rejoined", incident=incident.id)
            ledger.write_rejoin(incident.id, {**found, "at": datetime.now(UTC).isoformat()})
        self._roles = None
