"""The rendered files at work: a real Prometheus and Alertmanager watch the embedded stack; what fails is told.

Run by `make prove-monitoring`, which installs Debian's prometheus, prometheus-alertmanager and exporters. Without one
of them nothing here is proven, and that is a failure.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from ruamel.yaml import YAML

from synapse_ops.local.embedded_stack import reset_stack, stack_status, start_stack, stop_stack
from synapse_ops.local.stack import SERVER_NAMES
from synapse_ops.manifests.monitoring.targets import MONITORING
from synapse_ops.spec import load_spec
from synapse_ops.systems.host.processes import free_ports
from synapse_ops.systems.qdrant.server import open_qdrant
from tests.manifests.consistency.metrics import METRICS
from tests.manifests.consistency.monitoring import expressions
from tests.manifests.consistency.promql_tree import selectors
from tests.servers import servers_dir
from tools.monitoring_servers import (
    Webhook,
    alertmanager_command,
    answers,
    instant,
    prometheus_command,
    wait_for,
)
from tools.program import serving

pytestmark = [
    pytest.mark.skipif("SYNAPSE_PROVE" not in os.environ, reason="run by make prove-monitoring"),
    pytest.mark.timeout(1200),  # the limits below, on a machine that is busy with something else
]

READY_TIMEOUT_S = 180.0
DATA_TIMEOUT_S = 240.0
ALERT_TIMEOUT_S = 180.0
COMMAND_TIMEOUT_S = 300.0
TOKEN = "the-token-of-this-test"

# selectors that have no series on a stack that is well, and why
QUIET = {
    r'synapse_requests_total\{status=~"5\.\."\}': "no request failed",
    r"^ALERTS\{": "no alert that leads to this dashboard fires",
    r"synapse_ops_(backup|proof)_timestamp_seconds\{repository=\"vectors\"": "no collection was snapshotted",
    r"synapse_ops_wal_gap_timestamp_seconds": "no WAL was lost",
    r"synapse_ops_redis_max_memory_bytes": "the embedded Redis has no maxmemory",
}
if "qdrant" not in SERVER_NAMES:
    QUIET |= {name: "the embedded stack has no Qdrant" for name, source in METRICS.items() if source == "qdrant"}
EXPORTERS = {"node": "prometheus-node-exporter", "redis": "prometheus-redis-exporter"}
EXPORTERS |= {"db": "prometheus-postgres-exporter", "blackbox": "prometheus-blackbox-exporter"}


class Chain:
    """The stack, Prometheus, Alertmanager, the webhook."""

    def __init__(self, state_dir: Path, ports: dict[str, int], release: Path) -> None:
        self.state_dir = state_dir
        self.ports = ports
        self.release = release
        self.webhook = Webhook(TOKEN)

    def query(self, expr: str) -> list[Any]:
        return instant(f"http://127.0.0.1:{self.ports['prometheus']}", expr)

    def told_of_api(self) -> str:
        return self.webhook.last_status({"alertname": "service_down", "job": "api"})


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    for program in ("prometheus", "prometheus-alertmanager", *EXPORTERS.values()):
        if shutil.which(program) is None:
            pytest.fail(f"{program} is not installed: sh requirements/monitoring-tools")
    folder = servers_dir("chain")
    folder.chmod(0o755)
    state_dir = folder / "state"
    names = ("prometheus", "alertmanager", *EXPORTERS)
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    try:
        _stack_with_a_proven_backup(state_dir)
        made = Chain(state_dir, ports, folder / "release")
        _render(made)
        with made.webhook, ExitStack() as programs:
            _start(made, folder, programs)
            yield made
    finally:
        reset_stack(state_dir)
        shutil.rmtree(folder)


def _stack_with_a_proven_backup(state_dir: Path) -> None:
    start_stack(state_dir, die_with_us=True)
    for command in (["backup", "now"], ["verify"]):
        argv = [str(Path(sys.executable).parent / "synapse-ops"), *command, "--state-dir", str(state_dir)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
        assert done.returncode == 0, done.stderr
    stop_stack(state_dir)  # the prober reads the repository when it starts
    start_stack(state_dir, die_with_us=True)


def _render(chain: Chain) -> None:
    """Render for this stack, with short intervals, and the addresses of this test's programs."""
    document = YAML(typ="safe").load((chain.state_dir / "infrastructure.yaml").read_text())
    addresses = {name: [f"127.0.0.1:{port}"] for name, port in chain.ports.items()}
    receiver = json.loads((chain.state_dir / "wal" / "address.json").read_text())
    token = chain.state_dir / "secrets" / "webhook-token"
    token.write_text(TOKEN)
    document["prometheus"] = {
        "scrape_interval": "1s",
        "evaluation_interval": "1s",
        "targets": addresses | {"worker": [], "wal": [f"{receiver['host']}:{receiver['port']}"]},
    }
    document["alerting"] = {"webhook_url": chain.webhook.url, "webhook_token": f"file:{token}"}
    document["alerts"] = [{"name": "service_down", "condition": "up == 0", "duration": "2s", "severity": "critical"}]
    for check in document["health"]:
        check["interval"] = check["timeout"] = "2s"
    path = chain.release.parent / "infrastructure.yaml"
    path.write_text(json.dumps(document))
    spec = load_spec(path).spec
    for _, render, *_ in MONITORING:
        for rendered in render(spec):
            target = chain.release / rendered.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(rendered.data)
    routes = chain.release / "alertmanager/alertmanager.yml"
    routes.write_text(re.sub(r'(group_wait|group_interval): "\w+"', r'\1: "1s"', routes.read_text()))


