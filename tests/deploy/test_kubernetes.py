"""deploy/kubernetes fits to what is rendered beside it, to dagster.yaml and to the image, name by name.

`make test-cluster` applies it to a real control plane, and runs it on a real node.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from synapse_ops import __version__
from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.services.dagster import webserver
from synapse_ops.services.dagster.run_launcher import launcher_config
from synapse_ops.spec import load_spec

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
RESOURCES = [
    document
    for name in KUSTOMIZATION["resources"]
    for document in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))
]
PODS = {
    each["metadata"]["name"]: each["spec"]["template"]["spec"]
    for each in RESOURCES
    if each["kind"] in {"Deployment", "StatefulSet"}
}
OURS = ("dagster-code-server", "dagster-daemon", "dagster-webserver")
LAUNCHER = launcher_config(FOLDER / "run-launcher.yaml")
ENVIRONMENT = dict(
    literal.split("=", 1)
    for generator in KUSTOMIZATION["configMapGenerator"]
    for literal in generator.get("literals", ())
)
SPEC = load_spec(FOLDER / "infrastructure.yaml").spec
RENDERED = [
    document
    for each in render_bundle(SPEC).documents
    if each.path.match("kubernetes/*.yaml")
    for document in yaml.safe_load_all(each.text)
]


def environment_of(name: str) -> set[str]:
    """Return the variables of a pod's container: of its own, and of the shared ConfigMap."""
    [container] = PODS[name]["containers"]
    assert container["envFrom"] == [{"configMapRef": {"name": "dagster-environment"}}]
    return {each["name"] for each in container["env"]} | set(ENVIRONMENT)


