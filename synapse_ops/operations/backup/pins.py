"""Pins exempt a backup from expiry until they are lifted: one object each, `pin-<label>.json` beside `backup.json`.

A pin is written first and confirmed afterwards, because an expiry may be running: it re-checks every backup right
before removing it, so once no expiry is running and the backup still exists, the pin holds.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from datetime import datetime

from synapse_ops.domain.backup.catalog import gather
from synapse_ops.domain.backup.layout import BACKUP, BackupPlace, pin_name
from synapse_ops.errors import ConfigError, LeaseHeld, ObjectMissing, Unproven
from synapse_ops.operations.backup.catalog import list_own_objects
from synapse_ops.operations.backup.expire import LEASE
from synapse_ops.operations.backup.lease import hold_lease
from synapse_ops.operations.repository import Repository

MAX_LABEL = 60  # percent-encoded it may grow threefold, and some stores take 255 bytes per segment
CONFIRM_WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class PinReport:
    """What is pinned now. labels: all of the backup's, sorted. warnings: what the store cannot promise."""

    place: BackupPlace
    labels: tuple[str, ...]
    changed: bool
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """Return the report's fields; stable names."""
        return {
            "backup_id": self.place.backup_id,
            "kind": self.place.kind,
            "subject": self.place.subject,
            "identity": str(self.place.identity),
            "pins": list(self.labels),
            "changed": self.changed,
            "warnings": list(self.warnings),
        }


def pin_backup(repository: Repository, place: BackupPlace, label: str, now: datetime, *, reason: str = "") -> PinReport:
    """Pin a backup under `label`; safe to repeat.

    Raises ConfigError for a label that cannot be used, ObjectMissing when the backup is gone, Unproven when a running
    expiry does not end in time, so that it is not known yet whether the pin was early enough.
    """
    _check_label(label)
    store = repository.store
    key = place.key(pin_name(label))
    changed = store.head(key) is None
    _require(repository, place)
    owner = f"{socket.gethostname()}, pid {os.getpid()}"
    if changed:
        body = {"format_version": 1, "label": label, "reason": reason, "pinned_at": now.isoformat(), "by": owner}
        store.put_bytes(key, (json.dumps(body, sort_keys=True, ensure_ascii=False) + "\n").encode())
    try:
        with hold_lease(repository, LEASE, owner=f"pin of {owner}", wait_s=CONFIRM_WAIT_S) as lease:
            warnings = lease.warnings
            if store.head(place.key(BACKUP)) is None:
                store.delete([key])
                raise _gone(repository, place)
    except LeaseHeld as held:
        raise Unproven(
            f'pin "{label}" of {place.backup_id} is written, but an expiry is running: {held.owner}',
            hint=f"`synapse-ops pin {place.backup_id} {label}` again, when it has ended, confirms the pin.",
        ) from held
    return PinReport(place, _labels(repository, place), changed, warnings)


def unpin_backup(repository: Repository, place: BackupPlace, label: str | None) -> PinReport:
    """Lift one pin, or all of them with None. Raises ConfigError that lists the pins for a label that is not there."""
    labels = _labels(repository, place)
    if label is not None and label not in labels:
        raise ConfigError(
            f'backup {place.backup_id} has no pin "{label}"',
            detail="pins: " + (", ".join(labels) or "none"),
            hint="`synapse-ops backup show` lists the pins of a backup.",
        )
    lifted = labels if label is None else (label,)
    repository.store.delete([place.key(pin_name(one)) for one in lifted])
    return PinReport(place, tuple(one for one in labels if one not in lifted), bool(lifted))


def _check_label(label: str) -> None:
    if not label.strip() or len(label.encode()) > MAX_LABEL or any(ord(c) < 32 for c in label):
        raise ConfigError(
            f'pin label "{label}" has {len(label.encode())} bytes, allowed 1 to {MAX_LABEL} without control characters',
            hint="Use a label that gives the reason, such as `audit-2026`.",
        )


def _require(repository: Repository, place: BackupPlace) -> None:
    if repository.store.head(place.key(BACKUP)) is None:
        raise _gone(repository, place)


def _gone(repository: Repository, place: BackupPlace) -> ObjectMissing:
    return ObjectMissing(
        f"backup {place.backup_id} has no {BACKUP}", detail=f"looked in {repository.store.full_url(place.prefix)}"
    )


def _labels(repository: Repository, place: BackupPlace) -> tuple[str, ...]:
    rows = list(list_own_objects(repository.store, place))
    return tuple(sorted(gather(place, rows).pins)) if rows else ()