def _start(chain: Chain, folder: Path, programs: ExitStack) -> None:
    ports = chain.ports
    config = chain.release / "prometheus/prometheus.yml"
    command = prometheus_command(config, folder / "tsdb", ports["prometheus"])
    programs.enter_context(serving(command, folder / "prometheus.log"))
    config = chain.release / "alertmanager/alertmanager.yml"
    command = alertmanager_command(config, folder / "alertmanager", ports["alertmanager"])
    programs.enter_context(serving(command, folder / "alertmanager.log"))
    spec = load_spec(chain.release.parent / "infrastructure.yaml").spec
    password = spec.redis.password.resolve() if spec.redis.password is not None else ""
    settings = {
        "node": ({}, []),
        "redis": ({"REDIS_ADDR": f"redis://{spec.redis.host}:{spec.redis.port}", "REDIS_PASSWORD": password}, []),
        "db": ({"DATA_SOURCE_NAME": _first_node(spec.database.admin.resolve())}, []),
        "blackbox": ({}, [f"--config.file={chain.release / 'prometheus/blackbox.yml'}"]),
    }
    for job in sorted(EXPORTERS):
        environment, arguments = settings[job]
        listen = f"--web.listen-address=127.0.0.1:{ports[job]}"
        log = folder / f"{job}.log"
        programs.enter_context(serving((EXPORTERS[job], listen, *arguments), log, environment))
    for name in ("prometheus", "alertmanager"):
        assert wait_for(lambda name=name: answers(f"http://127.0.0.1:{ports[name]}/-/ready"), READY_TIMEOUT_S), name


def _first_node(url: str) -> str:
    """Return the address of the first node alone: each node has an exporter, which knows no list of hosts."""
    return re.sub(r"@([^,/]+),[^/]+/", r"@\1/", url.strip()).replace("&target_session_attrs=read-write", "")


def test_every_selector_of_every_rule_and_panel_returns_data(chain: Chain) -> None:
    """A panel without data and an alert on a metric that nobody serves look like calm. Each selector, its comparison
    removed, is asked of the running Prometheus; what may be silent stands in QUIET with the reason.
    """
    spec = load_spec(chain.release.parent / "infrastructure.yaml").spec
    request = urllib.request.Request(
        f"{spec.health_base_url}/generate",
        data=b'{"prompt": "what a panel shows"}',
        headers={"Content-Type": "application/json"},
    )
    texts = {
        str(path.relative_to(chain.release)): path.read_text() for path in chain.release.rglob("*") if path.is_file()
    }
    wanted = {found for _, expr in expressions(texts) for found in selectors(expr)}
    asked = {selector for _, selector in wanted if not any(re.search(quiet, selector) for quiet in QUIET)}
    silent = set(asked)

    password = spec.redis.password.resolve() if spec.redis.password is not None else None
    cache = redis.Redis(host=spec.redis.host, port=spec.redis.port, password=password)
    vectors = open_qdrant(spec.qdrant)
    vectors.create_collection("a-panel", {"vectors": {"size": 4, "distance": "Dot"}})

    def all_answer() -> bool:
        cache.get("a panel")
        vectors.count("a-panel")
        urllib.request.urlopen(request, timeout=5).close()
        silent.difference_update([selector for selector in silent if chain.query(selector)])
        return not silent

    assert wait_for(all_answer, DATA_TIMEOUT_S), f"no data: {sorted(silent)}"
    print(f"{len(asked)} of {len(wanted)} selectors return data")


def test_a_killed_api_is_told_and_its_return_too(chain: Chain) -> None:
    """From the process to the person: Prometheus sees it gone, the rule waits, Alertmanager calls with the token."""
    assert wait_for(lambda: bool(chain.query('up{job="api"} == 1')), READY_TIMEOUT_S)
    api = stack_status(chain.state_dir).servers["api"].pid
    assert api is not None

    began = time.monotonic()
    os.kill(api, signal.SIGKILL)
    assert wait_for(lambda: chain.told_of_api() == "firing", ALERT_TIMEOUT_S)
    fired_s = time.monotonic() - began
    start_stack(chain.state_dir, die_with_us=True)
    assert wait_for(lambda: chain.told_of_api() == "resolved", ALERT_TIMEOUT_S)

    told = [alert for alert in chain.webhook.alerts() if alert["labels"].get("job") == "api"]
    assert {alert["labels"]["stack"] for alert in told} == {"synapse"}
    assert {alert["annotations"]["runbook_url"] for alert in told} == {"docs/runbooks/measure-up.md"}
    assert "Watchdog" not in {alert["labels"]["alertname"] for alert in chain.webhook.alerts()}
    print(f"told after {fired_s:.1f} s, untold after {time.monotonic() - began:.1f} s")
