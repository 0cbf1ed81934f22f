"""Alertmanager's calls at the prober: taken with the token, kept across a restart, told to Dagster once."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import httpx

from synapse_ops.defs.health.active_alerts import ACTIVE_ALERTS_KEY, NEVER_TOLD, report_alerts
from synapse_ops.operations.health.active_alerts import read_active_alerts
from synapse_ops.services.prober.metrics import MOST_BODY_BYTES
from tests.health_history import read_address
from tests.services.prober.test_watch import prober, write_spec

TOKEN = "a-token-of-this-test"


def notification(status: str) -> str:
    alert = {
        "status": status,
        "labels": {"alertname": "primary_down", "severity": "critical", "action": "failover"},
        "annotations": {"summary": "no PostgreSQL node takes writes"},
        "startsAt": "2026-11-24T10:00:00.123456789Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "fingerprint": "c0ffee",
    }
    return json.dumps({"version": "4", "status": status, "receiver": "failover", "alerts": [alert]})


def call(state_dir: Path, body: str, token: str = TOKEN, host: str | None = None) -> int:
    address = read_address(state_dir)
    assert address is not None
    headers = {"Authorization": f"Bearer {token}"} | ({"Host": host} if host else {})
    return httpx.post(f"{address['url']}/alerts", content=body, headers=headers).status_code


def test_an_alert_is_kept_until_it_resolves_and_told_to_dagster_once(tmp_path: Path) -> None:
    """Wrong token, foreign host and a body that is none change nothing; a restart forgets nothing."""
    (tmp_path / "token").write_text(TOKEN)
    more = f'watch: {{servers: []}}\nalerting: {{webhook_token: "file:{tmp_path / "token"}"}}'
    spec = write_spec(tmp_path, [], more)
    events: list[str] = []
    with dg.DagsterInstance.ephemeral() as instance:
        cursor: str | None = None

        def tick() -> None:
            nonlocal cursor
            active = read_active_alerts(tmp_path, datetime.now(UTC))
            reported, cursor = report_alerts(cursor, active)
            for event in reported:
                instance.report_runless_asset_event(event)
            found = instance.fetch_materializations(ACTIVE_ALERTS_KEY, limit=100).records
            events[:] = [str(record.asset_materialization.description) for record in found]  # type: ignore[union-attr]

        with prober(spec, tmp_path):
            refused = [
                call(tmp_path, notification("firing"), token="another"),
                call(tmp_path, notification("firing"), host="evil.example"),
                call(tmp_path, "{}"),
                call(tmp_path, notification("no status")),
            ]
            before = read_active_alerts(tmp_path, datetime.now(UTC))
            tick()
            tick()
            never = list(events)
            taken = call(tmp_path, notification("firing"), host="synapse-ops:9109")
            tick()
        (tmp_path / "watch" / "address.json").unlink()  # the first was killed: it says where nobody is
        with prober(spec, tmp_path):
            address = read_address(tmp_path)
            assert address is not None
            kept = httpx.get(f"{address['url']}/health.json").json()["alerts"]
            call(tmp_path, notification("firing"))
            tick()
            told_once = list(events)
            call(tmp_path, notification("resolved"))
            tick()

    assert refused == [401, 421, 400, 400]
    assert (before, taken) == (None, 200)
    assert [alert["action"] for alert in kept] == ["failover"]
    assert never == [NEVER_TOLD]
    assert told_once == ["primary_down", NEVER_TOLD]
    assert events == ["no alert fires", "primary_down", NEVER_TOLD]


def test_a_call_that_is_too_long_or_cannot_be_checked_changes_nothing(tmp_path: Path) -> None:
    """413 is final; 503 is repeated by Alertmanager, so that an alert is not lost while the token cannot be read."""
    (tmp_path / "token").write_text(TOKEN)
    spec = write_spec(tmp_path, [], f'watch: {{servers: []}}\nalerting: {{webhook_token: "file:{tmp_path / "token"}"}}')

    with prober(spec, tmp_path):
        longest = call(tmp_path, notification("firing").ljust(MOST_BODY_BYTES))
        too_long = call(tmp_path, notification("resolved").ljust(MOST_BODY_BYTES + 1))
        (tmp_path / "token").unlink()
        unchecked = call(tmp_path, notification("resolved"))
        kept = read_active_alerts(tmp_path, datetime.now(UTC))

    assert (longest, too_long, unchecked) == (200, 413, 503)
    assert kept is not None
    assert [alert.name for alert in kept] == ["primary_down"]
