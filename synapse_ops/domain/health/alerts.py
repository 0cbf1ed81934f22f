"""The alerts that fire now, as Alertmanager's webhook reports them. Pure.

A notification names alerts one by one, each firing or resolved; what it does not name stays as it was. One that is not
repeated for FORGET_AFTER is forgotten: the longest repeat_interval that is rendered is a day.
Source: Alertmanager's documentation, "webhook_config".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from synapse_ops.domain.bounded_json import read_json

FORGET_AFTER = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class ActiveAlert:
    """One alert. since: when it began to fire; told_at: when we last heard of it; both aware. action: of the spec."""

    fingerprint: str
    name: str
    severity: str
    action: str
    summary: str
    since: datetime
    told_at: datetime

    def to_json(self) -> dict[str, str]:
        return asdict(self) | {"since": self.since.isoformat(), "told_at": self.told_at.isoformat()}

    @classmethod
    def from_json(cls, found: Mapping[str, str]) -> ActiveAlert:
        moments = {name: datetime.fromisoformat(found[name]) for name in ("since", "told_at")}
        return cls(**{**found, **moments})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Told:
    """One alert of a notification. is_firing: False is resolved."""

    alert: ActiveAlert
    is_firing: bool


def parse_notification(body: bytes, now: datetime) -> tuple[Told, ...]:
    """Return the alerts of one call of the webhook, in its order.

    Raises ValueError when it is not one: a body that is wrong in one place is rejected whole.
    """
    document = read_json(body)
    if not isinstance(document, dict) or not isinstance(document.get("alerts"), list):
        raise ValueError("it holds no list of alerts")
    return tuple(_told(alert, now) for alert in document["alerts"])


def _told(alert: Any, now: datetime) -> Told:
    if not isinstance(alert, dict) or alert.get("status") not in ("firing", "resolved"):
        raise ValueError("an alert is neither firing nor resolved")
    labels, notes = alert.get("labels"), alert.get("annotations") or {}
    if not isinstance(labels, dict) or not isinstance(notes, dict):
        raise ValueError("an alert has no labels")
    name, fingerprint = labels.get("alertname"), alert.get("fingerprint")
    if not isinstance(name, str) or not isinstance(fingerprint, str) or not name or not fingerprint:
        raise ValueError("an alert has no name or no fingerprint")
    since = datetime.fromisoformat(str(alert.get("startsAt")))
    if since.tzinfo is None:
        raise ValueError(f"startsAt of {name} has no time zone")
    found = ActiveAlert(
        fingerprint,
        name,
        severity=str(labels.get("severity", "")),
        action=str(labels.get("action", "")),
        summary=str(notes.get("summary", "")),
        since=since,
        told_at=now,
    )
    return Told(found, alert["status"] == "firing")


def after_notification(active: Iterable[ActiveAlert], told: Iterable[Told], now: datetime) -> tuple[ActiveAlert, ...]:
    """Return what fires after a notification, the longest first."""
    kept = {alert.fingerprint: alert for alert in active if now - alert.told_at < FORGET_AFTER}
    for each in told:
        kept.pop(each.alert.fingerprint, None)
        if each.is_firing:
            kept[each.alert.fingerprint] = each.alert
    return tuple(sorted(kept.values(), key=lambda alert: (alert.since, alert.fingerprint)))
