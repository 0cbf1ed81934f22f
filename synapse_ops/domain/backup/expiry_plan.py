"""An expiry plan as a document: one header line, then one JSON line per entry, and a digest that names it.

The digest covers what would be done and why (policy, every entry, its listing), and no reading of a clock: planning
twice without a change gives one digest, so a person can approve today what was printed a minute ago. When it was made
is in the header only; a plan older than MAX_AGE is refused.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Self

from synapse_ops.domain.backup.catalog import CatalogEntry
from synapse_ops.domain.backup.layout import BackupPlace, Identity
from synapse_ops.domain.backup.left_overs import LeftOver
from synapse_ops.domain.backup.retention import Decision, RatioExcess, RetentionPolicy, Rule, excesses
from synapse_ops.domain.bounded_json import read_json
from synapse_ops.errors import DocumentUnreadable

FORMAT_VERSION = 1
MAX_AGE = timedelta(hours=24)  # an approval is for the repository of today


class Action(StrEnum):
    """What a plan does with an entry."""

    KEEP = "keep"
    EXPIRE = "expire"
    REMOVE_LEFT_OVER = "remove-left-over"
    ABORT_UPLOAD = "abort-upload"
    EXPIRE_WAL = "expire-wal"


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """One backup, left-over or upload of a plan, or 256 segments of WAL; these by the name of the first.

    listing_digest: of the prefix as listed when the plan was made; empty for an upload. size_bytes: of all its objects.
    taken_at, proven_at: None where there is none. upload: name and id of a multipart upload, else None.
    """

    action: Action
    place: BackupPlace
    rule: Rule
    reason: str
    size_bytes: int
    listing_digest: bytes
    taken_at: datetime | None
    proven_at: datetime | None
    doubt: str
    upload: tuple[str, str] | None

    @property
    def removes(self) -> bool:
        return self.action is not Action.KEEP

    def as_json(self) -> dict[str, Any]:
        """Return the line's fields; stable names, times in ISO 8601 UTC."""
        return {
            "action": str(self.action),
            "identity": str(self.place.identity),
            "kind": self.place.kind,
            "subject": self.place.subject,
            "backup_id": self.place.backup_id,
            "rule": str(self.rule),
            "reason": self.reason,
            "size_bytes": self.size_bytes,
            "listing_digest": self.listing_digest.hex(),
            "taken_at": self.taken_at.isoformat() if self.taken_at else None,
            "proven_at": self.proven_at.isoformat() if self.proven_at else None,
            "doubt": self.doubt,
            "upload": list(self.upload) if self.upload else None,
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        return cls(
            action=Action(body["action"]),
            place=BackupPlace(Identity.parse(body["identity"]), body["kind"], str(body["subject"]), body["backup_id"]),
            rule=Rule(body["rule"]),
            reason=str(body["reason"]),
            size_bytes=int(body["size_bytes"]),
            listing_digest=bytes.fromhex(body["listing_digest"]),
            taken_at=_moment(body["taken_at"]) if body["taken_at"] else None,
            proven_at=_moment(body["proven_at"]) if body["proven_at"] else None,
            doubt=str(body["doubt"]),
            upload=(str(body["upload"][0]), str(body["upload"][1])) if body["upload"] else None,
        )

    @classmethod
    def of_backup(cls, decision: Decision) -> Self:
        entry: CatalogEntry = decision.entry
        return cls(
            action=Action.EXPIRE if decision.expires else Action.KEEP,
            place=entry.place,
            rule=decision.rule,
            reason=sys.intern(decision.reason),  # one text for the thousands that share a rule
            size_bytes=entry.size_bytes,
            listing_digest=entry.listing_digest,
            taken_at=entry.database_time or entry.started_at,
            proven_at=entry.proven_at,
            doubt=entry.doubt,
            upload=None,
        )

    @classmethod
    def of_left_over(cls, left_over: LeftOver) -> Self:
        listed, upload = left_over.listed, left_over.upload
        gone = Action.REMOVE_LEFT_OVER if upload is None else Action.ABORT_UPLOAD
        return cls(
            action=gone if left_over.goes else Action.KEEP,
            place=left_over.place,
            rule=left_over.rule,
            reason=left_over.reason,
            size_bytes=listed.size_bytes if listed else 0,
            listing_digest=listed.listing_digest if listed else b"",
            taken_at=None,
            proven_at=None,
            doubt="no backup.json" if upload is None else "an upload that was never completed",
            upload=(upload.name, upload.upload_id) if upload else None,
        )


@dataclass(frozen=True, slots=True)
class Totals:
    """How much a plan keeps and removes. Counts: backups, left-over prefixes, uploads, groups of WAL. Bytes: of all.

    WAL that stays is in no count: it grows each second.
    """

    kept: int
    expired: int
    left_overs: int
    uploads: int
    wal_groups: int
    kept_bytes: int
    removed_bytes: int

    def as_json(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class ExpiryPlan:
    """What one expiry would do. `entries`: backups by group, newest first, then left-overs, then uploads, then WAL.

    excesses: groups of which it would remove more than the policy allows; apply refuses until that is accepted.
    warnings, notes: one line each, for people; not part of the digest.
    """

    policy: RetentionPolicy
    made_at: datetime
    store_time: datetime
    entries: tuple[PlanEntry, ...]
    excesses: tuple[RatioExcess, ...] = ()
    warnings: tuple[str, ...] = ()
    foreign_count: int = 0
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """16 hex digits that name exactly this content."""
        lines = hashlib.sha256(_dumps(self.policy.as_json()))
        for entry in self.entries:
            lines.update(_dumps(entry.as_json()))
        return lines.hexdigest()[:16]

    @property
    def totals(self) -> Totals:
        by_action = {action: [row for row in self.entries if row.action is action] for action in Action}
        return Totals(
            kept=len(by_action[Action.KEEP]),
            expired=len(by_action[Action.EXPIRE]),
            left_overs=len(by_action[Action.REMOVE_LEFT_OVER]),
            uploads=len(by_action[Action.ABORT_UPLOAD]),
            wal_groups=len(by_action[Action.EXPIRE_WAL]),
            kept_bytes=sum(row.size_bytes for row in by_action[Action.KEEP]),
            removed_bytes=sum(row.size_bytes for row in self.entries if row.removes),
        )

    def to_jsonl(self) -> Iterator[bytes]:
        """Yield the document line by line: the header, then the entries."""
        yield _dumps(
            {
                "format_version": FORMAT_VERSION,
                "kind": "expiry",
                "digest": self.digest,
                "made_at": self.made_at.isoformat(),
                "store_time": self.store_time.isoformat(),
                "policy": self.policy.as_json(),
                "totals": self.totals.as_json(),
                "warnings": list(self.warnings),
                "foreign_count": self.foreign_count,
                "notes": list(self.notes),
            }
        )
        for entry in self.entries:
            yield _dumps(entry.as_json())

    @classmethod
    def from_jsonl(cls, data: bytes, *, key: str) -> Self:
        """Return the plan stored under `key`. Raises DocumentUnreadable when it is torn or is not what it says."""
        try:
            header, *rows = map(read_json, data.splitlines())
            if (header["format_version"], header["kind"]) != (FORMAT_VERSION, "expiry"):
                raise DocumentUnreadable(f"cannot read {key}: format {header['format_version']} {header['kind']}")
            policy = RetentionPolicy.from_json(header["policy"])
            entries = tuple(PlanEntry.from_json(row) for row in rows)
            plan = cls(
                policy=policy,
                made_at=_moment(header["made_at"]),
                store_time=_moment(header["store_time"]),
                entries=entries,
                excesses=excesses_of(entries, policy.max_expiry_ratio),
                warnings=tuple(map(str, header["warnings"])),
                foreign_count=int(header["foreign_count"]),
                notes=tuple(map(str, header.get("notes", ()))),
            )
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as fault:
            raise DocumentUnreadable(f"cannot read {key}: {type(fault).__name__}", detail=str(fault)) from fault
        if plan.digest != header["digest"]:
            raise DocumentUnreadable(f"cannot read {key}: content has digest {plan.digest}, header {header['digest']}")
        return plan


def excesses_of(entries: Sequence[PlanEntry], max_ratio: float) -> tuple[RatioExcess, ...]:
    """Return the groups of which a plan's entries remove more than `max_ratio` (0 to 1); left-overs do not count."""
    backups = [row for row in entries if row.taken_at is not None]
    return excesses([(row.place, row.action is Action.EXPIRE) for row in backups], max_ratio)


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return moment


def _dumps(body: Mapping[str, Any]) -> bytes:
    return (json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def entries_of(
    decisions: Iterable[Decision], left_overs: Iterable[LeftOver], wal: Iterable[PlanEntry] = ()
) -> tuple[PlanEntry, ...]:
    """Return a plan's entries in their stable order."""
    return (*map(PlanEntry.of_backup, decisions), *map(PlanEntry.of_left_over, left_overs), *wal)
