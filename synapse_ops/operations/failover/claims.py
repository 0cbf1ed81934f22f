"""Claims in the store: one failover for each timeline, whoever else wakes up. Written once, with If-None-Match."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from synapse_ops.domain.backup.layout import timeline_end_key
from synapse_ops.errors import DocumentUnreadable, SynapseOpsError
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.store import ConditionFailed

LIMIT_S = 2.0
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Claim:
    """The end of a timeline, for an incident. succeeds: incidents of ours that ended without a promotion."""

    system_identifier: str
    timeline: int
    incident: str
    succeeds: frozenset[str]
    at: datetime


def take_claim(repository: Repository, claim: Claim) -> str:
    """Claim the end of a timeline; return why not, empty: it is ours (also when it was before).

    A store that has not answered within 2 s is a refusal: what it did not confirm is not ours.
    """
    found = _in_time(lambda: _take(repository, claim))
    return f"the store did not answer within {LIMIT_S:g} s" if found is None else found


def holder_of(repository: Repository, system_identifier: str, timeline: int) -> str | None:
    """Return the incident that claimed the end of a timeline; None: nobody did, or the store does not say so in 2 s."""

    def ask() -> str | None:
        try:
            return read_holder(repository, system_identifier, timeline)
        except SynapseOpsError:
            return None

    return _in_time(ask)


def read_holder(repository: Repository, system_identifier: str, timeline: int) -> str | None:
    """Return as `holder_of`, waiting for the store; None: nobody claims it. Raises the store's errors."""
    key = timeline_end_key(system_identifier, timeline)
    found = repository.store.read_with_etag(key)
    try:
        return str(json.loads(found[0])["incident"]) if found is not None else None
    except (ValueError, KeyError, TypeError) as fault:
        raise DocumentUnreadable(f"the claim {repository.store.full_url(key)} cannot be read") from fault


def _in_time(ask: Callable[[], Answer]) -> Answer | None:
    found: list[Answer] = []
    worker = threading.Thread(target=lambda: found.append(ask()), daemon=True)
    worker.start()
    worker.join(LIMIT_S)
    return found[0] if found else None


def _take(repository: Repository, claim: Claim) -> str:
    key = timeline_end_key(claim.system_identifier, claim.timeline)
    body = {"format_version": 1, "incident": claim.incident, "claimed_at": claim.at.isoformat()}
    data = (json.dumps(body) + "\n").encode()
    store = repository.store
    try:
        if not store.features.conditional_writes:
            return "the store does not honour If-None-Match, so that two could claim one timeline"
        found = store.read_with_etag(key)
        if found is None:
            store.put_bytes(key, data, if_none_match=True)
            return ""
        holder = str(json.loads(found[0])["incident"])
        if holder in claim.succeeds:
            store.put_bytes(key, data, if_match=found[1])
        elif holder != claim.incident:
            return f"timeline {claim.timeline} is ended by incident {holder}"
    except ConditionFailed:
        return f"somebody else claimed timeline {claim.timeline} at this moment"
    except SynapseOpsError as error:
        return f"the store did not take the claim: {error.message}"
    except (ValueError, KeyError, TypeError):
        return f"the claim {key} cannot be read"
    return ""
