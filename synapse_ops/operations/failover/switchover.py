"""A planned change of the primary: nothing is lost, and until the promotion is begun everything can be taken back.

The stop is clean and proven: pg_control says "shut down", and the standby has replayed the checkpoint of the shutdown,
the last record of a server that ended in order. Before that is so nobody is promoted; the old primary is started again.
A prober that finds a switchover which another one began rolls it back before the promotion, and goes on after it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from synapse_ops.domain.failover.incident import Incident
from synapse_ops.domain.failover.switchover import plan_switchover
from synapse_ops.domain.failover.transitions import Event, State
from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.failover.chain import SETTLE_LIMIT_S, Chain, Step
from synapse_ops.systems.postgres.handover import checkpoint, other_senders, read_readiness
from synapse_ops.systems.postgres.promotion import settled_standing

STOP_LIMIT_S = 10.0  # without writes; then the old primary is started again
READY_LIMIT_S = 2.0
POLL_S = 0.1


@dataclass
class Switchover(Chain):
    """A chain that stops the old primary instead of fencing a dead one. old_address: its conninfo as superuser.

    is_resumed: another prober began it, and ended.
    """

    old_address: str = field(default="", repr=False)
    is_resumed: bool = False

    def steps(self) -> dict[State, Step]:
        return {**super().steps(), State.ASKED: self._prepare, State.STOPPING: self._stop}

    def _prepare(self, incident: Incident) -> tuple[Event, dict[str, Any]]:
        """Judge; do beforehand what would take time without writes; claim the timeline. Nothing is stopped yet."""
        if self.is_resumed:
            return Event.NOT_ALLOWED, {"reason": "the prober ended before anything was stopped"}
        if self.limits().manager == "external":
            return Event.NOT_ALLOWED, {"reason": "failover.manager is external: another manager promotes"}
        facts = incident.facts
        old, new = (facts["old"], self.old_address), (facts["new"], self.new)
        try:
            self._old()
            reason = self._objection(incident)
            if not reason:
                for node in (old, new):
                    checkpoint(node)
                reason = self._objection(incident)
            senders = other_senders(old, facts["new"]) if not reason else ()
        except SynapseOpsError as error:
            reason = error.message
        reason = reason or self._claim(incident)
        return (Event.NOT_ALLOWED, {"reason": reason}) if reason else (Event.ALLOWED, {"senders": list(senders)})

    def _objection(self, incident: Incident) -> str:
        """Return what stands against it, when it still does after READY_LIMIT_S: a lag may pass by itself."""
        facts, deadline_s = incident.facts, time.monotonic() + READY_LIMIT_S
        while True:
            found = read_readiness((facts["old"], self.old_address), (facts["new"], self.new))
            against = plan_switchover(found, self.limits().max_lag_bytes, end_sessions=facts["end_sessions"])
            if not against or time.monotonic() > deadline_s:
                return "; ".join(against)
            time.sleep(POLL_S)

    def _stop(self, incident: Incident) -> tuple[Event, dict[str, Any]]:
        facts = incident.facts
        if self.is_resumed:
            return self._roll_back(incident, "the prober ended before the promotion was begun")
        try:
            end = self._old().stop_cleanly(incident.id, facts["timeline"], facts["senders"], STOP_LIMIT_S)
            standing = settled_standing(self.new, facts["timeline"], SETTLE_LIMIT_S)
        except (SynapseOpsError, OSError) as error:
            return self._roll_back(incident, error.message if isinstance(error, SynapseOpsError) else str(error))
        follows = standing.in_recovery and standing.timeline == facts["timeline"]
        if not follows or standing.received is None or standing.replayed is None or standing.replayed <= end:
            at = f"it replayed {standing.replayed} on timeline {standing.timeline}"
            return self._roll_back(incident, f"the standby has not got the last checkpoint at {end}: {at}")
        return Event.STOPPED_CLEANLY, {"chosen_lsn": str(standing.received), "shutdown_lsn": str(end)}

    def _roll_back(self, incident: Incident, reason: str) -> tuple[Event, dict[str, Any]]:
        """Start the old primary again. If it does not start, the watcher finds it dead and fails over."""
        try:
            self._old().start_again(incident.id)
        except (SynapseOpsError, OSError) as error:
            fault = error.message if isinstance(error, SynapseOpsError) else str(error)
            return Event.GIVEN_UP, {"reason": f"{reason}; {incident.facts['old']} did not start again: {fault}"}
        return Event.GIVEN_UP, {"reason": reason}
