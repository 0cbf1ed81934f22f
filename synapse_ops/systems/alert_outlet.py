"""Where alarms leave this host: Alertmanager's v2 API, or a webhook that takes the same JSON.

The address comes from the environment. It may hold a token, so it never enters a log line, an error or an event.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from synapse_ops.errors import ConfigError, Unreachable
from synapse_ops.redaction import remember
from synapse_ops.systems.host.loopback import is_loopback

ALERTMANAGER_VARIABLE = "SYNAPSE_ALERTMANAGER_URL"
WEBHOOK_VARIABLE = "SYNAPSE_ALERT_WEBHOOK"

_TIMEOUT_S = 8.0
_STANDS_FOR = timedelta(
    hours=6
)  # without an end Alertmanager resolves an alert after its own resolve_timeout, 5 minutes


@dataclass(frozen=True)
class Alarm:
    """One alarm. labels: what makes it the same alarm, `alertname` and `severity` included; no ids of single runs.

    is_resolved: it ends one that was sent before with the same labels.
    """

    labels: Mapping[str, str]
    summary: str
    description: str
    at: datetime
    url: str = ""
    is_resolved: bool = False
    runbook_url: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the alarm as Alertmanager's v2 API takes it."""
        ends_at = self.at if self.is_resolved else self.at + _STANDS_FOR
        body: dict[str, Any] = {
            "labels": dict(self.labels),
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                **({"runbook_url": self.runbook_url} if self.runbook_url else {}),
            },
            "startsAt": self.at.astimezone(UTC).isoformat(),
            "endsAt": ends_at.astimezone(UTC).isoformat(),
        }
        return {**body, "generatorURL": self.url} if self.url else body


@dataclass(frozen=True)
class AlertOutlet:
    """One address that alarms are posted to. kind: "Alertmanager" or "webhook", for messages."""

    kind: str
    url: str = field(repr=False)

    def post(self, alarms: Sequence[Alarm]) -> None:
        """Send alarms in one request. Raises Unreachable when they were not taken; sending twice is harmless.

        Raises ConfigError for an address that cannot be parsed.
        """
        import httpx

        body = [alarm.as_json() for alarm in alarms]
        try:
            reply = httpx.post(self.url, json=body, timeout=_TIMEOUT_S, trust_env=not is_loopback(self.url))
        except httpx.InvalidURL:
            raise ConfigError(f"the address of the {self.kind} is not a URL") from None
        except (httpx.HTTPError, OSError) as error:  # OSError: SSL_CERT_FILE names a file that is not there
            raise Unreachable(f"could not send {len(alarms)} alarms: the {self.kind} does not answer") from error
        if reply.is_error:
            raise Unreachable(
                f"could not send {len(alarms)} alarms: the {self.kind} answers {reply.status_code}",
                detail=reply.text[:500],
            )


def find_outlet(environ: Mapping[str, str] = os.environ) -> AlertOutlet | None:
    """Return where alarms go, None when no address is set. Raises ConfigError for an address that is not a URL."""
    for variable, kind, path in (
        (ALERTMANAGER_VARIABLE, "Alertmanager", "/api/v2/alerts"),
        (WEBHOOK_VARIABLE, "webhook", ""),
    ):
        address = remember(environ.get(variable, ""))
        if address:
            if not address.startswith(("http://", "https://")):
                raise ConfigError(f"{variable} is not an http:// or https:// URL")
            return AlertOutlet(kind, address.rstrip("/") + path if path else address)
    return None
