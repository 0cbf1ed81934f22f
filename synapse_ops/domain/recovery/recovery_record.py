"""One recovery: what is restored from which backup, and what each of its steps came to. A document of this host."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Self

from synapse_ops.domain.backup.layout import format_time

FORMAT = 1
IMPACT, RESTORED, INTEGRITY = "impact_assessment", "restored_stack", "integrity_report"
SWITCH, VALIDATION = "traffic_switch", "system_validation"
STEPS = (IMPACT, RESTORED, INTEGRITY, SWITCH, VALIDATION)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What one store is restored from. what: `cluster`, `vectors/NAME`, `redis/ADDRESS`. at: the moment it restores.

    window_s: of a collection, how long its points were read: each is as it was at some moment of it.
    """

    what: str
    backup_id: str
    at: datetime | None
    note: str = ""
    window_s: float = 0.0

    @property
    def subject(self) -> str:
        return self.what.partition("/")[2] or self.what

    def as_json(self) -> dict[str, Any]:
        at = self.at.isoformat() if self.at else None
        return {
            "what": self.what,
            "backup_id": self.backup_id,
            "at": at,
            "note": self.note,
            "window_s": self.window_s,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        at = datetime.fromisoformat(body["at"]) if body["at"] else None
        return cls(str(body["what"]), str(body["backup_id"]), at, str(body["note"]), float(body["window_s"]))


@dataclass(frozen=True, slots=True)
class RecoveryRecord:
    """A recovery as far as it came. until: as `--until` has it. identity: whose base backup and WAL are restored.

    chosen: in the order of restoring. empty: stores that begin empty, and why. predicted_s: of the restores; None:
    never measured. steps: by name, facts of JSON types without secrets; a step that is not there has not been done.
    """

    id: str
    until: str
    begun_at: datetime
    identity: str
    chosen: tuple[Chosen, ...]
    empty: Mapping[str, str] = field(default_factory=dict)
    predicted_s: float | None = None
    steps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def is_prepared(self) -> bool:
        """Whether the copy is restored and was looked at, whatever came of that."""
        return INTEGRITY in self.steps

    @property
    def faults(self) -> tuple[str, ...]:
        return tuple(self.steps.get(INTEGRITY, {}).get("faults", ()))

    @property
    def is_switched(self) -> bool:
        return SWITCH in self.steps

    @property
    def is_done(self) -> bool:
        return VALIDATION in self.steps

    @property
    def digest(self) -> str:
        """Return what a person approves: 16 hex digits over what is restored and what the checks of the copy found."""
        wanted = {"restored": self.steps.get(RESTORED), "integrity": self.steps.get(INTEGRITY)}
        body = {"id": self.id, "until": self.until, "chosen": [one.as_json() for one in self.chosen], **wanted}
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]

    def with_step(self, name: str, facts: Mapping[str, Any]) -> Self:
        return replace(self, steps={**self.steps, name: dict(facts)})

    def as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "id": self.id,
            "until": self.until,
            "begun_at": self.begun_at.isoformat(),
            "identity": self.identity,
            "chosen": [one.as_json() for one in self.chosen],
            "empty": dict(self.empty),
            "predicted_s": self.predicted_s,
            "digest": self.digest if self.is_prepared else None,
            "steps": {name: self.steps[name] for name in STEPS if name in self.steps},
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Raises KeyError, ValueError or TypeError for what is none."""
        if body["format"] != FORMAT:
            raise ValueError(f"format is {body['format']}, this reads {FORMAT}")
        return cls(
            id=str(body["id"]),
            until=str(body["until"]),
            begun_at=datetime.fromisoformat(body["begun_at"]),
            identity=str(body["identity"]),
            chosen=tuple(Chosen.from_json(one) for one in body["chosen"]),
            empty=dict(body["empty"]),
            predicted_s=body["predicted_s"],
            steps={str(name): dict(facts) for name, facts in body["steps"].items()},
        )


def new_recovery_id(now: datetime, entropy: bytes) -> str:
    return f"{format_time(now)}-{entropy[:3].hex()}"
