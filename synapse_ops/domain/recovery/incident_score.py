"""The score of a real failover or switchover, from the ledger's incident: the only drill of the system itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from synapse_ops.domain.failover.incident import Incident
from synapse_ops.domain.failover.transitions import State
from synapse_ops.domain.recovery.drill_score import PREFIX, DrillScore, Of, Scenario

REJOIN_WAIT = timedelta(hours=1)  # a score is written once: with how the old primary came back, or without


def incident_key(incident: Incident) -> str:
    """Return the key of an incident's score: the same each time, so that it is written once."""
    return f"{PREFIX}{incident.id}.json"


def score_of_incident(
    incident: Incident, back: Mapping[str, Any] | None, now: datetime, version: str
) -> DrillScore | None:
    """Return the score; None while more may follow, and of a switchover that was refused before anything was done."""
    is_done = incident.state is State.DONE
    if incident.is_open or (incident.is_planned and incident.state is State.REFUSED):
        return None
    if is_done and back is None and now - incident.entries[-1].at < REJOIN_WAIT:
        return None
    facts, ends = incident.facts, incident.phases_s()
    reason = "" if is_done else f"{incident.state}: {facts.get('reason', '')}"
    if is_done and (back is None or "seconds" not in back):
        reason = f"{facts['old']} did not come back: {(back or {}).get('fault', 'within an hour')}"
    steps = [("", 0.0), *((name, end_s) for name, end_s in ends.items() if end_s >= 0)]
    phases = [(name, round(end_s - before_s, 3)) for (_, before_s), (name, end_s) in pairwise(steps)]
    if is_done and back is not None and "seconds" in back:
        phases.append(("rejoined", float(back["seconds"])))
    lost = facts.get("lost_commits")
    return DrillScore(
        scenario=Scenario.SWITCHOVER if incident.is_planned else Scenario.FAILOVER,
        of=Of.SYSTEM,
        at=incident.begun_at,
        reason=reason[:1000],
        phases=tuple((name, max(0.0, seconds)) for name, seconds in phases),
        predicted=None,
        lost_writes=lost,
        rto_s=ends["done"] if is_done else None,
        rpo_s=0.0 if lost == 0 else None,
        size_bytes=0,
        code_version=version,
    )
