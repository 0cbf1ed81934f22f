"""Chains of base backups: a full one, and incremental ones, each of which holds what changed since the one before.

A restore reads the whole chain. So a chain is bounded: in time by the spec, in number, and in size, for a copy of many
small changes is no longer smaller than a full one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from synapse_ops.domain.backup.base_record import BaseRecord

OLDEST_INCREMENTAL_MAJOR = 17
MOST_MEMBERS = 30
MOST_GROWTH = 1.6  # of all members together, compared with the full one


def why_full(chain: Sequence[BaseRecord], full_every: timedelta, timeline: int, now: datetime) -> str:
    """Return why the next base backup is a full one; empty: it holds what changed since the last of the chain.

    chain: of the newest base backup, the full one first; empty: there is none, or it cannot be built on.
    """
    if not chain:
        return "there is none to build on"
    if chain[-1].timeline != timeline:
        return f"the newest one is of timeline {chain[-1].timeline}, and the server writes {timeline}"
    if now - chain[0].started_time >= full_every:
        return "the last full one is old enough"
    if len(chain) >= MOST_MEMBERS:
        return f"a chain has {MOST_MEMBERS} members at most"
    if sum(one.dumped_bytes for one in chain) > MOST_GROWTH * chain[0].dumped_bytes:
        return f"the chain is larger than {MOST_GROWTH:g} times its full one"
    return ""


def members_bytes(chain: Sequence[BaseRecord]) -> int:
    """Return the disk space that the members of a chain take beside the copy that is made of them; 0 of a full one."""
    if len(chain) < 2:
        return 0
    changes = (one.incremental.files_bytes for one in chain if one.incremental is not None)
    return chain[0].source.cluster_size_bytes + sum(changes)
