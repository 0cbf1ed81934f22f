"""What no document may lack or hold: rights taken away, probes that differ, limits, an end with grace."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.manifests.consistency.findings import Finding, Rule, View, name_of, resolved

_LOWEST_USER = 10000
_WRITES_BESIDE_VOLUMES = frozenset({"elasticsearch", "logstash", "kibana"})  # their own start scripts do


def pods_are_restricted(view: View) -> Iterator[Finding]:
    """Every pod and container fulfils the Pod Security Standard `restricted`, and more."""
    rule = "pods_are_restricted"
    for path, found in view.workloads:
        pod = found["spec"]["template"]["spec"]
        context = pod.get("securityContext", {})
        if not context.get("runAsNonRoot") or context.get("runAsUser", 0) < _LOWEST_USER:
            yield Finding(rule, path, f"{name_of(found)} may run as a user that a host knows")
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield Finding(rule, path, f"{name_of(found)} has no seccomp profile")
        if pod.get("automountServiceAccountToken") is not False:
            yield Finding(rule, path, f"{name_of(found)} carries an API token")
        if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield Finding(rule, path, f"{name_of(found)} shares a namespace with its host")
        for container in pod["containers"]:
            inner = container.get("securityContext", {})
            is_locked = (
                inner.get("allowPrivilegeEscalation") is False
                and inner.get("readOnlyRootFilesystem") is True
                and inner.get("capabilities", {}).get("drop") == ["ALL"]
                and not inner.get("capabilities", {}).get("add")
                and not inner.get("privileged")
            )
            if not is_locked:
                yield Finding(rule, path, f"{name_of(found)}, {container['name']}: rights are not all taken away")


def the_namespace_enforces_it(view: View) -> Iterator[Finding]:
    """The namespace refuses pods that are not restricted."""
    for path, found in view.of_kind("Namespace"):
        if found["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield Finding("the_namespace_enforces_it", path, f"{name_of(found)} does not enforce `restricted`")


def containers_have_limits(view: View) -> Iterator[Finding]:
    """Every container requests and limits CPU and memory, and limits are at least what is requested."""
    for path, found in view.workloads:
        for container in found["spec"]["template"]["spec"]["containers"]:
            resources = container.get("resources", {})
            for which in ("requests", "limits"):
                lacking = {"cpu", "memory"} - resources.get(which, {}).keys()
                if lacking:
                    message = f"{name_of(found)}, {container['name']}: no {which} of {', '.join(sorted(lacking))}"
                    yield Finding("containers_have_limits", path, message)


def probes_differ(view: View) -> Iterator[Finding]:
    """Every container has a liveness and a readiness probe that are not the same, each shorter than its period; the
    first container of a pod has a startup probe.
    """
    rule = "probes_differ"
    for path, found in view.workloads:
        for index, container in enumerate(found["spec"]["template"]["spec"]["containers"]):
            where = f"{name_of(found)}, {container['name']}"
            kinds = ["livenessProbe", "readinessProbe", *(["startupProbe"] if index == 0 else [])]
            probes = {kind: container[kind] for kind in kinds if kind in container}
            for kind in kinds:
                if kind not in probes:
                    yield Finding(rule, path, f"{where}: no {kind}")
            for kind, probe in probes.items():
                if probe.get("timeoutSeconds", 1) > probe.get("periodSeconds", 10):
                    yield Finding(rule, path, f"{where}: {kind} takes longer than its period")
            live, ready = probes.get("livenessProbe"), probes.get("readinessProbe")
            if live == ready and live is not None:
                yield Finding(rule, path, f"{where}: liveness and readiness are the same: not ready is started anew")


def pods_end_with_grace(view: View) -> Iterator[Finding]:
    """A pod's time to end is more than what its preStop hook takes, and a served pod has such a hook."""
    for path, found in view.of_kind("Deployment"):
        pod = found["spec"]["template"]["spec"]
        for container in pod["containers"]:
            wait_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            is_served = any(port.get("name") == "http" for port in container.get("ports", ()))
            if (is_served and not wait_s) or wait_s >= pod.get("terminationGracePeriodSeconds", 30):
                message = (
                    f"{name_of(found)} waits {wait_s} s of {pod.get('terminationGracePeriodSeconds')} before it ends"
                )
                yield Finding("pods_end_with_grace", path, message)


