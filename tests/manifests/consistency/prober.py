"""What watches reaches what it watches: scrape jobs, Alertmanager's webhook, the prober's questions, secret files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from synapse_ops.manifests.stack.parts import qdrant_nodes
from synapse_ops.spec.loading import value_faults
from tests.manifests.consistency.findings import Finding, Rule, View, load_yaml, name_of, resolved, targets_of

_COMPOSE = "docker/compose.yaml"
_COMPOSE_SPEC = "docker/synapse-ops/infrastructure.yaml"
_PROBER = "synapse-ops"
_NAME = "app.kubernetes.io/name"
_SECRET_FILE = re.compile(r"/run/secrets/([A-Za-z0-9._-]+)")


def _serving_in_compose(view: View) -> dict[str, set[str]]:
    """Return the ports that each service's network listens on, as the services say."""
    services = view.compose.get("services", {})
    return {name: {str(port) for port in service.get("expose", ())} for name, service in services.items()}


def _serving_in_cluster(view: View) -> dict[str, set[str]]:
    """Return the ports of each Service by the name under which every namespace knows it."""
    return {
        f"{found['metadata']['name']}.{found['metadata']['namespace']}.svc": {
            str(port["port"]) for port in found["spec"].get("ports", ())
        }
        for _, found in view.of_kind("Service")
    }


def _fault_of(target: str, serving: Mapping[str, set[str]], suffix: str) -> str | None:
    """Return what is wrong with an address, None for a served one and for somebody else's.

    suffix: what a name of ours ends with; a bare word is ours too, since only our own network knows it.
    """
    host, _, port = target.rpartition(":")
    host = host.strip("[]")
    if host in serving:
        return None if port in serving[host] else f"{target}, where {host} serves {', '.join(sorted(serving[host]))}"
    is_ours = ("." not in host and ":" not in host) or (suffix and host.endswith(suffix))
    return f"{target}, which is not rendered" if is_ours else None


def scraped_targets_are_served(view: View) -> Iterator[Finding]:
    """Each target of Prometheus, and each Alertmanager that it tells, is a rendered service and a port of it, or
    somebody else's, as the cluster's Alertmanager is; in the cluster its policy lets the port in. `localhost` is
    Prometheus itself.
    """
    rule = "scraped_targets_are_served"
    namespace = next(found["metadata"]["name"] for _, found in view.of_kind("Namespace"))
    let_in = _let_in(view)
    named = {str(node) for node in qdrant_nodes(view.spec)}  # a bare name of theirs may be one of our services', too
    for path, serving, suffix in (
        ("prometheus/prometheus.compose.yml", _serving_in_compose(view), ""),
        ("prometheus/prometheus.kubernetes.yml", _serving_in_cluster(view), f".{namespace}.svc"),
    ):
        config = view.yaml(path)
        managers = [each for one in config["alerting"]["alertmanagers"] for each in one["static_configs"]]
        relayed = [each["replacement"] for job in config["scrape_configs"] for each in _to_exporter(job)]
        told = [target for each in managers for target in each["targets"]]
        for target in [*targets_of(config), *told, *relayed]:
            is_theirs = (bool(suffix) and target in told) or ("qdrant" not in serving and target in named)
            if "://" in target or target.startswith("localhost:") or is_theirs:
                continue
            fault = _fault_of(target, serving, suffix)
            if fault is not None:
                yield Finding(rule, path, f"asks {fault}")
            elif suffix and target.partition(":")[0] in serving and int(target.rpartition(":")[2]) not in let_in:
                yield Finding(rule, path, f"asks {target}, which no policy lets monitoring reach")


