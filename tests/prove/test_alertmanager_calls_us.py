"""A real Alertmanager with the rendered file and its default webhook: its calls reach the prober, with the token."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from synapse_ops.manifests.monitoring.alertmanager import PATHS, render_alertmanager
from synapse_ops.operations.health.active_alerts import read_active_alerts
from synapse_ops.spec import load_spec
from synapse_ops.systems.host.processes import free_ports
from tests.services.prober.test_watch import prober, write_spec
from tools.monitoring_servers import alertmanager_command, answers, wait_for
from tools.program import serving

pytestmark = pytest.mark.skipif("SYNAPSE_PROVE" not in os.environ, reason="run by make prove-monitoring")

TIMEOUT_S = 120.0


def test_a_failover_alert_reaches_the_prober_and_its_end_too(tmp_path: Path) -> None:
    """The route of failover alerts has no group wait: nothing in the rendered file is changed here."""
    if shutil.which("prometheus-alertmanager") is None:
        pytest.fail("prometheus-alertmanager is not installed")
    ours, port = free_ports(2)
    (tmp_path / "token").write_text("a-token-of-this-test")
    token = f'alerting: {{webhook_token: "file:{tmp_path / "token"}"}}'
    path = write_spec(tmp_path, [], f"watch: {{servers: [], port: {ours}}}\n{token}")
    for document in render_alertmanager(load_spec(path).spec):
        (tmp_path / Path(document.path).name).write_bytes(document.data)
    url = f"http://127.0.0.1:{port}"
    command = alertmanager_command(tmp_path / Path(PATHS["hosts"]).name, tmp_path / "alertmanager-data", port)

    def names() -> list[str]:
        return [alert.name for alert in read_active_alerts(tmp_path, datetime.now(UTC)) or ()]

    with prober(path, tmp_path), serving(command, tmp_path / "log"):
        assert wait_for(lambda: answers(f"{url}/-/ready"), TIMEOUT_S)
        alert = {"labels": {"alertname": "primary_down", "severity": "critical", "action": "failover"}}
        httpx.post(f"{url}/api/v2/alerts", json=[alert]).raise_for_status()
        assert wait_for(lambda: names() == ["primary_down"], TIMEOUT_S), (tmp_path / "log").read_text()
        httpx.post(f"{url}/api/v2/alerts", json=[alert | {"endsAt": datetime.now(UTC).isoformat()}]).raise_for_status()
        assert wait_for(lambda: not names(), TIMEOUT_S), (tmp_path / "log").read_text()
