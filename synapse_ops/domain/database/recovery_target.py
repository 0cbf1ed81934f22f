"""A moment to restore a cluster to, as a person writes it, and the settings of PostgreSQL that stop replay there.

Source: PostgreSQL documentation, "Recovery Target".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.errors import ConfigError

Kind = Literal["latest", "immediate", "time", "lsn", "name", "xid"]
_FORMS = "latest, immediate, time:2026-11-30T08:15:00Z, lsn:0/5012DD0, name:before_import, xid:771"


@dataclass(frozen=True, slots=True)
class RecoveryTarget:
    """latest: all WAL that is archived. immediate: the earliest consistent state of the newest base backup.

    time: what had committed until then, aware. lsn: what lies before the position. name: a restore point.
    xid: up to the commit of a transaction, that included.
    """

    kind: Kind
    time: datetime | None = None
    lsn: Lsn | None = None
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> RecoveryTarget:
        """Return the target written as in `--until`; raises ConfigError with the forms that exist."""
        kind, _, value = text.partition(":")
        try:
            match kind:
                case "latest" | "immediate" if kind == text:
                    return cls(kind)
                case "time":
                    return cls("time", time=_parse_time(value))
                case "lsn":
                    return cls("lsn", lsn=Lsn.parse(value))
                case "name" if value:
                    return cls("name", name=value)
                case "xid" if re.fullmatch(r"\d{1,10}", value):
                    return cls("xid", name=value)
        except ValueError as fault:
            raise ConfigError(f'cannot restore until "{text}": {fault}', detail=f"allowed: {_FORMS}") from None
        raise ConfigError(f'cannot restore until "{text}"', detail=f"allowed: {_FORMS}")

    def __str__(self) -> str:
        value = self.time.isoformat() if self.time else str(self.lsn) if self.lsn else self.name
        return f"{self.kind}:{value}" if value else self.kind

    def settings(self) -> dict[str, object]:
        """Return the settings that stop replay at the target; a position is exclusive, everything else inclusive."""
        match self.kind:
            case "immediate":
                return {"recovery_target": "immediate"}
            case "time" if self.time:
                return {"recovery_target_time": self.time.isoformat(sep=" ")}
            case "lsn":
                return {"recovery_target_lsn": str(self.lsn), "recovery_target_inclusive": False}
            case "name":
                return {"recovery_target_name": self.name}
            case "xid":
                return {"recovery_target_xid": self.name}
        return {}


def proof_target(
    before: str,
    *,
    first: datetime,
    last: datetime | None,
    fork: Lsn | None = None,
    promoted_at: datetime | None = None,
    between: float = 0.5,
) -> RecoveryTarget:
    """Return the target of the next proof; they take turns, each behind the one before.

    latest; where the newest promotion begins; soon after it; a moment. before: target of the newest proof. first, last:
    between them any time can be reached; last is None where nothing is. fork, promoted_at: of the newest promotion;
    None where it lies outside of that. between: of first and last, from 0 to 1.
    """
    turns = [RecoveryTarget("latest")]
    if last is not None and last > first:
        if fork is not None:
            turns.append(RecoveryTarget("lsn", lsn=fork))
        if promoted_at is not None and first < promoted_at < last:
            turns.append(RecoveryTarget("time", time=promoted_at))
        turns.append(RecoveryTarget("time", time=first + (last - first) * between))
    known = [str(target) for target in turns[:-1]]
    if before in known:
        return turns[known.index(before) + 1]
    return turns[0]


def _parse_time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f'"{text}" is not a time of the form 2026-11-30T08:15:00Z') from None
    if moment.tzinfo is None:
        raise ValueError("the time has no offset; append Z for UTC, or +02:00")
    return moment