def _to_exporter(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [each for each in job.get("relabel_configs", ()) if each.get("target_label") == "__address__"]


def who_asks_outside_has_a_way_out(view: View) -> Iterator[Finding]:
    """The internal network of compose leads nowhere else: a service that asks somebody else's server is in another one
    as well. Prober and WAL receiver always are, for the object store is never part of the stack.
    """
    services = view.compose["services"]
    webhooks = [
        each["url"]
        for one in view.yaml("alertmanager/alertmanager.compose.yml")["receivers"]
        for each in one["webhook_configs"]
    ]
    targets = targets_of(view.yaml("prometheus/prometheus.compose.yml"))
    asked = {
        "prometheus": [target.rpartition(":")[0] for target in targets if "://" not in target],
        "blackbox-exporter": [urlsplit(target).hostname or "" for target in targets if "://" in target],
        "alertmanager": [urlsplit(url).hostname or "" for url in webhooks],
    }
    outside = [name for name, hosts in asked.items() if set(hosts) - services.keys() - {"localhost"}]
    for name in [*outside, _PROBER, *({"wal-receiver"} & services.keys())]:
        if all(view.compose["networks"][network].get("internal") for network in services[name].get("networks", ())):
            yield Finding("who_asks_outside_has_a_way_out", _COMPOSE, f"{name} asks others, and no network leads out")


def _let_in(view: View) -> set[int]:
    """Return the ports that policies open to the namespace of monitoring."""
    wanted = {"kubernetes.io/metadata.name": view.spec.kubernetes.monitoring_namespace}
    return {
        port["port"]
        for _, found in view.of_kind("NetworkPolicy")
        for entry in found["spec"].get("ingress") or ()
        if any(peer.get("namespaceSelector", {}).get("matchLabels") == wanted for peer in entry.get("from", ()))
        for port in entry.get("ports", ())
    }


def alerts_reach_the_prober(view: View) -> Iterator[Finding]:
    """Alertmanager calls a rendered service and its port, unless the spec names a URL, with the token of a file that
    the prober compares with.
    """
    rule = "alerts_reach_the_prober"
    namespace = next(found["metadata"]["name"] for _, found in view.of_kind("Namespace"))
    for path, serving, suffix, told in (
        ("alertmanager/alertmanager.compose.yml", _serving_in_compose(view), "", _compose_prober(view)),
        (
            "alertmanager/alertmanager.kubernetes.yml",
            _serving_in_cluster(view),
            f".{namespace}.svc",
            _cluster_prober(view)[1],
        ),
    ):
        for webhook in (each for one in view.yaml(path)["receivers"] for each in one["webhook_configs"]):
            access = webhook.get("http_config", {}).get("authorization")
            if access is None:  # the heartbeat's
                continue
            if view.spec.alerting.webhook_url is None:
                fault = _fault_of(urlsplit(webhook["url"]).netloc, serving, suffix)
                if fault is not None:
                    yield Finding(rule, path, f"calls {fault}")
            if f"file:{access['credentials_file']}" != told["alerting"]["webhook_token"]:
                message = f"sends {access['credentials_file']}, the prober reads {told['alerting']['webhook_token']}"
                yield Finding(rule, path, message)


def _compose_prober(view: View) -> dict[str, Any]:
    found: dict[str, Any] = view.yaml(_COMPOSE_SPEC)
    return found


def _prober_set(view: View) -> tuple[str, dict[str, Any]]:
    """Return the prober's StatefulSet with its path."""
    for path, found in view.of_kind("StatefulSet"):
        if found["spec"]["template"]["metadata"]["labels"].get(_NAME) == _PROBER:
            return path, found
    raise LookupError("the prober's StatefulSet")


def _cluster_text(view: View) -> tuple[str, str]:
    """Return the path of the prober's StatefulSet, and the text of the ConfigMap that its pod mounts."""
    path, found = _prober_set(view)
    maps = {each["metadata"]["name"]: each for _, each in view.of_kind("ConfigMap")}
    volumes = found["spec"]["template"]["spec"]["volumes"]
    [name] = [each["configMap"]["name"] for each in volumes if "configMap" in each]
    return path, str(maps[name]["data"]["infrastructure.yaml"])


def _cluster_prober(view: View) -> tuple[str, dict[str, Any]]:
    path, text = _cluster_text(view)
    told: dict[str, Any] = load_yaml(text)[0]
    return path, told


def the_prober_s_spec_is_valid(view: View) -> Iterator[Finding]:
    """Our own loader takes what prober and WAL receiver are given; one that it refuses would start nothing."""
    texts = {path: view.text(path) for path in view.bundle.by_path if path.endswith("/infrastructure.yaml")}
    for path, found in view.of_kind("ConfigMap"):
        if "infrastructure.yaml" in found["data"]:
            texts[path] = found["data"]["infrastructure.yaml"]
    for where, found in texts.items():
        for fault in value_faults(load_yaml(found)[0]):
            yield Finding("the_prober_s_spec_is_valid", where, str(fault))


def the_prober_is_one_and_has_what_it_needs(view: View) -> Iterator[Finding]:
    """In the cluster it is one pod, which ends before the next one starts, and the kubelet calls it by a name that it
    answers to. In both places the spec on its command line is mounted, and its state outlives it.
    """
    rule = "the_prober_is_one_and_has_what_it_needs"
    path, found = _prober_set(view)
    if found["spec"].get("replicas") != 1:
        yield Finding(rule, path, "more than one prober may run at once: each takes a part of the alerts")
    pod = found["spec"]["template"]["spec"]
    container = pod["containers"][0]
    port = container["ports"][0]["containerPort"]
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        headers = container.get(kind, {}).get("httpGet", {}).get("httpHeaders", ())
        if {"name": "Host", "value": f"localhost:{port}"} not in headers:
            yield Finding(rule, path, f"{kind} calls by the pod's address, which the prober refuses as a foreign name")
    claims = {claim["metadata"]["name"] for claim in found["spec"].get("volumeClaimTemplates", ())}
    mounts = {mount["mountPath"]: mount["name"] in claims for mount in container["volumeMounts"]}
    service = view.compose["services"][_PROBER]
    bound = {mount["target"]: mount["type"] == "volume" for mount in service.get("volumes", ())}
    for where, command, mounted in ((path, container["args"], mounts), (_COMPOSE, service["command"], bound)):
        spec_file, state_dir = (command[command.index(option) + 1] for option in ("--spec", "--state-dir"))
        if not {spec_file, spec_file.rpartition("/")[0]} & mounted.keys():
            yield Finding(rule, where, f"the prober reads {spec_file}, which is not mounted")
        if not mounted.get(state_dir):
            yield Finding(rule, where, f"the prober's history in {state_dir} ends with the container")


def the_prober_asks_what_is_rendered(view: View) -> Iterator[Finding]:
    """The spec that the prober is given names a service of each store that is rendered, of the API, and its port; and
    its own port is that of its service.
    """
    rule = "the_prober_asks_what_is_rendered"
    path, inside = _cluster_prober(view)
    in_compose = {part: {f"{part}:{port}" for port in ports} for part, ports in _serving_in_compose(view).items()}
    for where, told, addresses in (
        (_COMPOSE_SPEC, _compose_prober(view), in_compose),
        (path, inside, _addresses_in_cluster(view)),
    ):
        for field, part, target in _asked(told):
            if part in addresses and target not in addresses[part]:
                yield Finding(rule, where, f"{field} is {target}, {part} is at {', '.join(sorted(addresses[part]))}")
        for store in ("database", "redis", "qdrant"):
            port, wanted = told[store]["port"], getattr(view.spec, store).port
            if port != wanted:
                yield Finding(rule, where, f"{store}.port is {port}, the spec has {wanted}")
        watch = told["watch"]
        if watch["host"] not in ("0.0.0.0", "::"):
            yield Finding(rule, where, f"watch.host is {watch['host']}: nobody outside of the container is served")
        if not any(target.endswith(f":{watch['port']}") for target in addresses[_PROBER]):
            yield Finding(rule, where, f"watch.port is {watch['port']}, which its service does not have")


def _addresses_in_cluster(view: View) -> dict[str, set[str]]:
    """Return name:port of the Services of each part, by the part's label."""
    found: dict[str, set[str]] = {}
    for _, service in view.of_kind("Service"):
        ports = {f"{service['metadata']['name']}:{port['port']}" for port in service["spec"].get("ports", ())}
        found.setdefault(service["spec"]["selector"].get(_NAME, ""), set()).update(ports)
    return found


def _asked(told: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield field, part and host:port of everything that a prober's spec names."""
    nodes = told["database"]["nodes"]
    named = ((told["failover"]["primary"], "db-primary"), (told["failover"]["standby"], "db-standby"))
    for node, part in ((node, part) for node, part in named if node is not None):
        usual = f"{told['database']['host']}:{told['database']['port']}"
        yield f"database.nodes.{node}", part, nodes.get(node, usual)
    for store in ("redis", "qdrant"):
        yield f"{store}.host", store, f"{told[store]['host']}:{told[store]['port']}"
    urls = {"health_base_url": told["health_base_url"], "object_store.endpoint": told["object_store"]["endpoint"]}
    urls |= {f"health.{each['name']}": each["url"] for each in told["health"] if not each["url"].startswith("/")}
    for field, url in urls.items():
        if url is not None:
            yield field, "api" if field == "health_base_url" else "", urlsplit(url).netloc


def secret_files_are_mounted(view: View) -> Iterator[Finding]:
    """Each file below /run/secrets that a container is told of, on its command line, in its environment or in a file
    that it mounts, is mounted there; what several users read in compose is read by their common group.
    """
    rule = "secret_files_are_mounted"
    for name, service in view.compose["services"].items():
        texts = [str(service.get(key, "")) for key in ("command", "entrypoint", "environment", "healthcheck")]
        texts += [view.text(source) for source in _mounted_files(service)]
        secrets = set(service.get("secrets", ()))
        for missing in sorted(_named(texts) - secrets):
            yield Finding(rule, _COMPOSE, f"{name} is told of {missing}, which it does not mount")
        if secrets and not service.get("group_add"):
            yield Finding(rule, _COMPOSE, f"{name} reads secrets that only their owner may read")
    maps = {found["metadata"]["name"]: found["data"] for _, found in view.of_kind("ConfigMap")}
    for path, found in view.workloads:
        pod = found["spec"]["template"]["spec"]
        texts = [str(pod["containers"])]
        texts += [
            str(maps.get(each["configMap"]["name"], "")) for each in pod.get("volumes", ()) if "configMap" in each
        ]
        keys = {
            item["key"]
            for volume in pod.get("volumes", ())
            for source in volume.get("projected", {}).get("sources", ())
            for item in source["secret"]["items"]
        }
        for missing in sorted(_named(texts) - keys):
            yield Finding(rule, path, f"{name_of(found)} is told of {missing}, which it does not mount")


def _mounted_files(service: Mapping[str, Any]) -> Iterator[str]:
    for mount in service.get("volumes", ()):
        if mount["type"] == "bind" and mount["source"].startswith("."):
            yield resolved(mount["source"])


def _named(texts: Iterable[str]) -> set[str]:
    return {name for text in texts for name in _SECRET_FILE.findall(text)}


RULES: tuple[Rule, ...] = (
    scraped_targets_are_served,
    alerts_reach_the_prober,
    who_asks_outside_has_a_way_out,
    the_prober_s_spec_is_valid,
    the_prober_is_one_and_has_what_it_needs,
    the_prober_asks_what_is_rendered,
    secret_files_are_mounted,
)