def asked_by(name: str) -> set[str]:
    """Return the variables that dagster.yaml or workspace.yaml asks for."""
    return set(re.findall(r"\{env: (\w+)\}", (ROOT / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", OURS)
def test_each_process_has_what_dagster_yaml_asks_for(name: str) -> None:
    wanted = asked_by("dagster.yaml") | (set() if name == "dagster-code-server" else asked_by("workspace.yaml"))

    assert wanted <= environment_of(name)


def test_a_run_has_what_dagster_yaml_asks_for_and_all_that_it_copies_is_the_daemon_s() -> None:
    """A variable that the daemon lacks would be a failure of each launch."""
    copied = {each for each in LAUNCHER["env_vars"] if "=" not in each}
    own = {each["name"] for each in LAUNCHER["run_k8s_config"]["container_config"]["env"]}

    assert copied <= environment_of("dagster-daemon")
    assert asked_by("dagster.yaml") <= copied | own


def test_the_webserver_has_what_its_guard_asks_for() -> None:
    asked = {
        webserver.HOST_VARIABLE,
        webserver.PORT_VARIABLE,
        webserver.SESSION_VARIABLE,
        webserver.ONE_TIME_FILE_VARIABLE,
    }

    assert asked <= environment_of("dagster-webserver")


def test_what_is_mounted_from_the_stack_is_rendered_by_these_names() -> None:
    """The claim of the prober, the Secrets of secrets.txt, and the pod beside which code server and runs run."""
    [prober] = [
        each for each in RENDERED if each["kind"] == "StatefulSet" and each["metadata"]["name"].endswith("synapse-ops")
    ]
    [claim] = prober["spec"]["volumeClaimTemplates"]
    named = f"{claim['metadata']['name']}-{prober['metadata']['name']}-0"
    run = LAUNCHER["run_k8s_config"]["pod_spec_config"]
    code_server = PODS["dagster-code-server"]

    claims = [volume["persistent_volume_claim"]["claim_name"] for volume in run["volumes"] if volume["name"] == "state"]
    claims += [
        volume["persistentVolumeClaim"]["claimName"] for volume in code_server["volumes"] if volume["name"] == "state"
    ]
    assert claims == [named, named]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]  # of one pod alone, nothing else could read it
    [beside] = code_server["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    wanted = beside["labelSelector"]["matchLabels"]
    assert wanted.items() <= prober["spec"]["template"]["metadata"]["labels"].items()
    [run_beside] = run["affinity"]["pod_affinity"]["required_during_scheduling_ignored_during_execution"]
    assert run_beside["label_selector"]["match_labels"] == wanted
    [secrets] = [each.text for each in render_bundle(SPEC).documents if each.path.match("kubernetes/secrets.txt")]
    [projected] = [each["projected"]["sources"] for each in code_server["volumes"] if each["name"] == "secrets"]
    mounted = {each["secret"]["name"] for each in projected}
    assert mounted == set(re.findall(r"secret generic (\S+)", secrets))


def test_the_spec_s_files_are_where_pods_mount_them() -> None:
    """What the spec refers to is a key of the Secret that is mounted at that place."""
    references = set(re.findall(r"file:(/[^\s\"}]+)", (FOLDER / "infrastructure.yaml").read_text(encoding="utf-8")))
    [secrets] = [each.text for each in render_bundle(SPEC).documents if each.path.match("kubernetes/secrets.txt")]
    keys = set(re.findall(r"--from-file=(\S+)", secrets))

    assert references
    assert all(path.startswith("/run/secrets/") and Path(path).name in keys for path in references)
    assert ENVIRONMENT["AWS_SHARED_CREDENTIALS_FILE"] in references


def test_image_user_and_home_are_those_of_the_dockerfile() -> None:
    user, group = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)[0]
    [home] = re.findall(r"DAGSTER_HOME=(\S+)", DOCKERFILE)
    run = LAUNCHER["run_k8s_config"]["pod_spec_config"]["security_context"]
    contexts = [PODS[name]["securityContext"] for name in OURS]

    assert LAUNCHER["dagster_home"] == home
    assert f"COPY dagster.yaml workspace.yaml {home}/\n" in DOCKERFILE
    assert {(each["runAsUser"], each["runAsGroup"]) for each in contexts} == {(int(user), int(group))}
    assert (run["run_as_user"], run["run_as_group"]) == (int(user), int(group))
    assert KUSTOMIZATION["images"] == [{"name": "synapse-ops", "newTag": __version__}]
    assert {PODS[name]["containers"][0]["image"] for name in OURS} == {"synapse-ops"}
    assert SPEC.docker.images.synapse_ops == f"synapse-ops:{__version__}"
    assert PODS["dagster-postgres"]["containers"][0]["image"] == SPEC.docker.images.postgres


def test_only_who_launches_or_ends_runs_holds_a_token() -> None:
    """And each of their roles stays in the namespace, and reads no Secret."""
    holders = {name for name, pod in PODS.items() if pod["automountServiceAccountToken"]}
    rules = [rule for each in RESOURCES if each["kind"] == "Role" for rule in each["rules"]]

    assert holders == {"dagster-daemon", "dagster-webserver"}
    assert LAUNCHER["run_k8s_config"]["pod_spec_config"]["automount_service_account_token"] is False
    assert not [each for each in RESOURCES if each["kind"].startswith("Cluster")]
    assert {resource for rule in rules for resource in rule["resources"]} == {
        "jobs", "jobs/status", "pods", "pods/log", "events",
    }  # fmt: skip
    writes = {
        (tuple(rule["resources"]), verb) for rule in rules for verb in rule["verbs"] if verb not in {"get", "list"}
    }
    assert writes == {(("jobs",), "create"), (("jobs",), "delete")}


def pods_of_policies() -> Iterator[tuple[str, dict[str, Any]]]:
    for each in RESOURCES:
        if each["kind"] == "NetworkPolicy":
            yield each["metadata"]["name"], each["spec"]


def parts_of(selector: dict[str, Any]) -> set[str]:
    """Return the names of the parts that a selector of our policies selects."""
    found = set(selector.get("matchLabels", {}).values())
    return found | {value for each in selector.get("matchExpressions", ()) for value in each["values"]}


def test_each_flow_is_allowed_at_both_ends() -> None:
    """The rendered policies deny what none allows: a flow with one end alone would be a timeout at night."""
    parts = {"dagster-run", *PODS} | {
        each["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]
        for each in RENDERED
        if each["kind"] in {"Deployment", "StatefulSet"}
    }
    leaving, coming = set(), set()
    for _, policy in pods_of_policies():
        here = parts_of(policy["podSelector"])
        assert here <= parts
        for rule in policy.get("egress", ()):
            peers = {part for peer in rule["to"] for part in parts_of(peer.get("podSelector", {}))}
            leaving |= {(one, other, port["port"]) for one in here for other in peers for port in rule["ports"]}
        for rule in policy.get("ingress", ()):
            peers = {part for peer in rule["from"] for part in parts_of(peer["podSelector"])}
            coming |= {(one, other, port["port"]) for one in peers for other in here for port in rule["ports"]}

    assert leaving == coming
    assert {("dagster-run", "db-primary", 5432), ("dagster-daemon", "dagster-code-server", 4000)} <= coming


def test_the_stack_s_ports_are_those_that_the_policies_open() -> None:
    """A store on another port would be out of reach of every backup."""
    opened = {
        port["port"]
        for name, policy in pods_of_policies()
        if name == "dagster-reaches-the-stack"
        for rule in policy["egress"]
        for port in rule["ports"]
    }

    assert opened == {SPEC.database.port, SPEC.redis.port, SPEC.qdrant.port, SPEC.server.port}


def test_who_holds_a_token_mounts_nothing_over_its_folder() -> None:
    """The token is mounted below /var/run/secrets, which is /run/secrets: in a read-only volume there no pod starts."""
    for name, pod in PODS.items():
        mounts = {mount["mountPath"] for each in pod["containers"] for mount in each["volumeMounts"]}
        assert not pod["automountServiceAccountToken"] or not mounts & {"/run", "/var/run", "/run/secrets"}, name
