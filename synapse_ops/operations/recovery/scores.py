"""The scores of drills in the bucket, beside the backups: written once, read with the newest first, never overwritten.

They lie in `drills/` of the database's repository, which is there when nothing else is left. Nothing expires them: a
weekly drill leaves a hundred KiB in ten years.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from heapq import nlargest

from synapse_ops.domain.recovery.drill_score import PREFIX, DrillScore, is_score_key, score_key
from synapse_ops.errors import IntegrityError, ObjectMissing
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.conditional_write import write_over

NEWEST = 200  # four years of a weekly drill
READERS = 16  # concurrent GETs
MAX_SCORE_BYTES = 64 * 1024  # a score has 1 KiB; a larger one is not ours


@dataclass(frozen=True, slots=True)
class Scores:
    """What was read. scores: newest first. unreadable: why each other one could not be read, with its key."""

    scores: tuple[DrillScore, ...]
    unreadable: tuple[str, ...] = ()


def write_score(repository: Repository, score: DrillScore, key: str = "") -> str:
    """Store a score under a key of its own, or under the one given, and return the key.

    Raises what the store raises; ConditionFailed where another score has the key.
    """
    key = key or score_key(score, os.urandom(3))
    write_over(repository.store, key, score.to_bytes())  # only where no object is
    return key


def read_scores(repository: Repository) -> Scores:
    """Return the newest scores. One that cannot be read is named and stops nothing. Raises what the listing raises."""
    listed = nlargest(NEWEST, (row.key for row in repository.store.list_objects(PREFIX) if is_score_key(row.key)))
    with ThreadPoolExecutor(READERS, thread_name_prefix="scores") as pool:
        read = list(pool.map(partial(_read, repository), listed))
    found = (one for one in read if isinstance(one, DrillScore))
    unreadable = tuple(one for one in read if isinstance(one, str))
    return Scores(tuple(sorted(found, key=lambda one: one.at, reverse=True)), unreadable)


def _read(repository: Repository, key: str) -> DrillScore | str | None:
    """Return a score, why it could not be read, or None for one that was removed meanwhile."""
    try:
        return DrillScore.from_bytes(repository.store.read_bytes(key, max_bytes=MAX_SCORE_BYTES), key)
    except ObjectMissing:
        return None
    except IntegrityError as fault:
        return fault.message
