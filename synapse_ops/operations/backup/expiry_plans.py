"""The documents of expiry plans in a repository: stored under their digest, read, marked as applied, removed when old.

    plans/expiry-<digest>.jsonl           the plan: header line, then one line per entry
    plans/expiry-<digest>.applied.json    written when all of it was done; the digest then does nothing a second time

A plan goes when it can no longer be applied: its own `.jsonl` once it was applied, and both documents after seven days
by the store's clock (a plan is refused after one). Only an apply removes them, under the lease that it holds, only keys
of exactly these two forms that it has just listed, and its report names each.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from datetime import datetime, timedelta

from synapse_ops.domain.backup.expiry_plan import ExpiryPlan
from synapse_ops.errors import ConfigError, ObjectMissing, PlanChanged
from synapse_ops.operations.repository import Repository

KEPT_FOR = timedelta(days=7)  # a week in which a re-executed run still learns when its digest was applied

_DIGEST = re.compile(r"[0-9a-f]{16}")
_PREFIX = "plans/expiry-"
_OWN_KEY = re.compile(r"plans/expiry-([0-9a-f]{16})(\.jsonl|\.applied\.json)")


def plan_key(digest: str) -> str:
    return f"{_PREFIX}{digest}.jsonl"


def _applied_key(digest: str) -> str:
    return f"{_PREFIX}{digest}.applied.json"


def is_plan_digest(text: str) -> bool:
    """Whether a text has the form of a plan's digest; there may be no such plan."""
    return _DIGEST.fullmatch(text) is not None


def require_digest(text: str) -> None:
    """Raise ConfigError for a text that does not have the form of a digest."""
    if not is_plan_digest(text):
        raise ConfigError(
            f'"{text}" is not the digest of a plan: 16 hex digits',
            hint="`synapse-ops expire --plan` prints the digest.",
        )


def store_plan(repository: Repository, plan: ExpiryPlan) -> None:
    """Write a plan under its digest; an older writing of the same plan is replaced."""
    with tempfile.TemporaryFile() as document:  # in memory it would be as large again as the plan
        document.writelines(plan.to_jsonl())
        repository.store.put_file(plan_key(plan.digest), document)


def holds_plan(repository: Repository, digest: str) -> bool:
    """Whether a plan of this digest lies in the repository, or was applied there."""
    return any(repository.store.head(key) is not None for key in (plan_key(digest), _applied_key(digest)))


def read_plan(repository: Repository, digest: str) -> ExpiryPlan:
    """Return the stored plan of a digest. Raises PlanChanged when there is none, DocumentUnreadable for a torn one."""
    require_digest(digest)
    key = plan_key(digest)
    try:
        plan = ExpiryPlan.from_jsonl(repository.store.read_bytes(key), key=key)
    except ObjectMissing:
        raise PlanChanged(
            f"there is no plan {digest} in {repository.url}",
            hint="`synapse-ops expire --plan` makes one and prints its digest.",
        ) from None
    if plan.digest != digest:
        raise PlanChanged(f"the plan stored as {digest} has digest {plan.digest}", hint="Was it edited? Plan again.")
    return plan


def read_applied_at(repository: Repository, digest: str) -> datetime | None:
    """Return when a digest was applied (the store's clock, aware UTC), None when it was not."""
    found = repository.store.head(_applied_key(digest)) if is_plan_digest(digest) else None
    return found.modified_at if found is not None else None


def mark_applied(repository: Repository, digest: str, counts: Mapping[str, int], now: datetime) -> None:
    """Spend a digest. counts: what came of it, for people."""
    body = {"format_version": 1, "digest": digest, "applied_at": now.isoformat(), **counts}
    repository.store.put_bytes(_applied_key(digest), (json.dumps(body, sort_keys=True) + "\n").encode())


def remove_old_plans(repository: Repository, now: datetime, *, keep: str) -> tuple[str, ...]:
    """Remove what can no longer be applied and return the keys removed, sorted. The caller holds the expiry lease.

    now: the store's clock. keep: the digest that is being applied. What the store does not delete is left for the next.
    """
    rows = {row.key: row.modified_at for row in repository.store.list_objects(_PREFIX) if _OWN_KEY.fullmatch(row.key)}
    old = [key for key, at in rows.items() if _digest_of(key) != keep and (now - at > KEPT_FOR or _is_spent(key, rows))]
    undeleted = repository.store.delete(sorted(old)) if old else {}
    return tuple(sorted(set(old) - set(undeleted)))


def _digest_of(key: str) -> str:
    return key.removeprefix(_PREFIX).partition(".")[0]


def _is_spent(key: str, rows: Mapping[str, datetime]) -> bool:
    """Whether a key is a plan that was applied after it was last written."""
    applied_at = rows.get(_applied_key(_digest_of(key)))
    return key.endswith(".jsonl") and applied_at is not None and applied_at >= rows[key]
