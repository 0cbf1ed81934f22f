"""Rendering is a function of the spec: same bytes everywhere, exactly the blocks it names, valid for its readers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.manifests.consistency import check_consistency
from synapse_ops.manifests.targets import TARGETS
from synapse_ops.spec import load_spec
from synapse_ops.spec.effects import notes_on
from synapse_ops.spec.fixed import LOG_CHAIN
from synapse_ops.spec.loading import check_text
from synapse_ops.spec.rules import COMPOSE_SERVICES, COMPOSE_STORES
from tests.manifests.consistency.findings import View
from tests.manifests.consistency.rules import errors_in
from tests.manifests.recording_spec import RecordingSpec
from tests.manifests.specs import CHANGES, spec_of

ROOT = Path(__file__).parents[2]


def test_a_target_reads_exactly_the_blocks_that_it_names() -> None:
    """A change of a block re-renders its readers only: a target names neither more nor less than it reads."""
    touched: dict[str, set[str]] = {target.name: set() for target in TARGETS}
    for name in CHANGES:
        for target in TARGETS:
            recorder = RecordingSpec(spec_of(name))
            for document in target.render(recorder):  # type: ignore[arg-type]
                assert document.reads <= target.reads
            touched[target.name] |= recorder.touched
            assert recorder.touched <= target.reads, f"{target.name} reads more with {name}"

    assert touched == {target.name: set(target.reads) for target in TARGETS}


@pytest.mark.parametrize(
    "surroundings",
    [
        {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "UTC"},
        {"PYTHONHASHSEED": "42", "LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Kathmandu", "HOSTNAME": "other", "USER": "x"},
    ],
    ids=["plain", "elsewhere"],
)
def test_the_bytes_do_not_depend_on_where_they_are_rendered(surroundings: dict[str, str], tmp_path: Path) -> None:
    """No clock, host, locale, environment or hash seed enters a document."""
    program = (
        "from tests.manifests.specs import CHANGES, spec_of\n"
        "from synapse_ops.manifests.bundle import render_bundle\n"
        "print(*[render_bundle(spec_of(name)).digest for name in CHANGES])"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), **surroundings}
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [render_bundle(spec_of(name)).digest for name in CHANGES]


@pytest.mark.parametrize("name", CHANGES)
def test_the_documents_of_every_spec_agree(name: str) -> None:
    """No rule finds an error, whatever is switched on, off or moved elsewhere: schemas of Kubernetes included."""
    spec = spec_of(name)

    assert errors_in(render_bundle(spec), spec) == []


def test_the_documents_of_the_example_agree() -> None:
    spec = load_spec(ROOT / "examples" / "synapse" / "infrastructure.yaml").spec

    assert errors_in(render_bundle(spec), spec) == []


@pytest.mark.parametrize(
    ("text", "is_enabled"),
    [
        ("name: synapse", False),
        ("qdrant: {host: '::1'}\nserver: {host: '2001:db8::1'}", False),
        ("redis: {host: '2001:db8::7'}", True),
        ("database: {nodes: {db-primary: '[2001:db8::7]:5432'}}", False),
        ("database: {host: db, nodes: {db-primary: '[2001:db8::7]:5432'}}", True),
        ("qdrant: {nodes: ['http://[2001:db8::7]:6333']}", True),
        ("logging: {elasticsearch: ['[2001:db8::7]:9200']}", True),
        ("object_store: {endpoint: 'http://[2001:db8::7]:9000'}", True),
        ("health: [{name: a, url: '/x:y'}, {name: b, url: 'https://[2001:db8::7]/'}]", True),
    ],
)
def test_containers_have_ipv6_where_a_server_elsewhere_is_asked_by_it(text: str, is_enabled: bool) -> None:
    """Without it they have no route there. Nodes of the stack's own database have other addresses in compose."""
    loaded, faults = check_text(text, Path("spec.yaml"))
    assert loaded is not None, faults

    networks = View(render_bundle(loaded.spec), loaded.spec).compose["networks"]

    assert networks == {"internal": {"internal": True}, "outside": {"enable_ipv6": True} if is_enabled else {}}


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://localhost:3000/", {}),
        ("https://grafana.example.org", {"GF_SERVER_ROOT_URL": "https://grafana.example.org/"}),
        (
            "https://example.org/grafana/",
            {"GF_SERVER_ROOT_URL": "https://example.org/grafana/", "GF_SERVER_SERVE_FROM_SUB_PATH": "true"},
        ),
    ],
)
def test_grafana_knows_where_it_is_opened(url: str, told: dict[str, str]) -> None:
    """Else its redirects lead to localhost:3000, and below a path it answers with no page at all."""
    loaded, faults = check_text(f"grafana: {{url: '{url}'}}", Path("spec.yaml"))
    assert loaded is not None, faults

    environment = View(render_bundle(loaded.spec), loaded.spec).compose["services"]["grafana"]["environment"]

    names = ("GF_SERVER_ROOT_URL", "GF_SERVER_SERVE_FROM_SUB_PATH")
    assert {name: environment[name] for name in names if name in environment} == told


