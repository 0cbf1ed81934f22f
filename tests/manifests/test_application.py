"""API and worker in the cluster: probes that find a dead pod, rollouts that leave one, and the ways in."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.manifests.consistency import check_consistency
from synapse_ops.spec import Spec
from synapse_ops.spec.loading import check_text

LIMIT_S = 20.0
INTERNAL = ("/metrics", "/docs", "/redoc", "/openapi.json")


def spec_with(**blocks: Any) -> Spec:
    loaded, faults = check_text(json.dumps({"name": "synapse"} | blocks), Path("spec.yaml"))
    assert loaded is not None, faults
    return loaded.spec


def objects_of(spec: Spec, path: str, kind: str) -> list[dict[str, Any]]:
    documents = render_bundle(spec).by_path
    found = yaml.load_all(documents[path].text, yaml.CSafeLoader) if path in documents else ()
    return [each for each in found if each["kind"] == kind]


def deployment(spec: Spec, path: str = "kubernetes/41-api.yaml") -> dict[str, Any]:
    [found] = objects_of(spec, path, "Deployment")
    return found


def check(url: str, **more: str) -> dict[str, str]:
    return {"name": re.sub(r"\W+", "-", url).strip("-"), "url": url} | more


DB, DEEP = check("/health/db", interval="10m"), check("/health?deep=1")


@pytest.mark.parametrize(
    ("health", "live", "ready"),
    [
        ([DB, check("/health")], "/health", "/health/db"),
        ([check("/health"), DB], "/health", "/health/db"),
        ([DB], None, "/health/db"),
        ([DEEP, check("/ready")], None, "/health?deep=1"),
        ([check("/health"), check("/health/live"), DB], "/health/live", "/health"),
        ([check("/api/v1/healthz")], "/api/v1/healthz", "/api/v1/healthz"),
        ([check("/db/health"), check("/redis/ping")], None, "/db/health"),
        ([check("https://elsewhere.example.org/health")], None, None),
        ([], None, None),
    ],
)
def test_a_dependency_never_decides_whether_a_process_lives(
    health: list[dict[str, str]], live: str | None, ready: str | None
) -> None:
    """The order of the list says nothing: a pod that is restarted because its database is away serves no one sooner."""
    container = deployment(spec_with(health=health))["spec"]["template"]["spec"]["containers"][0]
    asked = [container[f"{kind}Probe"].get("httpGet", {}).get("path") for kind in ("liveness", "readiness", "startup")]

    assert asked == [live, ready, live]


@pytest.mark.parametrize(("interval", "timeout"), [("10m", "10m"), ("30s", "5s"), ("100ms", "1ms")])
def test_how_often_an_endpoint_is_monitored_is_no_period_of_a_probe(interval: str, timeout: str) -> None:
    """A dead pod is out of service within half a minute, and none is killed for being busy for a moment: with
    `interval: 10m` it stayed for 30 minutes.
    """
    health = [check("/health", interval=interval, timeout=timeout), check("/ready", interval=interval, timeout=timeout)]
    spec = spec_with(health=health)
    container = deployment(spec)["spec"]["template"]["spec"]["containers"][0]
    for kind in ("liveness", "readiness"):
        probe = container[f"{kind}Probe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] <= 30
        assert 5 <= probe["timeoutSeconds"] <= probe["periodSeconds"]
    bundle = render_bundle(spec)
    assert " check inter 10s fall 3\n" in bundle.by_path["tls/haproxy.cfg"].text
    assert "HEALTHCHECK --interval=10s " in bundle.by_path["docker/Dockerfile"].text


@pytest.mark.parametrize(
    ("blocks", "wanted"),
    [
        ({"autoscaling": None, "kubernetes": {"replicas": 1, "worker_replicas": 1}}, (0, 0)),
        ({"autoscaling": {"min_replicas": 1}, "kubernetes": {"worker_replicas": 2}}, (0, 1)),
        ({"autoscaling": {"min_replicas": 2}, "updates": {"max_unavailable": 2}}, (1, 1)),
        ({"autoscaling": {"min_replicas": 5}, "updates": {"max_unavailable": 2}}, (2, 1)),
        ({"updates": {"max_unavailable": 0}}, (0, 0)),
    ],
)
def test_a_rollout_never_takes_the_last_pod(blocks: dict[str, Any], wanted: tuple[int, int]) -> None:
    """Where there is one pod alone, its successor comes first."""
    spec = spec_with(**blocks)
    rollouts = [
        deployment(spec, path)["spec"]["strategy"]["rollingUpdate"]
        for path in ("kubernetes/41-api.yaml", "kubernetes/42-worker.yaml")
    ]

    assert tuple(each["maxUnavailable"] for each in rollouts) == wanted
    assert all(each["maxSurge"] == 1 for each in rollouts)


def test_an_ingress_sends_what_is_internal_to_a_service_without_pods() -> None:
    """The longer prefix wins, and what selects no pod has nobody to answer."""
    spec = spec_with(kubernetes={"entry": {"hosts": ["api.example.org"]}})
    [ingress] = objects_of(spec, "kubernetes/50-entry.yaml", "Ingress")
    [nothing] = objects_of(spec, "kubernetes/50-entry.yaml", "Service")
    [rule] = ingress["spec"]["rules"]
    backends = {each["path"]: each["backend"]["service"]["name"] for each in rule["http"]["paths"]}

    assert backends == dict.fromkeys(INTERNAL, nothing["metadata"]["name"]) | {"/": "synapse-api"}
    pods = [deployment(spec, f"kubernetes/{name}.yaml") for name in ("41-api", "42-worker")]
    for labels in (pod["spec"]["template"]["metadata"]["labels"] for pod in pods):
        assert not nothing["spec"]["selector"].items() <= labels.items()


def test_a_route_asks_the_api_for_another_path_than_what_is_internal() -> None:
    [route] = objects_of(
        spec_with(kubernetes={"entry": {"kind": "gateway"}}), "kubernetes/50-gateway.yaml", "HTTPRoute"
    )
    first, rest = route["spec"]["rules"]

    assert [each["path"] for each in first["matches"]] == [{"type": "PathPrefix", "value": path} for path in INTERNAL]
    assert first["filters"][0]["urlRewrite"]["path"] == {
        "type": "ReplaceFullPath",
        "replaceFullPath": "/.refused",
    }
    assert "filters" not in rest


def test_prometheus_asks_the_api_itself_and_not_the_proxy_that_refuses() -> None:
    spec = spec_with(health_base_url="https://api.example.org")
    jobs = yaml.load(render_bundle(spec).by_path["prometheus/prometheus.yml"].text, yaml.CSafeLoader)["scrape_configs"]
    [job] = [each for each in jobs if each["job_name"] == "api"]

    assert job["static_configs"] == [{"targets": ["api.example.org:8000"]}]
    assert "scheme" not in job


@pytest.mark.parametrize(
    ("kubernetes", "noted"),
    [
        ({"entry": {"hosts": ["api.example.org"]}}, []),
        ({}, ["kubernetes.entry.hosts is empty"]),
        ({"entry": {"kind": "gateway"}}, []),
        (
            {"entry": {"hosts": ["api.example.org"]}, "service": {"type": "LoadBalancer"}},
            ["kubernetes.service.type is LoadBalancer: without TLS, beside the ingress"],
        ),
        ({"entry": {"kind": "none"}, "service": {"type": "NodePort"}}, ["kubernetes.service.type is NodePort"]),
    ],
)
def test_there_is_one_way_in_with_a_certificate_or_it_is_noted(kubernetes: dict[str, Any], noted: list[str]) -> None:
    """By default no plain-HTTP load balancer stands beside the Ingress."""
    spec = spec_with(kubernetes=kubernetes)
    found = check_consistency(render_bundle(spec), spec)
    messages = [each.message for each in found if each.rule == "the_way_in_is_one_and_encrypted"]

    assert len(messages) == len(noted)
    assert all(message.startswith(start) for message, start in zip(messages, noted, strict=True))


def test_log_files_of_a_pod_are_emptied_before_they_fill_their_directory(tmp_path: Path) -> None:
    """Beyond the size of its emptyDir a pod is evicted. What was written last is still there, small files are let
    alone, and the container ends at once when it is told to.
    """
    for path in ("kubernetes/41-api.yaml", "kubernetes/42-worker.yaml"):
        pod = deployment(spec_with(), path)["spec"]["template"]["spec"]
        rotation = pod["containers"][1]
        [volume] = [each["emptyDir"]["sizeLimit"] for each in pod["volumes"] if each["name"] == "logs"]
        assert volume == "1Gi"
        assert {each["mountPath"] for each in rotation["volumeMounts"]} > {"/var/log/synapse"}
        assert "securityContext" in rotation
    empties_large_files(rotation["command"], tmp_path, size=33 << 20)


@pytest.mark.parametrize("nodes", [["localhost:9200"], []], ids=["shipped", "kept"])
def test_log_files_in_compose_never_fill_the_disk(nodes: list[str], tmp_path: Path) -> None:
    """Neither Docker nor Filebeat bounds files in a volume."""
    spec = spec_with(logging={"elasticsearch": nodes})
    service = yaml.load(render_bundle(spec).by_path["docker/compose.yaml"].text, yaml.CSafeLoader)["services"][
        "log-rotation"
    ]
    assert service["volumes"] == [{"type": "volume", "source": "application-logs", "target": "/var/log/synapse"}]

    empties_large_files([part.replace("$$", "$") for part in service["entrypoint"]], tmp_path, size=257 << 20)


def empties_large_files(command: list[str], folder: Path, *, size: int) -> None:
    """Run the rendered command until a file of that size is empty; see that nothing else is."""
    tmp_path, command = folder, [part.replace("/var/log/synapse", str(folder)) for part in command]
    for name in ("large.log", "old.log.1"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)  # takes no space
            file.seek(size)
            file.write(b"last")
    (tmp_path / "small.log").write_text("a line")

    process = subprocess.Popen(command)
    try:
        ends = time.monotonic() + LIMIT_S
        while (tmp_path / "large.log").stat().st_size:
            assert process.poll() is None
            assert time.monotonic() < ends
            time.sleep(0.02)
    finally:
        process.terminate()
        assert process.wait(5) == 0

    assert (tmp_path / "large.log.1").read_bytes().endswith(b"last")
    assert (tmp_path / "small.log").read_text() == "a line"
    assert not (tmp_path / "old.log.1.1").exists()


def test_every_pod_may_ask_dns_wherever_it_is() -> None:
    """NodeLocal DNS is an address of the node; OpenShift's is in another namespace, at port 5353 of its pods."""
    policies = objects_of(spec_with(), "kubernetes/20-network.yaml", "NetworkPolicy")
    [names] = [each["spec"] for each in policies if each["metadata"]["name"] == "synapse-dns"]
    [rule] = names["egress"]

    assert names["podSelector"] == {}
    assert "to" not in rule
    assert {(each["protocol"], each["port"]) for each in rule["ports"]} == {
        (protocol, port) for protocol in ("UDP", "TCP") for port in (53, 5353)
    }


