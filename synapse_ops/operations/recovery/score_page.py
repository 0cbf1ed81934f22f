"""Reads what the page of drills shows: the scores, and since when drills are waited for."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import datetime

from synapse_ops.domain.bounded_json import read_json
from synapse_ops.domain.recovery.drill_score import BEGUN, Scenario
from synapse_ops.domain.recovery.score_page import ScorePage
from synapse_ops.operations.backup_kinds import BASES, DUMPS
from synapse_ops.operations.recovery.recoverability import objectives_of
from synapse_ops.operations.recovery.scores import MAX_SCORE_BYTES, read_scores
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.stack import Stack
from synapse_ops.systems.s3.conditional_write import write_over
from synapse_ops.systems.s3.store import ConditionFailed


def read_score_page(stack: Stack, expected: Collection[Scenario], now: datetime) -> ScorePage:
    """Return the page. The first look at a repository is noted there: the time that a drill may take counts from it.

    expected: the drills that are scheduled here. Raises what the store raises.
    """
    repository = stack.database_repository()
    found = read_scores(repository)
    kind = BASES if stack.spec.backup.database.wal_archiving != "off" else DUMPS
    return ScorePage(
        scores=found.scores,
        unreadable=found.unreadable,
        expected=tuple(one for one in Scenario if one in expected),
        objectives=objectives_of(kind, stack.spec),
        begun_at=_begun_at(repository, now),
        now=now,
    )


def _begun_at(repository: Repository, now: datetime) -> datetime | None:
    """Return when this repository was first looked at; None where the note cannot be read."""
    store = repository.store
    found = store.read_with_etag(BEGUN, max_bytes=MAX_SCORE_BYTES)
    if found is None:
        body = {"format_version": 1, "at": now.isoformat()}
        try:
            write_over(store, BEGUN, (json.dumps(body, sort_keys=True) + "\n").encode())
        except ConditionFailed:
            found = store.read_with_etag(BEGUN, max_bytes=MAX_SCORE_BYTES)
        else:
            return now
    try:
        at = datetime.fromisoformat(read_json(found[0] if found is not None else b"")["at"])
    except (ValueError, KeyError, TypeError):
        return None
    return at if at.tzinfo is not None else None