def test_a_node_is_not_killed_while_it_recovers_or_is_cloned() -> None:
    """It would begin again, for ever: a standby of a large database would never be there."""
    bundle = render_bundle(spec_of("default"))
    nodes = {
        found["metadata"]["name"]: found["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
        for found in yaml.load_all(bundle.by_path["kubernetes/30-database.yaml"].text, yaml.CSafeLoader)
        if found["kind"] == "StatefulSet"
    }

    hours = {name: probe["periodSeconds"] * probe["failureThreshold"] // 3600 for name, probe in nodes.items()}
    assert hours == {"synapse-db-primary": 1, "synapse-db-standby": 24}


@pytest.mark.parametrize("keepalive_s", [1, 5, 75])
def test_a_proxy_gives_an_idle_connection_up_before_the_api_does(keepalive_s: int) -> None:
    """A request that it sends on one which the API just closed fails, and a POST is not tried again."""
    loaded, faults = check_text(f"server: {{keepalive: {keepalive_s}s}}", Path("spec.yaml"))
    assert loaded is not None, faults
    bundle = render_bundle(loaded.spec)

    for path in ("tls/nginx.conf", "docker/nginx.conf"):
        upstream = bundle.by_path[path].text.split("upstream api {")[1].split("}")[0]
        [idle_ms] = re.findall(r"keepalive_timeout (\d+)ms;", upstream)
        assert 0 < int(idle_ms) < keepalive_s * 1000, path


def test_compose_reserves_what_docker_takes() -> None:
    """Docker refuses a container that reserves less than 6 MiB; requests of the cluster may be smaller."""
    spec = spec_of("small pods")

    resources = View(render_bundle(spec), spec).compose["services"]["api"]["deploy"]["resources"]

    assert resources["reservations"]["memory"] == f"{6 << 20}b"


@pytest.mark.parametrize("name", CHANGES)
def test_no_service_of_compose_has_a_name_that_a_store_elsewhere_may_have(name: str) -> None:
    """`spec check` knows them without rendering; containers that ask for the store would reach the service."""
    spec = spec_of(name)
    services = View(render_bundle(spec), spec).compose["services"]

    assert services.keys() <= COMPOSE_SERVICES.union(*COMPOSE_STORES.values())
    assert services.keys() >= COMPOSE_SERVICES - LOG_CHAIN - {"wal-receiver"}


def test_without_a_node_of_elasticsearch_nothing_of_the_log_chain_is_left() -> None:
    """No service, volume, file, port or secret of it, in no document; logrotate is for all hosts."""
    spec = spec_of("no log chain")
    bundle = render_bundle(spec)
    told = re.compile(r"(?m)^ *(?:docker|logging): \{.*$")  # the spec itself, as prober and WAL receiver get it

    named = re.compile(r"elastic|logstash|filebeat|kibana|logging/|\b(?:5044|9200|9600|5601)\b", re.IGNORECASE)
    assert {str(found.path) for found in bundle.documents if named.search(told.sub("", found.text))} == set()
    assert not any(path.startswith("logging/") for path in bundle.by_path)
    assert '"/var/log/synapse/*.log" {' in bundle.by_path["hosts/logrotate.conf"].text
    assert len([note for note in notes_on(spec) if "no log chain" in note]) == 1
    assert not any("logging" in finding.message for finding in check_consistency(bundle, spec))


def test_ports_and_names_of_the_log_chain_are_free_without_it() -> None:
    text = (
        "logging: {elasticsearch: [], beats_port: 6379}\n"
        "object_store: {endpoint: 'http://elasticsearch:9000'}\nserver: {port: 9600}\n"
    )
    loaded, faults = check_text(text, Path("spec.yaml"))
    assert loaded is not None, faults

    assert loaded.ignored.keys() >= {"logging.beats_port", "logging.index", "logging.api_key", "docker.images.kibana"}
    found = check_consistency(render_bundle(loaded.spec), loaded.spec)
    assert not [finding for finding in found if finding.rule == "ports_of_a_host_differ"]


@pytest.mark.parametrize(
    ("cores", "memory", "large", "middle", "heap"),
    [
        ("2", "4Gi", ("2", 2 << 30), ("1", 1 << 30), "1024m"),
        ("500m", "1Gi", ("1", 1 << 30), ("0.5", 768 << 20), "512m"),
        ("8", "32Gi", ("8", 16 << 30), ("4", 8 << 30), "4096m"),
    ],
)
def test_what_holds_metrics_or_logs_is_as_large_as_the_spec_says(
    cores: str, memory: str, large: tuple[str, int], middle: tuple[str, int], heap: str
) -> None:
    """Docker refuses more cores than the host has, and a heap beyond its container's memory is killed."""
    limits = f"{{cpu: {cores}, memory: {memory}}}"
    loaded, faults = check_text(
        f"resources: {{limits: {limits}, requests: {{cpu: 100m, memory: 64Mi}}}}\n", Path("spec.yaml")
    )
    assert loaded is not None, faults
    services = View(render_bundle(loaded.spec), loaded.spec).compose["services"]

    found = {name: each["deploy"]["resources"]["limits"] for name, each in services.items()}
    for names, (wanted_cores, wanted) in (
        (("prometheus", "elasticsearch", "logstash"), large),
        (("grafana", "kibana"), middle),
    ):
        for name in names:
            assert found[name] == {"cpus": wanted_cores, "memory": f"{wanted}b"}, name
    assert services["logstash"]["environment"]["LS_JAVA_OPTS"] == f"-Xms{heap} -Xmx{heap}"
    assert "ES_JAVA_OPTS" not in services["elasticsearch"]["environment"]
    assert all(float(each["cpus"]) <= max(1.0, float(large[0])) for each in found.values())