@pytest.mark.parametrize(
    ("firewall", "wanted"),
    [
        ({}, [({"0.0.0.0/0", "::/0"}, 443)]),
        ({"egress": [{"name": "models", "port": 8443, "destination": "10.9.0.0/16"}]}, [({"10.9.0.0/16"}, 8443)]),
        ({"egress": []}, []),
    ],
)
def test_the_application_calls_what_the_spec_lists_and_nothing_else(
    firewall: dict[str, Any], wanted: list[tuple[set[str], int]]
) -> None:
    """By default a model's API on the internet, which default-deny closed; never the node's own link-local services."""
    spec = spec_with(firewall=firewall)
    policies = objects_of(spec, "kubernetes/20-network.yaml", "NetworkPolicy")
    services = yaml.load(render_bundle(spec).by_path["docker/compose.yaml"].text, yaml.CSafeLoader)["services"]
    for part in ("api", "worker"):
        [policy] = [each["spec"] for each in policies if each["metadata"]["name"] == f"synapse-{part}"]
        blocks = [
            ([peer["ipBlock"] for peer in rule["to"]], rule["ports"][0]["port"])
            for rule in policy["egress"]
            if "ipBlock" in rule["to"][0]
        ]
        assert [({block["cidr"] for block in found}, port) for found, port in blocks] == wanted
        for block in (block for found, _ in blocks for block in found):
            assert block["cidr"] not in ("0.0.0.0/0", "::/0") or block["except"]
        assert ("outside" in services[part]["networks"]) is bool(wanted)


