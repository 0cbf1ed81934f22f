"""Plans which idle keys of the cache go, and removes exactly those that are still idle then.

A plan streams through the server page by page and holds the keys themselves, so that what goes can be read before.
Applying asks each key's idle time again, in the same script that removes it. Refused where idle time is not kept
(LFU), on a node of a cluster, on a replica, and while the server saves or loads its data.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from synapse_ops.domain.cleanup.cache import (
    Finding,
    Level,
    busy_with,
    cleanup_objection,
    compare_settings,
    compile_pattern,
    matches_any,
)
from synapse_ops.domain.durations import format_days
from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.errors import PlanChanged, Refused
from synapse_ops.operations.cleanup.plan_file import Draft, Outcome, StoredPlan, apply_plan, write_plan
from synapse_ops.spec import Spec
from synapse_ops.systems.redis.server import UNLINK_KEYS, IdlePage, RedisServer, redis_of

KIND = "cache"
BUSY_WAIT_S = 30.0  # a save of some gigabytes; the schedule comes back tomorrow
_POLL_S = 0.2
_SKIP_REASONS = {"g": "it is gone already", "u": "it was used since"}


def make_cache_plan(
    spec: Spec, state_dir: Path, now: datetime, *, progress: ReportProgress = ignore_progress
) -> StoredPlan:
    """List every key that matches the spec's patterns and was not used for its retention; removes nothing.

    Raises Refused where keys cannot be removed by idle time, Unreachable, ConfigError.
    """
    with _server(spec) as server, write_plan(state_dir, KIND, _policy(spec, server), now) as draft:
        _refuse_unfit(server)
        _list_idle(spec, server, draft, progress)
        draft.warnings += [str(row) for row in _findings(spec, server) if row.level is not Level.NOTE]
    return draft.plan


def apply_cache_plan(
    digest: str, spec: Spec, state_dir: Path, now: datetime, *, progress: ReportProgress = ignore_progress
) -> Outcome:
    """Remove the keys that the plan of this digest names and that are still idle.

    Raises PlanChanged (no such plan, used, old, of another server or pattern), Refused, LeaseHeld, Unreachable.
    """
    with _server(spec) as server, apply_plan(state_dir, KIND, digest, now) as (plan, outcome):
        named, wanted = plan.header["policy"], _policy(spec, server)
        if named != wanted:
            changed = next(name for name in wanted if named.get(name) != wanted[name])
            raise PlanChanged(
                f"plan {digest} was made for {changed} {named.get(changed)}, the spec now has {wanted[changed]}",
                hint="`synapse-ops cleanup --plan` makes a new one.",
            )
        _refuse_unfit(server)
        _wait_until_not_busy(server)
        memory_before = int(server.info().get("used_memory", 0))
        entries = plan.entries()
        removed = 0
        while batch := list(islice(entries, UNLINK_KEYS)):
            keys = [body["key"].encode("utf-8", "surrogateescape") for body in batch]
            letters = server.unlink_idle(keys, wanted["retention_s"])
            outcome.did("delete", times=letters.count("d"))
            for body, letter in zip(batch, letters, strict=True):
                if letter != "d":
                    outcome.skip(body, _SKIP_REASONS[letter])
            removed += len(batch)
            progress(Progress("removing idle keys", removed, unit="keys"))
        outcome.freed_bytes = max(0, memory_before - int(server.info().get("used_memory", 0)))
    return outcome


def read_redis_findings(spec: Spec) -> tuple[Finding, ...]:
    """Return where the server is not what the spec takes it for, the worst first."""
    with _server(spec) as server:
        return _findings(spec, server)


def _findings(spec: Spec, server: RedisServer) -> tuple[Finding, ...]:
    return compare_settings(spec.redis, server.info(), server.settings())


def _server(spec: Spec) -> AbstractContextManager[RedisServer]:
    return closing(redis_of(spec.redis))


def _policy(spec: Spec, server: RedisServer) -> dict[str, Any]:
    return {
        "server": server.address,
        "patterns": list(spec.cleanup.cache_patterns),
        "retention_s": int(spec.cleanup.cache.retention.total_seconds()),
    }


def _refuse_unfit(server: RedisServer) -> None:
    objection = cleanup_objection(server.info())
    if objection:
        raise Refused(f"cannot clean up Redis {server.address}: {objection}", hint='See docs/cleanup.md, "Cache".')


def _wait_until_not_busy(server: RedisServer) -> None:
    give_up_at = time.monotonic() + BUSY_WAIT_S
    while doing := busy_with(server.info()):
        if time.monotonic() > give_up_at:
            raise Refused(
                f"could not clean up Redis {server.address}: it has been {doing} for {BUSY_WAIT_S:g} s",
                hint="Apply the same plan again when it has ended.",
            )
        time.sleep(_POLL_S)


def _list_idle(spec: Spec, server: RedisServer, draft: Draft, progress: ReportProgress) -> None:
    retention = spec.cleanup.cache.retention
    entry = {"action": "delete", "rule": "idle", "reason": f"not used for {format_days(retention)}"}
    matched = listed = sampled = sample_bytes = 0
    earlier: list[re.Pattern[bytes]] = []
    for pattern in spec.cleanup.cache_patterns:
        for page in server.idle_pages(pattern, int(retention.total_seconds())):
            matched += page.matched
            if page.sample_bytes:
                sampled, sample_bytes = sampled + 1, sample_bytes + page.sample_bytes
            listed += _add_page(draft, page, entry, earlier)
            progress(Progress("looking for idle keys", matched, unit="keys"))
        earlier.append(compile_pattern(pattern))
    draft.totals = {
        "matched": matched,
        "deleted": listed,
        "kept": matched - listed,
        "estimated_bytes": round(sample_bytes / sampled * listed) if sampled else 0,
    }


def _add_page(draft: Draft, page: IdlePage, entry: dict[str, Any], earlier: Sequence[re.Pattern[bytes]]) -> int:
    """Add a page's idle keys but those of patterns that were listed earlier; return how many."""
    if page.lines is not None and not earlier:
        if page.idle:
            draft.writer.add_lines(entry, "key", page.lines)
        return page.idle
    keys = [key for key in page.idle_keys() if not matches_any(key, earlier)]
    for key in keys:
        draft.writer.add({**entry, "key": key.decode("utf-8", "surrogateescape")}, acts=True)
    return len(keys)
