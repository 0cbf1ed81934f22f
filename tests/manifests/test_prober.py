"""The prober in containers: what it is told leads to what is rendered, and it answers by the names that others call."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.operations.health.probes import probes_of
from synapse_ops.operations.stack import Stack
from synapse_ops.spec import Spec
from synapse_ops.spec.loaded import LoadedSpec
from synapse_ops.spec.loading import check_text
from synapse_ops.systems.probe_clients import HttpClients
from tests.manifests.specs import CHANGES, spec_of

SPEC_PATH = "docker/synapse-ops/infrastructure.yaml"
START_LIMIT_S = 60
LOCAL = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::"}


def prober_text(spec: Spec, place: str) -> str:
    """Return the spec that the prober is given at a place."""
    documents = render_bundle(spec).by_path
    if place == "compose":
        return documents[SPEC_PATH].text
    [config, *_] = yaml.load_all(documents["kubernetes/43-synapse-ops.yaml"].text, yaml.CSafeLoader)
    return str(config["data"]["infrastructure.yaml"])


def prober_spec_of(spec: Spec, place: str = "compose") -> LoadedSpec:
    """Return what our own loader reads in it."""
    loaded, faults = check_text(prober_text(spec, place), Path(SPEC_PATH))
    assert loaded is not None, faults
    return loaded


def served(spec: Spec, place: str) -> dict[str, set[int]]:
    """Return the ports of every service that is rendered at a place."""
    documents = render_bundle(spec).by_path
    if place == "compose":
        services = yaml.load(documents["docker/compose.yaml"].text, yaml.CSafeLoader)["services"]
        return {name: set(map(int, service.get("expose", ()))) for name, service in services.items()}
    files = [path for path in documents if path.startswith("kubernetes/") and path.endswith(".yaml")]
    objects = [found for path in files for found in yaml.load_all(documents[path].text, yaml.CSafeLoader)]
    return {
        found["metadata"]["name"]: {port["port"] for port in found["spec"]["ports"]}
        for found in objects
        if found["kind"] == "Service"
    }


def asked(loaded: LoadedSpec, state_dir: Path) -> list[tuple[str, int | None]]:
    """Return host and port of everything that a prober with this spec asks over the network."""
    found = []
    for probe in probes_of(Stack(loaded, state_dir), HttpClients()):
        kind, _, where = probe.target.partition(" ")
        if "://" in probe.target and not probe.target.startswith("s3:"):
            parts = urlsplit(probe.target.rpartition(" ")[2])
            found.append((parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)))
        elif kind in {"PostgreSQL", "Redis"}:
            host, _, port = where.rpartition(":")
            found.append((host.strip("[]"), int(port)))
    return found


@pytest.mark.parametrize("place", ["compose", "kubernetes"])
@pytest.mark.parametrize("name", CHANGES)
def test_what_the_prober_asks_is_a_service_there_or_the_operator_s_own_host(
    name: str, place: str, tmp_path: Path
) -> None:
    """Inside a container `localhost` is the container: each name is a service's, with a port of that service."""
    spec = spec_of(name)
    services = served(spec, place)

    questions = asked(prober_spec_of(spec, place), tmp_path)

    assert len(questions) >= 4
    given = {spec.database.host, spec.redis.host, spec.qdrant.host, spec.failover.standby, "example.org"} - LOCAL
    given |= {address.rpartition(":")[0] for address in spec.database.nodes.values()} - LOCAL
    for host, port in questions:
        assert port in services.get(host, ()) or host in given, (host, port)


@pytest.mark.parametrize("place", ["compose", "kubernetes"])
@pytest.mark.parametrize("name", CHANGES)
def test_all_else_in_the_prober_s_spec_is_the_operator_s(name: str, place: str) -> None:
    """What is not an address or a file in the container is unchanged: encryption, retention, thresholds, schedules."""
    spec = spec_of(name)

    inside = prober_spec_of(spec, place).spec

    moved = {"database", "redis", "qdrant", "object_store", "watch", "tls", "alerting", "health_base_url"}
    for field in Spec.model_fields.keys() - moved:
        assert getattr(inside, field) == getattr(spec, field), field
    assert inside.watch.servers == spec.watch.servers
    assert inside.backup.database.destination == spec.backup.database.destination