@pytest.mark.parametrize("namespace", ["synapse", "team-7"])
def test_the_commands_that_make_secrets_make_their_namespace_first(namespace: str) -> None:
    """A Secret needs its namespace, and the folder that renders it is applied after the Secrets: pods wait for them."""
    text = render_bundle(spec_with(kubernetes={"namespace": namespace})).by_path["kubernetes/secrets.txt"].text

    commands = [line for line in text.splitlines() if not line.startswith("#")]

    assert commands[0] == f"kubectl create namespace {namespace}"
    assert len(commands) > 1
    assert all(each.startswith(f"kubectl --namespace {namespace} create secret ") for each in commands[1:])


def test_nothing_in_the_cluster_has_a_right_in_its_api() -> None:
    """No process of the stack asks the API server: each reads files and other servers. A right is one to be stolen."""
    documents = [each for each in render_bundle(spec_with()).documents if str(each.path).startswith("kubernetes/")]
    objects = [
        found
        for each in documents
        if each.path.suffix == ".yaml"
        for found in yaml.load_all(each.text, yaml.CSafeLoader)
    ]

    assert not {each["kind"] for each in objects if each["apiVersion"].startswith("rbac.")}
    accounts = [each for each in objects if each["kind"] == "ServiceAccount"]
    pods = [each["spec"]["template"]["spec"] for each in objects if "template" in each.get("spec", {})]
    assert {pod["serviceAccountName"] for pod in pods} == {each["metadata"]["name"] for each in accounts}
    assert not any(each["automountServiceAccountToken"] for each in (*accounts, *pods))


def test_a_policy_without_rules_of_a_direction_names_the_direction_alone() -> None:
    """The API server drops an empty list and keeps that we wrote one: each apply would raise the generation again."""
    specs = [policy["spec"] for policy in objects_of(spec_with(), "kubernetes/20-network.yaml", "NetworkPolicy")]

    assert any("egress" not in each for each in specs)
    assert all(each["policyTypes"] == ["Ingress", "Egress"] for each in specs if each["podSelector"])
    assert [] not in [each[direction] for each in specs for direction in ("ingress", "egress") if direction in each]
