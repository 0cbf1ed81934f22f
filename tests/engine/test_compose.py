"""The rendered compose file of the example spec, as it is, on a real engine: up, used, killed, updated, down."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from synapse_ops.spec import load_spec
from synapse_ops.spec.loading import check_text
from tests.engine.engine import HOST, Engine
from tests.engine.images import EXAMPLE, build_application, write_rendered
from tests.engine.stack import BACK_TIMEOUT_S, TOLD_TIMEOUT_S, Stack, running_stack, until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

EXPORTERS = {"db-primary-exporter", "db-standby-exporter", "redis-exporter"}
ON_THE_WAY = ("proxy", "api", "redis", "qdrant", "db-primary")  # of a request


@pytest.fixture(scope="module")
def stack(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    spec = load_spec(EXAMPLE / "infrastructure.yaml").spec
    with running_stack(engine, tmp_path_factory.mktemp("stack"), spec) as stack:
        yield stack


def test_every_service_is_healthy_and_none_was_started_twice(stack: Stack) -> None:
    """`up --wait` waits for health alone: what crashed and was restarted until it worked would pass."""
    containers = {name: stack.container(name) for name in stack.services}

    assert stack.unwell() == ""
    assert {name: found and found["RestartCount"] for name, found in containers.items()} == dict.fromkeys(containers, 0)


def test_a_request_passes_the_proxy_and_every_store_with_a_certificate_that_is_verified(stack: Stack) -> None:
    written = stack.api.post("/generate", json={"prompt": "a document with a vector"})

    assert written.status_code == 200, written.text
    assert stack.api.get(f"/documents/{written.json()['id']}").json()["text"] == written.json()["text"]
    assert stack.api.get("/health/vectors").json()["points"] >= 1
    assert stack.api.get("/health/redis").json() == {"ok": True}


def test_the_proxy_is_refused_by_who_does_not_know_its_authority(stack: Stack) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(stack.api.base_url, verify=ssl.create_default_context(), trust_env=False)


def test_plain_http_is_only_redirected_and_metrics_and_documentation_are_not_public(stack: Stack) -> None:
    with stack.engine.forwarded(80) as port:
        answer = httpx.get(f"http://127.0.0.1:{port}/health", headers={"Host": "example.org"}, trust_env=False)

    assert (answer.status_code, answer.headers["Location"]) == (301, "https://example.org/health")
    statuses = {path: stack.api.get(path).status_code for path in ("/metrics", "/docs", "/redoc", "/openapi.json")}
    assert statuses == dict.fromkeys(statuses, 404)


def test_prometheus_reaches_every_target_of_its_rendered_configuration(stack: Stack) -> None:
    def all_up() -> bool:
        asked = ("wget", "-q", "-O", "-", "http://127.0.0.1:9090/api/v1/targets")
        targets = json.loads(stack.inside("prometheus", *asked))["data"]["activeTargets"]
        return len(targets) == 13 and all(target["health"] == "up" for target in targets)

    until(all_up, "every target up", timeout_s=TOLD_TIMEOUT_S)


def test_no_process_has_a_capability_or_can_get_one_and_none_is_root(stack: Stack) -> None:
    """The kernel's own word on each first process, which `docker inspect` only repeats as it was asked for."""
    wrong = {}
    for name in stack.services:
        status = dict(
            line.split(":", 1) for line in stack.inside(name, "cat", "/proc/1/status").splitlines() if ":" in line
        )
        rights = {status[field].strip() for field in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
        if rights != {"0" * 16} or status["NoNewPrivs"].strip() != "1" or "0" in status["Uid"].split():
            wrong[name] = status

    del wrong["node-exporter"]  # with `pid: host` the first process there is the engine's own
    assert not wrong


def test_what_is_only_on_the_internal_network_has_no_way_out(stack: Stack) -> None:
    """Only services on the outer network can connect to a listener outside of the engine."""
    rendered = {name for name, each in stack.services.items() if "outside" in each.get("networks", ())}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connect = f"timeout 3 bash -c 'exec 3<>/dev/tcp/{HOST}/{listener.getsockname()[1]}' 2>/dev/null && echo out; :"
        way_out = {name for name in stack.services if "out" in stack.inside(name, "sh", "-c", connect)}

    assert way_out == rendered
    assert {"db-primary", "redis", "qdrant", "prometheus"}.isdisjoint(way_out)


def test_what_is_away_is_told_by_the_prober_and_is_back_when_it_is_started(stack: Stack) -> None:
    """`docker kill` counts as stopped by hand: the engine leaves it so until someone starts it."""
    away = {"api": "api", "redis": "server/redis", "qdrant": "server/qdrant", "db-standby": "server/db-standby"}
    stack.compose("kill", *away)

    until(lambda: set(away.values()) <= stack.failed_probes(), "the prober tells", timeout_s=TOLD_TIMEOUT_S)
    assert stack.api.get("/health").status_code == 502, "the proxy is there, and says that the API is not"

    stack.compose("up", "--detach")
    # each is left in the network of its store's former run, as below: `up --wait` would fail with it
    stack.compose("restart", "redis-exporter", "db-standby-exporter")
    until(lambda: stack.failed_probes() == {"server/object-store"}, "the prober tells", timeout_s=TOLD_TIMEOUT_S)
    stack.up()
    assert stack.api.get("/health/db").status_code == 200


@pytest.mark.parametrize("service", ON_THE_WAY)
def test_a_process_on_the_way_of_requests_is_killed_and_what_was_acknowledged_is_there_again(
    stack: Stack, service: str
) -> None:
    """The restart policy alone brings it back, within seconds."""
    written = stack.api.post("/generate", json={"prompt": f"before {service} is killed"}).json()
    before = stack.container(service)
    assert before is not None

    stack.engine.kill(before["State"]["Pid"])

    began = before["State"]["StartedAt"]
    until(lambda: stack.is_healthy(service, since=began), f"{service} is healthy", timeout_s=BACK_TIMEOUT_S)
    after = stack.container(service)
    assert after is not None
    assert after["RestartCount"] == before["RestartCount"] + 1, "Docker counts it, for who asks"
    until(lambda: stack.api.get("/health/redis").status_code == 200, "Redis is asked", timeout_s=TOLD_TIMEOUT_S)
    until(lambda: stack.api.get("/health/db").status_code == 200, "PostgreSQL is asked", timeout_s=TOLD_TIMEOUT_S)
    assert stack.api.get(f"/documents/{written['id']}").json()["text"] == written["text"]
    assert stack.api.get("/health/vectors").json()["points"] >= written["id"]


def test_an_exporter_is_unhealthy_after_its_store_was_killed_until_it_is_restarted(stack: Stack) -> None:
    """It is left in the network of the store's former run (docs/manifests.md), and must not look healthy there."""
    found = stack.container("redis")
    assert found is not None
    stack.engine.kill(found["State"]["Pid"])
    until(lambda: stack.health("redis-exporter") == "unhealthy", "it is told", timeout_s=BACK_TIMEOUT_S)

    stack.compose("restart", "redis-exporter")

    until(lambda: stack.is_healthy("redis-exporter"), "it is healthy", timeout_s=BACK_TIMEOUT_S)


def test_everything_comes_back_after_every_process_was_killed_at_once(stack: Stack) -> None:
    """As after a crash of the machine, in no order that anyone chose."""
    written = stack.api.post("/generate", json={"prompt": "before everything is killed"}).json()
    before = {name: found for name in stack.services if (found := stack.container(name)) is not None}

    for found in before.values():
        stack.engine.kill(found["State"]["Pid"])

    def not_back() -> set[str]:
        return {name for name in before if not stack.is_healthy(name, since=before[name]["State"]["StartedAt"])}

    until(lambda: not not_back() - EXPORTERS, "all others are healthy", timeout_s=2 * BACK_TIMEOUT_S)
    # one that came back before its store is in the former network, as above
    stack.compose("restart", *EXPORTERS)
    until(lambda: not not_back(), "all are healthy", timeout_s=BACK_TIMEOUT_S)
    assert stack.api.get(f"/documents/{written['id']}").json()["text"] == written["text"]
    until(lambda: stack.failed_probes() == {"server/object-store"}, "the prober tells", timeout_s=TOLD_TIMEOUT_S)


def test_it_starts_again_on_its_data_while_the_object_store_is_away(stack: Stack) -> None:
    """The start gate of the primary asks the standby, so that must not wait for the primary. No store answers here."""
    written = stack.api.post("/generate", json={"prompt": "before it is taken down"}).json()
    stack.compose("down", "--timeout=10")

    stack.up()

    assert stack.api.get(f"/documents/{written['id']}").json()["text"] == written["text"]


def test_an_update_of_the_api_replaces_it_and_requests_return_within_its_start(stack: Stack) -> None:
    """One container has no second beside it: requests fail while it is replaced, and the proxy says so with 502."""
    written = stack.api.post("/generate", json={"prompt": "before the update"}).json()
    text = json.dumps({"name": "synapse", "kubernetes": {"image": "synapse-api:2"}})
    loaded, faults = check_text(text, Path("spec.yaml"))
    assert loaded is not None, faults
    write_rendered(loaded.spec, stack.folder)
    build_application(stack.engine, stack.folder, "synapse-api:2", version="2")
    before = {name: found["Id"] for name in stack.services if (found := stack.container(name)) is not None}

    began = time.monotonic()
    stack.up()
    took = time.monotonic() - began

    assert stack.api.get("/version").json() == {"version": "2"}
    assert stack.api.get(f"/documents/{written['id']}").json()["text"] == written["text"]
    replaced = {name for name in before if (found := stack.container(name)) and found["Id"] != before[name]}
    assert replaced >= {"api", "worker", "log-rotation"}
    assert replaced.isdisjoint({"db-primary", "db-standby", "redis", "qdrant"}), "an update restarts no store"
    print(f"update: {took:.0f} s; replaced: {', '.join(sorted(replaced))}")


def test_down_leaves_nothing(stack: Stack) -> None:
    stack.compose("down", "--volumes", "--timeout=10")

    label = f"--filter=label=com.docker.compose.project={stack.spec.name}"
    left = {
        kind: stack.engine.docker(kind, "ls", *more, "--quiet", label).split()
        for kind, more in {"container": ["--all"], "network": [], "volume": []}.items()
    }
    assert left == {"container": [], "network": [], "volume": []}