def test_a_cluster_without_ipv4_is_scraped_and_served() -> None:
    """A headless Service has addresses of one family there; who listens on 0.0.0.0 is reached by nobody."""
    spec = check_text("watch: {host: '::'}\nserver: {host: '::'}", Path("spec.yaml"))[0].spec  # type: ignore[union-attr]
    bundle = render_bundle(spec)

    jobs = yaml.load(bundle.by_path["prometheus/prometheus.kubernetes.yml"].text, yaml.CSafeLoader)["scrape_configs"]
    for job in ("api", "worker"):
        [found] = [each["dns_sd_configs"] for each in jobs if each["job_name"] == job]
        assert {(name, each["type"]) for each in found for name in each["names"]} == {
            (name, family) for name in found[0]["names"] for family in ("A", "AAAA")
        }
    assert prober_spec_of(spec, "kubernetes").spec.watch.host == "::"
    assert '- "::"' in bundle.by_path["kubernetes/41-api.yaml"].text


def test_one_file_holds_the_webhook_s_token_for_both_that_use_it() -> None:
    """Alertmanager sends what the prober compares: one secret, which two users can read by their common group."""
    bundle = render_bundle(spec_of("default"))
    services = yaml.load(bundle.by_path["docker/compose.yaml"].text, yaml.CSafeLoader)["services"]
    receiver = yaml.load(bundle.by_path["alertmanager/alertmanager.compose.yml"].text, yaml.CSafeLoader)["receivers"][
        0
    ]["webhook_configs"][0]

    told = prober_spec_of(spec_of("default")).spec.alerting.webhook_token

    assert receiver["http_config"]["authorization"]["credentials_file"] == told.target == "/run/secrets/webhook-token"
    for name in ("alertmanager", "synapse-ops"):
        assert "webhook-token" in services[name]["secrets"]
        assert services[name]["group_add"] == ["10001"]


def test_what_is_not_watched_has_no_secret_in_the_container() -> None:
    """A superuser's password does not lie where nobody uses it, and a decryption key never does."""
    loaded, faults = check_text(
        "watch: {servers: [qdrant, disk]}\nencryption: {identity: file:/etc/synapse/age.key}\n", Path("spec.yaml")
    )
    assert loaded is not None, faults

    services = yaml.load(render_bundle(loaded.spec).by_path["docker/compose.yaml"].text, yaml.CSafeLoader)["services"]

    assert services["synapse-ops"]["secrets"] == ["webhook-token", "object-store-credentials", "ca.crt"]


def test_a_prober_with_the_rendered_spec_answers_as_the_rendered_files_call_it(tmp_path: Path) -> None:
    """The Host header of Prometheus' scrape is served, and the health check of the compose file passes."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    loaded, faults = check_text(f"watch: {{port: {port}, servers: [disk]}}\nhealth: []\n", Path("spec.yaml"))
    assert loaded is not None, faults
    bundle = render_bundle(loaded.spec)
    (tmp_path / "infrastructure.yaml").write_text(bundle.by_path[SPEC_PATH].text)
    service = yaml.load(bundle.by_path["docker/compose.yaml"].text, yaml.CSafeLoader)["services"]["synapse-ops"]
    jobs = yaml.load(bundle.by_path["prometheus/prometheus.compose.yml"].text, yaml.CSafeLoader)["scrape_configs"]
    [target] = next(job["static_configs"][0]["targets"] for job in jobs if job["job_name"] == "synapse_ops")
    command = [*service["command"]]
    command[command.index("--spec") + 1] = str(tmp_path / "infrastructure.yaml")
    command[command.index("--state-dir") + 1] = str(tmp_path / "state")

    prober = subprocess.Popen([sys.executable, *command])
    try:
        deadline_s = time.monotonic() + START_LIMIT_S
        check = [sys.executable, *(part.replace("$$", "$") for part in service["healthcheck"]["test"][2:])]
        while subprocess.run(check, capture_output=True, timeout=30, check=False).returncode != 0:
            assert time.monotonic() < deadline_s
            assert prober.poll() is None
        request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Host": target})
        with urllib.request.urlopen(request, timeout=30) as reply:
            metrics = reply.read().decode()
    finally:
        prober.terminate()
        prober.wait(30)

    assert target == f"synapse-ops:{port}"
    assert "synapse_ops_watch_heartbeats_total" in metrics