def services_are_hardened(view: View) -> Iterator[Finding]:
    """Every service of the compose file has its rights taken away, a limit, a health check, and waits for healthy."""
    rule, path = "services_are_hardened", "docker/compose.yaml"
    services = view.compose.get("services", {})
    for name, service in services.items():
        faults = []
        if service.get("cap_drop") != ["ALL"] or service.get("cap_add") or service.get("privileged"):
            faults.append("keeps capabilities")
        if "no-new-privileges:true" not in service.get("security_opt", ()):
            faults.append("may gain privileges")
        if service.get("read_only") is not True and name not in _WRITES_BESIDE_VOLUMES:
            faults.append("has a writable root")
        if str(service.get("user", "0")).split(":")[0] in ("0", "root"):
            faults.append("runs as root")
        if "memory" not in service.get("deploy", {}).get("resources", {}).get("limits", {}):
            faults.append("has no memory limit")
        if not service.get("healthcheck", {}).get("test"):
            faults.append("has no health check")
        needed = service.get("depends_on", {})
        if any(each.get("condition") != "service_healthy" for each in needed.values()):
            faults.append("does not wait until what it needs is healthy")
        yield from (Finding(rule, path, f"{name} {fault}") for fault in faults)


def compose_references_exist(view: View) -> Iterator[Finding]:
    """Each service, volume, secret, network and rendered file that a service names is there; secrets are files."""
    rule, path = "compose_references_exist", "docker/compose.yaml"
    compose = view.compose
    for name, service in compose.get("services", {}).items():
        for kind, wanted in _named_in(service):
            if wanted not in (compose.get(kind) or {}):
                yield Finding(rule, path, f"{name} names {wanted}, which is not in {kind}")
        for mount in service.get("volumes", ()):
            if mount["type"] == "bind" and mount["source"].startswith("."):
                source = resolved(mount["source"])
                if not any(other == source or other.startswith(f"{source}/") for other in view.bundle.by_path):
                    yield Finding(rule, path, f"{name} mounts {source}, which is not rendered")
    for name, secret in (compose.get("secrets") or {}).items():
        if set(secret) != {"file"}:
            yield Finding(rule, path, f"secret {name} is not a file")


def _named_in(service: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in service.get("depends_on", ()):
        yield "services", name
    for name in service.get("secrets", ()):
        yield "secrets", name
    for name in service.get("networks", ()):
        yield "networks", name
    if str(service.get("network_mode", "")).startswith("service:"):
        yield "services", service["network_mode"].removeprefix("service:")
    for mount in service.get("volumes", ()):
        if mount["type"] == "volume":
            yield "volumes", mount["source"]


def nodes_ask_before_they_start(view: View) -> Iterator[Finding]:
    """Where this tool promotes, a node's first process asks before each start as the primary: the marker, the other
    node, and the prober, where that is served. An init container or `depends_on` asks once; a restart goes around it.
    """
    if not view.spec.failover.is_ours:
        return
    for path, node, command, script, serving in _started_nodes(view):
        gate, _, _ = script.partition("exec docker-entrypoint.sh")
        faults = []
        if command != ["bash", "/etc/postgresql/start.sh"]:
            faults.append("is started around its gate")
        if '\nwhile [ -s "$PGDATA/PG_VERSION" ] && ' not in gate:
            faults.append("starts without asking")
        if 'if [ -e "$PGDATA/synapse.fenced" ]' not in gate:
            faults.append("does not look for the marker")
        other = re.search(r"^other='host=(\S+) port=(\d+) ", gate, re.MULTILINE)
        if other is None or other[1] == node or other[2] not in serving.get(other[1], ()):
            faults.append("does not ask the other node")
        asked = re.search(r"' ask (\S+) (\d+) ", gate)
        if asked is None or asked[2] not in serving.get(asked[1], ()):
            faults.append("does not ask the prober where it is served")
        for fault in faults:
            yield Finding("nodes_ask_before_they_start", path, f"{node} {fault}")


def _started_nodes(view: View) -> Iterator[tuple[str, str, list[str], str, dict[str, set[str]]]]:
    """Yield path, name, first command and start script of each node, and the ports that are served beside it."""
    services = view.compose["services"]
    exposed = {name: set(map(str, one.get("expose", ()))) for name, one in services.items()}
    for node in ("db-primary", "db-standby"):
        if node in services:
            script = view.text(f"docker/start-{node.removeprefix('db-')}.sh")
            yield "docker/compose.yaml", node, services[node]["entrypoint"], script, exposed
    listening = {
        one["metadata"]["name"]: {str(port["port"]) for port in one["spec"]["ports"]}
        for _, one in view.of_kind("Service")
    }
    scripts = {
        one["metadata"]["name"]: one["data"]["start.sh"]
        for _, one in view.of_kind("ConfigMap")
        if "start.sh" in one["data"]
    }
    for path, found in view.of_kind("StatefulSet"):
        pod = found["spec"]["template"]["spec"]
        for volume in pod["volumes"]:
            if volume.get("configMap", {}).get("name") in scripts:
                command = pod["containers"][0]["command"]
                yield path, found["spec"]["serviceName"], command, scripts[volume["configMap"]["name"]], listening


RULES: tuple[Rule, ...] = (
    pods_are_restricted,
    the_namespace_enforces_it,
    containers_have_limits,
    probes_differ,
    pods_end_with_grace,
    services_are_hardened,
    compose_references_exist,
    nodes_ask_before_they_start,
)
