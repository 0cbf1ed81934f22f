"""Nobody but the watcher's own sessions decides: neither whoever sends alerts, nor Dagster, alive or killed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import psutil
import pytest

from synapse_ops.domain.failover.evidence import SOFT_WINDOW_S
from synapse_ops.domain.failover.transitions import State
from synapse_ops.local.embedded_stack import reset_stack, start_stack
from synapse_ops.local.failover_place import primary_processes
from synapse_ops.operations.failover.ledger import Ledger
from synapse_ops.operations.failover.status import read_status
from synapse_ops.services.dagster.console import start_console
from synapse_ops.services.dagster.home import HOME_VARIABLE
from synapse_ops.services.prober.metrics import MetricsApp
from synapse_ops.services.prober.prober import Prober
from synapse_ops.systems.host.processes import processes_in
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.failover.pair import Pair, made_pair, one_primary, wait_for
from tests.servers import servers_dir

pytestmark = pytest.mark.scenario
TOKEN = "a-token-of-this-test"


@pytest.fixture(scope="module")
def pair(server_tools: PgTools, bucket: str, object_store_access: StoreAccess) -> Iterator[Pair]:
    with made_pair(server_tools, bucket, object_store_access, "outsiders") as found:
        yield found


def notification(status: str, node: str) -> str:
    alert = {
        "status": status,
        "labels": {"alertname": "primary_down", "severity": "critical", "action": "failover", "node": node},
        "annotations": {"summary": f"{node} is down; synapse-ops failover run --accept-loss 1TiB"},
        "startsAt": "2026-11-24T10:00:00.123456789Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "fingerprint": "c0ffee",
    }
    return json.dumps({"version": "4", "status": status, "receiver": "failover", "alerts": [alert]})


class Webhook:
    """The prober's webhook for Alertmanager, in the state directory of a pair."""

    def __init__(self, pair: Pair) -> None:
        self.folder = pair.layout.root
        (self.folder / "watch").mkdir(exist_ok=True)  # where the prober keeps what it was told
        (self.folder / "token").write_text(TOKEN)
        spec = self.folder / "alerted.yaml"
        spec.write_text(f"watch: {{servers: []}}\nalerting: {{webhook_token: 'file:{self.folder}/token'}}\n")
        self.spec = spec

    def call(self, *bodies: str, token: str = TOKEN) -> list[int]:
        return asyncio.run(self._call(bodies, token))

    async def _call(self, bodies: tuple[str, ...], token: str) -> list[int]:
        app = MetricsApp(Prober(self.spec, self.folder))
        app.hosts = frozenset({"prober"})
        headers = [(b"host", b"prober"), (b"authorization", f"Bearer {token}".encode())]
        statuses: list[int] = []

        async def send(message: Mapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        for body in bodies:

            async def receive(body: str = body) -> Mapping[str, Any]:
                return {"type": "http.request", "body": body.encode(), "more_body": False}

            await app({"type": "http", "method": "POST", "path": "/alerts", "headers": headers}, receive, send)
        return statuses


def test_alerts_that_are_forged_repeated_or_replayed_change_nothing(pair: Pair) -> None:
    """An alert is somebody's word. A primary that answers is left alone whoever says what; one that died is failed over
    once, by what the sessions with the nodes say.
    """
    old, webhook = pair.primary(), Webhook(pair)
    firing, resolved = (notification(status, old) for status in ("firing", "resolved"))
    with pair.watched() as watch:
        forged = webhook.call(firing, token="forged")
        taken = webhook.call(*[firing] * 20, resolved, firing)
        end_s = time.monotonic() + SOFT_WINDOW_S
        wait_for(lambda: time.monotonic() > end_s, "the longest window has passed")
        assert watch.unarmed() == ""
        assert not [name for name in ("request.json", "pause.json") if (pair.ledger.folder / name).exists()]
        assert len(pair.ledger.incidents()) == pair.incidents_before
        assert one_primary(pair) == old

        for mark in processes_in(pair.servers[old].data_dir):
            mark.signal(signal.SIGKILL)
        webhook.call(resolved, firing, firing)
        incident = pair.ended()
        webhook.call(resolved, firing, firing)
        pair.rejoined(incident)
        wait_for(lambda: watch.unarmed() == "", "it is armed again")
    assert set(forged) == {401}
    assert set(taken) == {200}
    assert len(pair.ledger.incidents()) == pair.incidents_before + 1
    assert one_primary(pair) == incident.facts["new"]


@pytest.mark.timeout(1800)
def test_dagster_is_killed_during_a_failover_and_shows_it_afterwards() -> None:
    """Code server and daemon are not on the way: killed at the start and again once the primary is fenced."""
    folder = servers_dir("outsiders")
    folder.chmod(0o755)
    state_dir = folder / "state"
    try:
        stack = start_stack(state_dir, die_with_us=True)
        ledger = Ledger.of(state_dir)
        with start_console(state_dir, stack.spec_path, webserver=False) as console:
            wait_for(lambda: read_status(state_dir, datetime.now(UTC)).is_armed, "it is armed")
            name, marks = primary_processes(state_dir)
            for mark in marks:
                mark.signal(signal.SIGKILL)
            killed = [kill_dagster(state_dir)]
            wait_for(lambda: [one.at(State.FENCED) for one in ledger.incidents()] not in ([], [None]), "it is fenced")
            killed.append(kill_dagster(state_dir))
            [incident] = wait_for(lambda: [one for one in ledger.incidents() if not one.is_open], "it has ended")
            back = wait_for(lambda: ledger.rejoin(incident.id), f"{name} is back: {incident.facts}")
            record = wait_for(
                lambda: console.asset_metadata("failover_record", incident.id), "Dagster shows it", deadline_s=600
            )
    finally:
        reset_stack(state_dir)
        shutil.rmtree(folder)
    assert incident.state is State.DONE, incident.facts
    assert (incident.facts["old"], back["how"]) == (name, "rewound")
    assert killed[0] >= 2
    assert record.metadata["new"] == incident.facts["new"]


def kill_dagster(state_dir: Any) -> int:
    """Send SIGKILL to every process of a state directory's Dagster but its supervisor; return how many there were."""
    killed = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(HOME_VARIABLE) == str(state_dir / "dagster") and process.pid != os.getpid():
                process.kill()
                killed += 1
    return killed
