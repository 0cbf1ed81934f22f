"""References between Kubernetes objects: every one leads to something that is rendered too, and means the same port."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tests.manifests.consistency.findings import Finding, Rule, View, name_of


def _pods(view: View) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Return (path, workload, pod template) of every workload."""
    return [(path, found, found["spec"].get("template", {})) for path, found in view.workloads]


def _matching(view: View, wanted: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the pod templates whose labels hold all of `wanted`."""
    return [pod for _, _, pod in _pods(view) if wanted.items() <= pod.get("metadata", {}).get("labels", {}).items()]


def _ports_of(pod: dict[str, Any]) -> dict[str | int, int]:
    """Return a pod's ports by name and by number."""
    found: dict[str | int, int] = {}
    for container in pod.get("spec", {}).get("containers", ()):
        for port in container.get("ports", ()):
            found[port["containerPort"]] = port["containerPort"]
            found[port.get("name", "")] = port["containerPort"]
    return found


def names_are_unique(view: View) -> Iterator[Finding]:
    """One name a kind and namespace: a second object of it would replace the first."""
    seen: set[tuple[str, str, str]] = set()
    for path, found in view.objects:
        metadata = found["metadata"]
        key = (found["kind"], metadata.get("namespace", ""), metadata["name"])
        if key in seen:
            yield Finding("names_are_unique", path, f"{name_of(found)} is rendered twice")
        seen.add(key)


def objects_are_in_the_namespace(view: View) -> Iterator[Finding]:
    """Every object is in the namespace that is rendered, and says so."""
    names = {found["metadata"]["name"] for _, found in view.of_kind("Namespace")}
    for path, found in view.objects:
        place = found["metadata"].get("namespace")
        if found["kind"] != "Namespace" and place not in names:
            yield Finding("objects_are_in_the_namespace", path, f"{name_of(found)} is in namespace {place}")


def selectors_find_their_pods(view: View) -> Iterator[Finding]:
    """A workload's selector finds its own pods and no other workload's."""
    for path, found, pod in _pods(view):
        selector = found["spec"].get("selector", {}).get("matchLabels", {})
        labels = pod.get("metadata", {}).get("labels", {})
        if not selector or not selector.items() <= labels.items():
            yield Finding("selectors_find_their_pods", path, f"{name_of(found)} selects other pods than its own")
        if len(_matching(view, selector)) > 1:
            yield Finding("selectors_find_their_pods", path, f"{name_of(found)} selects another workload's pods")


def services_reach_ports(view: View) -> Iterator[Finding]:
    """A Service finds pods, and each of its target ports is a port of theirs. The one to which an Ingress sends what
    nobody outside may ask finds none.
    """
    for path, found in view.of_kind("Service"):
        if found["metadata"]["labels"]["app.kubernetes.io/name"] == "nothing":
            if _matching(view, found["spec"]["selector"]):
                yield Finding("services_reach_ports", path, f"{name_of(found)} selects a pod")
            continue
        pods = _matching(view, found["spec"].get("selector", {}))
        if not pods or not found["spec"].get("selector"):
            yield Finding("services_reach_ports", path, f"{name_of(found)} selects no pod")
        for port in found["spec"].get("ports", ()):
            for pod in pods:
                if port.get("targetPort", port["port"]) not in _ports_of(pod):
                    leads = f"port {port['port']} leads to {port.get('targetPort')}"
                    message = f"{name_of(found)} {leads}, which no container has"
                    yield Finding("services_reach_ports", path, message)


def stateful_sets_have_their_service(view: View) -> Iterator[Finding]:
    """The Service that gives a StatefulSet's pods their names is rendered and headless."""
    services = {found["metadata"]["name"]: found for _, found in view.of_kind("Service")}
    for path, found in view.of_kind("StatefulSet"):
        service = services.get(found["spec"].get("serviceName", ""))
        if service is None or service["spec"].get("clusterIP") != "None":
            message = f"{name_of(found)} names {found['spec'].get('serviceName')}, which is no headless Service"
            yield Finding("stateful_sets_have_their_service", path, message)


def autoscalers_own_their_replicas(view: View) -> Iterator[Finding]:
    """An autoscaler's target is rendered, has no `replicas` of its own, and requests what is measured."""
    workloads = {(found["kind"], found["metadata"]["name"]): found for _, found in view.workloads}
    for path, found in view.of_kind("HorizontalPodAutoscaler"):
        target = found["spec"]["scaleTargetRef"]
        workload = workloads.get((target["kind"], target["name"]))
        if workload is None:
            yield Finding(
                "autoscalers_own_their_replicas", path, f"{name_of(found)} scales {target['name']}, not rendered"
            )
        elif "replicas" in workload["spec"]:
            message = f"{name_of(workload)} has replicas beside {name_of(found)}: each apply would undo its decision"
            yield Finding("autoscalers_own_their_replicas", path, message)
        elif any("cpu" not in _requests(each) for each in workload["spec"]["template"]["spec"]["containers"]):
            yield Finding("autoscalers_own_their_replicas", path, f"{name_of(workload)} requests no cpu to measure")


def _requests(container: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = container.get("resources", {}).get("requests", {})
    return found


def budgets_and_policies_find_pods(view: View) -> Iterator[Finding]:
    """A disruption budget and a network policy select pods that are rendered."""
    for path, found in view.of_kind("PodDisruptionBudget", "NetworkPolicy"):
        wanted = found["spec"].get("selector", found["spec"].get("podSelector", {})).get("matchLabels", {})
        if wanted and not _matching(view, wanted):
            yield Finding("budgets_and_policies_find_pods", path, f"{name_of(found)} selects no pod that is rendered")


def workloads_have_a_budget_and_a_policy(view: View) -> Iterator[Finding]:
    """Each workload's pods are covered by a disruption budget and by a network policy of both directions."""
    for path, found, pod in _pods(view):
        labels = pod.get("metadata", {}).get("labels", {}).items()
        budgets = [
            each
            for _, each in view.of_kind("PodDisruptionBudget")
            if each["spec"].get("selector", {}).get("matchLabels", {}).items() <= labels
        ]
        covering = [
            each["spec"]
            for _, each in view.of_kind("NetworkPolicy")
            if each["spec"].get("podSelector", {}).get("matchLabels", {}).items() <= labels
        ]
        if not budgets:
            yield Finding("workloads_have_a_budget_and_a_policy", path, f"{name_of(found)} has no disruption budget")
        for direction in ("Ingress", "Egress"):
            if not any(direction in each.get("policyTypes", ()) for each in covering):
                message = f"{name_of(found)} has no policy of {direction.lower()} traffic"
                yield Finding("workloads_have_a_budget_and_a_policy", path, message)


def everything_is_denied_first(view: View) -> Iterator[Finding]:
    """One policy selects every pod, denies both directions and allows nothing."""
    for _, found in view.of_kind("NetworkPolicy"):
        spec = found["spec"]
        if (
            spec.get("podSelector") == {}
            and set(spec.get("policyTypes", ())) == {"Ingress", "Egress"}
            and not spec.get("ingress")
            and not spec.get("egress")
        ):
            return
    yield Finding("everything_is_denied_first", "kubernetes/20-network.yaml", "no policy denies everything")


def policy_ports_exist(view: View) -> Iterator[Finding]:
    """Each port that a policy lets in is a port of the pods it protects."""
    for path, found in view.of_kind("NetworkPolicy"):
        wanted = found["spec"].get("podSelector", {}).get("matchLabels", {})
        for pod in _matching(view, wanted) if wanted else ():
            for rule in found["spec"].get("ingress") or ():
                for port in rule.get("ports", ()):
                    if port["port"] not in _ports_of(pod):
                        message = f"{name_of(found)} lets {port['port']} in, which no container has"
                        yield Finding("policy_ports_exist", path, message)


def entries_reach_the_service(view: View) -> Iterator[Finding]:
    """Ingress and HTTPRoute lead to a rendered Service and one of its ports, under TLS."""
    ports = {
        found["metadata"]["name"]: {port["port"] for port in found["spec"].get("ports", ())}
        for _, found in view.of_kind("Service")
    }
    for path, found in view.of_kind("Ingress"):
        if not any(entry.get("secretName") for entry in found["spec"].get("tls", ())):
            yield Finding("entries_reach_the_service", path, f"{name_of(found)} has no certificate")
        for rule in found["spec"].get("rules", ()):
            for each in rule["http"]["paths"]:
                service = each["backend"]["service"]
                if service["port"].get("number") not in ports.get(service["name"], ()):
                    yield Finding("entries_reach_the_service", path, f"{name_of(found)} leads to no Service's port")
    gateways = {found["metadata"]["name"]: found for _, found in view.of_kind("Gateway")}
    for path, found in view.of_kind("HTTPRoute"):
        for parent in found["spec"].get("parentRefs", ()):
            gateway = gateways.get(parent["name"], {"spec": {"listeners": ()}})
            if not any(each.get("tls", {}).get("certificateRefs") for each in gateway["spec"]["listeners"]):
                yield Finding("entries_reach_the_service", path, f"{name_of(found)} hangs on no listener with TLS")
        for rule in found["spec"].get("rules", ()):
            for backend in rule.get("backendRefs", ()):
                if backend["port"] not in ports.get(backend["name"], ()):
                    yield Finding("entries_reach_the_service", path, f"{name_of(found)} leads to no Service's port")


def configuration_is_rendered(view: View) -> Iterator[Finding]:
    """Each ConfigMap and account that a pod names is rendered, and each ConfigMap is used and immutable."""
    maps = {found["metadata"]["name"]: found for _, found in view.of_kind("ConfigMap")}
    accounts = {found["metadata"]["name"] for _, found in view.of_kind("ServiceAccount")}
    used: set[str] = set()
    for path, found, pod in _pods(view):
        for name in _config_maps(pod):
            used.add(name)
            if name not in maps:
                yield Finding(
                    "configuration_is_rendered", path, f"{name_of(found)} needs ConfigMap {name}, not rendered"
                )
        if pod["spec"].get("serviceAccountName") not in accounts:
            yield Finding(
                "configuration_is_rendered", path, f"{name_of(found)} runs as an account that is not rendered"
            )
    for name, found in maps.items():
        if name not in used or not found.get("immutable"):
            yield Finding("configuration_is_rendered", "kubernetes", f"ConfigMap {name} is unused or can be changed")


def secrets_are_listed(view: View) -> Iterator[Finding]:
    """Each key of a Secret that a pod mounts is in the list of those that must exist before it starts."""
    path = "kubernetes/secrets.txt"
    listed = {
        (words[6], word.removeprefix("--from-file="))
        for words in (line.split() for line in view.text(path).splitlines() if line.startswith("kubectl --"))
        for word in words
    }
    for _, found, pod in _pods(view):
        for volume in pod["spec"].get("volumes", ()):
            for source in (each["secret"] for each in volume.get("projected", {}).get("sources", ())):
                for key in (item["key"] for item in source["items"]):
                    if (source["name"], key) not in listed:
                        yield Finding("secrets_are_listed", path, f"{name_of(found)} mounts {key} of {source['name']}")


def _config_maps(pod: dict[str, Any]) -> Iterator[str]:
    for volume in pod["spec"].get("volumes", ()):
        if "configMap" in volume:
            yield volume["configMap"]["name"]


def volumes_are_mounted_and_exist(view: View) -> Iterator[Finding]:
    """Each mount names a volume of its pod, and each volume is mounted somewhere."""
    for path, found, pod in _pods(view):
        claims = {each["metadata"]["name"] for each in found["spec"].get("volumeClaimTemplates", ())}
        volumes = {each["name"] for each in pod["spec"].get("volumes", ())} | claims
        mounts = {each["name"] for container in pod["spec"]["containers"] for each in container.get("volumeMounts", ())}
        for name in sorted(volumes ^ mounts):
            yield Finding(
                "volumes_are_mounted_and_exist", path, f"{name_of(found)}: {name} is mounted or exists, not both"
            )


RULES: tuple[Rule, ...] = (
    names_are_unique,
    objects_are_in_the_namespace,
    selectors_find_their_pods,
    services_reach_ports,
    stateful_sets_have_their_service,
    autoscalers_own_their_replicas,
    budgets_and_policies_find_pods,
    workloads_have_a_budget_and_a_policy,
    everything_is_denied_first,
    policy_ports_exist,
    entries_reach_the_service,
    configuration_is_rendered,
    secrets_are_listed,
    volumes_are_mounted_and_exist,
)
