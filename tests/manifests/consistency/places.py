"""The same number in every place: port, probe, limit, flow, TLS version, as the spec says them, found in the bytes."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Iterator
from typing import Any

from synapse_ops.manifests.servers.postgres import node_port
from synapse_ops.manifests.stack.parts import qdrant_nodes
from synapse_ops.spec.fixed import LOCAL_HOSTS
from synapse_ops.spec.units import format_cores, format_size, parse_size
from tests.manifests.consistency.findings import Finding, Rule, View, name_of, roles_of, told_in_pods

_COMPOSE = "docker/compose.yaml"
_PARTS = ("api", "worker", "db-primary", "db-standby", "redis", "qdrant")


def _workload(view: View, part: str) -> tuple[str, dict[str, Any]] | None:
    """Return the workload whose pods are labelled as a part."""
    for path, found in view.workloads:
        if found["spec"]["template"]["metadata"]["labels"].get("app.kubernetes.io/name") == part:
            return path, found
    return None


def _service(view: View, name: str) -> dict[str, Any]:
    found: dict[str, Any] = view.compose.get("services", {}).get(name, {})
    return found


def the_api_listens_where_it_is_asked(view: View) -> Iterator[Finding]:
    """`server.port` is the port of the image, of uvicorn in each place, of the pod, and of both proxies."""
    rule, port = "the_api_listens_where_it_is_asked", str(view.spec.server.port)
    dockerfile = view.text("docker/Dockerfile")
    if f"\nEXPOSE {port}\n" not in dockerfile or f'"--port", "{port}"' not in dockerfile:
        yield Finding(rule, "docker/Dockerfile", f"the image does not listen on {port}")
    starts = {
        "docker/Dockerfile": re.findall(r'"(.*?)"', dockerfile),
        _COMPOSE: _service(view, "api").get("command", []),
    }
    if _option(starts[_COMPOSE], "--port") != port:
        yield Finding(rule, _COMPOSE, f"api does not listen on {port}")
    found = _workload(view, "api")
    if found is None:
        yield Finding(rule, "kubernetes", "no workload of the api")
    else:
        container = found[1]["spec"]["template"]["spec"]["containers"][0]
        if [str(each["containerPort"]) for each in container["ports"]] != [port]:
            yield Finding(rule, found[0], f"the api's container has another port than {port}")
        starts[found[0]] = container.get("args", [])
        if _option(starts[found[0]], "--port") != port:
            yield Finding(rule, found[0], f"the api does not listen on {port}")
    for path, started in starts.items():
        if _option(started, "--host") not in ("0.0.0.0", "::", ""):
            yield Finding(rule, path, "the api listens on its container's own loopback address")
    for path in ("tls/nginx.conf", "tls/haproxy.cfg", "docker/nginx.conf"):
        if not re.search(rf"server (?:\S+ )?\S+:{port}\b", view.text(path)):
            yield Finding(rule, path, f"does not lead to port {port}")


def _option(command: list[str], name: str) -> str | None:
    return command[command.index(name) + 1] if name in command[:-1] else None


def the_health_check_is_one(view: View) -> Iterator[Finding]:
    """The liveness check has the same path, interval and timeout in the image, in compose and in Kubernetes, and
    haproxy asks what readiness asks.
    """
    rule = "the_health_check_is_one"
    found = _workload(view, "api")
    if found is None:
        return
    probe = found[1]["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]
    period, timeout = f"{probe['periodSeconds']}s", f"{probe['timeoutSeconds']}s"
    dockerfile = view.text("docker/Dockerfile")
    if f"HEALTHCHECK --interval={period} --timeout={timeout} " not in dockerfile:
        yield Finding(rule, "docker/Dockerfile", f"is not checked every {period} within {timeout} as in {found[0]}")
    if f" --retries={probe['failureThreshold']} " not in dockerfile:
        yield Finding(rule, "docker/Dockerfile", f"is not given {probe['failureThreshold']} tries as in {found[0]}")
    check = _service(view, "api").get("healthcheck", {})
    if (check.get("interval"), check.get("timeout")) != (period, timeout):
        yield Finding(rule, _COMPOSE, f"api is not checked every {period} within {timeout} as in {found[0]}")
    if check.get("retries") != probe["failureThreshold"]:
        yield Finding(rule, _COMPOSE, f"api is not given {probe['failureThreshold']} tries as in {found[0]}")
    path = probe.get("httpGet", {}).get("path", "")
    call = " ".join(check.get("test", ())).replace("$$", "$")
    if repr(f"http://127.0.0.1:{view.spec.server.port}{path}") not in call and path:
        yield Finding(rule, _COMPOSE, f"api is not asked for {path} as in {found[0]}")
    yield from _haproxy_check(view, *found)


def _haproxy_check(view: View, path: str, api: dict[str, Any]) -> Iterator[Finding]:
    rule, cfg = "the_health_check_is_one", "tls/haproxy.cfg"
    probe = api["spec"]["template"]["spec"]["containers"][0].get("readinessProbe", {})
    text, asked = view.text(cfg), probe.get("httpGet", {}).get("path")
    if asked is None:
        return
    uri = re.search(r"^  http-check send meth GET uri (\S+) ", text, re.MULTILINE)
    if uri is None or uri[1].replace("\\'", "'") != asked:
        yield Finding(rule, cfg, f"the API is not asked for {asked} as in {path}")
    times = (
        f" check inter {probe['periodSeconds']}s fall {probe['failureThreshold']}\n",
        f"  timeout check {probe['timeoutSeconds']}s\n",
    )
    if not all(each in text for each in times):
        yield Finding(rule, cfg, f"the API is not asked in the times of {path}")


def limits_are_those_of_the_spec(view: View) -> Iterator[Finding]:
    """`resources` holds for each part in compose and in Kubernetes; what only watches them has less."""
    rule, limits = "limits_are_those_of_the_spec", view.spec.resources.limits
    for part in _PARTS:
        path, found = _workload(view, part) or ("", {})
        if not found:
            continue
        resources = found["spec"]["template"]["spec"]["containers"][0]["resources"]
        for which, wanted in (("limits", limits), ("requests", view.spec.resources.requests)):
            got = resources.get(which, {})
            if (got.get("cpu"), got.get("memory")) != (format_cores(wanted.cpu), format_size(wanted.memory)):
                yield Finding(rule, path, f"{name_of(found)} does not have resources.{which}")
    for name in _PARTS:
        service = _service(view, name)
        memory = service.get("deploy", {}).get("resources", {}).get("limits", {}).get("memory")
        if service and (memory is None or parse_size(memory.removesuffix("b")) != limits.memory):
            yield Finding(rule, _COMPOSE, f"{name} does not have resources.limits.memory")


def stores_listen_where_they_are_asked(view: View) -> Iterator[Finding]:
    """The port of each store is the same in its own file, in its pod, and in what the application is told."""
    rule, spec = "stores_listen_where_they_are_asked", view.spec
    told = {
        **{f"postgres/{role}/postgresql.conf": rf"^port = {node_port(spec, role)}$" for role in roles_of(spec)},
        "redis/redis.conf": rf"^port {spec.redis.port}$",
        "qdrant/config.yaml": rf"^  http_port: {spec.qdrant.port}$",
    }
    for path, pattern in told.items():
        if not re.search(pattern, view.text(path), re.MULTILINE):
            yield Finding(rule, path, f"does not hold {pattern.strip('^$')}")
    for part, port in (
        ("db-primary", spec.database.port),
        ("db-standby", spec.database.port),
        ("redis", spec.redis.port),
        ("qdrant", spec.qdrant.port),
    ):
        found = _workload(view, part)
        if found is None:
            continue
        ports = found[1]["spec"]["template"]["spec"]["containers"][0]["ports"]
        if port not in [each["containerPort"] for each in ports]:
            yield Finding(rule, found[0], f"{name_of(found[1])} does not have port {port}")


def the_application_is_told_the_same(view: View) -> Iterator[Finding]:
    """API and worker are told the same, in compose and in Kubernetes, but for addresses; the hosts that they are told
    are services that are rendered, or those of the spec.
    """
    rule = "the_application_is_told_the_same"
    services, environment = view.compose.get("services", {}), _service(view, "api").get("environment", {})
    names = set(services) | {alias for each in services.values() for alias in _aliases(each)}
    in_cluster = {found["metadata"]["name"] for _, found in view.of_kind("Service")}
    stores = {view.spec.database.host, view.spec.redis.host, view.spec.qdrant.host}
    hosts = stores.union(node.host for node in qdrant_nodes(view.spec))
    hosts |= {address.rpartition(":")[0].strip("[]") for address in view.spec.database.nodes.values()}
    hosts |= set(view.spec.failover.nodes) if view.spec.database.nodes else set()  # one without address is its name
    elsewhere = hosts - LOCAL_HOSTS
    pods = told_in_pods(view)
    for path, told in pods:
        for key, value in environment.items():
            if not key.endswith("_URL") and told.get(key) != value:
                yield Finding(rule, _COMPOSE, f"{key} is {value} here and {told.get(key)} in {path}")
            elif told.get(key) != pods[0][1].get(key):
                yield Finding(rule, path, f"{key} is {told.get(key)} here and another in {pods[0][0]}")
    urls = [(path, key, url, in_cluster) for path, told in pods for key, url in told.items()]
    urls += [(_COMPOSE, key, url.replace("$$", "$"), names) for key, url in environment.items()]
    for path, key, url, known in urls:
        for host in _hosts(url) if key.endswith("_URL") else ():
            if "." not in host and ":" not in host and host not in known | elsewhere:
                yield Finding(rule, path, f"{key} names {host}, which is not rendered")


def _aliases(service: dict[str, Any]) -> list[str]:
    networks = service.get("networks", {})
    return [
        alias
        for each in (networks.values() if isinstance(networks, dict) else ())
        for alias in (each or {}).get("aliases", ())
    ]


def _hosts(url: str) -> list[str]:
    """Return the hosts of a URL that may name several."""
    authority = url.partition("://")[2].partition("/")[0].rpartition("@")[2]
    return [
        part.rpartition("]")[0].lstrip("[") if part.startswith("[") else part.partition(":")[0]
        for part in authority.split(",")
        if part
    ]


def the_firewall_lets_in_what_the_spec_lists(view: View) -> Iterator[Finding]:
    """nftables accepts exactly the pairs of port and source that `firewall.inbound` lists, and drops the rest."""
    rule, path = "the_firewall_lets_in_what_the_spec_lists", "firewall/nftables.conf"
    text = view.text(path)
    wanted = {(each.port, each.source) for each in view.spec.firewall.inbound}
    for chain, port_words in (("input", "tcp dport"), ("published", "ct original proto-dst")):
        body = text.partition(f"chain {chain} {{")[2].partition("\n  }")[0]
        pattern = rf"(?:meta nfproto (ipv[46])|ip6? saddr (\S+)) {port_words} (\d+) accept"
        found = {
            (int(port), source or {"ipv4": "0.0.0.0/0", "ipv6": "::/0"}[family])
            for family, source, port in re.findall(pattern, body)
        }
        for port, source in sorted(found ^ wanted):
            how = "is let in" if (port, source) in found else "is not let in"
            yield Finding(rule, path, f"chain {chain}: {port} from {source} {how}, against firewall.inbound")
    if "hook input priority filter; policy drop;" not in text:
        yield Finding(rule, path, "what is not listed is not dropped")


def policies_let_in_what_the_firewall_does(view: View) -> Iterator[Finding]:
    """Networks in the API's policy are those that `firewall.inbound` gives the Service's port, no more and no fewer."""
    rule, spec = "policies_let_in_what_the_firewall_does", view.spec
    wanted = set()
    if spec.kubernetes.service.type != "ClusterIP":
        wanted = {each.source for each in spec.firewall.inbound if each.port == spec.kubernetes.service.port}
    for path, found in view.of_kind("NetworkPolicy"):
        networks = {
            peer["ipBlock"]["cidr"]
            for entry in found["spec"].get("ingress") or ()
            for peer in entry.get("from", ())
            if "ipBlock" in peer
        }
        is_api = found["spec"].get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/name") == "api"
        if networks != (wanted if is_api else set()):
            yield Finding(rule, path, f"{name_of(found)} lets in {sorted(networks)}, against firewall.inbound")
        for entry in found["spec"].get("ingress") or ():
            if not entry.get("from") or not entry.get("ports"):
                yield Finding(rule, path, f"{name_of(found)} has a rule without source or port")


def both_ends_of_a_flow_agree(view: View) -> Iterator[Finding]:
    """What one pod may send, another may receive: each egress rule to pods meets an ingress rule, and the reverse."""
    rule, path = "both_ends_of_a_flow_agree", "kubernetes/20-network.yaml"
    sent: set[tuple[str, str, int]] = set()
    taken: set[tuple[str, str, int]] = set()
    for _, found in view.of_kind("NetworkPolicy"):
        part = found["spec"].get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/name")
        if part is None:
            continue
        for direction, key, pairs in (("egress", "to", sent), ("ingress", "from", taken)):
            for entry in found["spec"].get(direction) or ():
                for peer in (each for each in entry.get(key, ()) if "podSelector" in each):
                    other = peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"]
                    for port in entry.get("ports", ()):
                        pairs.add((part, other, port["port"]) if key == "to" else (other, part, port["port"]))
    for source, target, port in sorted(sent ^ taken):
        end = "may not be received" if (source, target, port) in sent else "may not be sent"
        yield Finding(rule, path, f"{source} to {target} port {port} {end}")


def tls_is_as_new_everywhere(view: View) -> Iterator[Finding]:
    """No place accepts an older protocol than `tls.min_version`."""
    rule, oldest = "tls_is_as_new_everywhere", view.spec.tls.min_version
    accepted = "TLSv1.3" if oldest == "TLSv1.3" else "TLSv1.2 TLSv1.3"
    told = {
        "tls/nginx.conf": f"  ssl_protocols {accepted};",
        "docker/nginx.conf": f"  ssl_protocols {accepted};",
        "tls/haproxy.cfg": f"ssl-min-ver {oldest} ",
        "logging/logstash.conf": "ssl_supported_protocols => [" + ", ".join(f'"{v}"' for v in accepted.split()) + "]",
        **{
            f"postgres/{role}/postgresql.conf": f"ssl_min_protocol_version = '{oldest}'" for role in roles_of(view.spec)
        },
    }
    if not view.spec.logging.elasticsearch:
        del told["logging/logstash.conf"]
    for path, line in told.items():
        if line not in view.text(path):
            yield Finding(rule, path, f"does not hold {line.strip()}")


def the_image_starts_as_the_pod_does(view: View) -> Iterator[Finding]:
    """The command line is one in the image, in compose and in the pod; the user of the pod is that of the image."""
    rule = "the_image_starts_as_the_pod_does"
    found = _workload(view, "api")
    service = _service(view, "api")
    in_compose = [*service.get("entrypoint", ()), *service.get("command", ())]
    if found is not None:
        container = found[1]["spec"]["template"]["spec"]["containers"][0]
        in_pod = [*container.get("command", ()), *container.get("args", ())]
        if in_pod != in_compose:
            yield Finding(rule, found[0], f"starts {shlex.join(in_pod)}, compose {shlex.join(in_compose)}")
        user = found[1]["spec"]["template"]["spec"]["securityContext"].get("runAsUser")
        if f"USER {user}:" not in view.text("docker/Dockerfile"):
            yield Finding(rule, "docker/Dockerfile", f"does not run as {user}, as the pod does")


def certificates_carry_every_name(view: View) -> Iterator[Finding]:
    """The list of certificate names holds every host of an entry and every node that clients verify."""
    rule, path = "certificates_carry_every_name", "tls/certificate-names.txt"
    names = set(view.text(path).split())
    maps = [found["data"] for _, found in view.of_kind("ConfigMap") if "SYNAPSE_DATABASE_URL" in found["data"]]
    urls = [data["SYNAPSE_DATABASE_URL"] for data in maps]
    urls.append(_service(view, "api").get("environment", {}).get("SYNAPSE_DATABASE_URL", ""))
    vectors = [found["data"].get("SYNAPSE_QDRANT_URL", "") for _, found in view.of_kind("ConfigMap")]
    vectors.append(_service(view, "api").get("environment", {}).get("SYNAPSE_QDRANT_URL", ""))
    urls += [url for url in vectors if url.startswith("https://")]
    rendered = {found["metadata"]["name"] for _, found in view.of_kind("Service")} | set(
        view.compose.get("services", ())
    )
    wanted = {host for url in urls for host in _hosts(url) if host in rendered} | set(view.spec.kubernetes.entry.hosts)
    for name in sorted(wanted - names):
        yield Finding(rule, path, f"{name} is verified by clients and not listed")


def sources_are_networks(view: View) -> Iterator[Finding]:
    """Every address block of a policy is a network without host bits."""
    for path, found in view.of_kind("NetworkPolicy"):
        for entry in [*(found["spec"].get("ingress") or ()), *(found["spec"].get("egress") or ())]:
            for peer in [*entry.get("from", ()), *entry.get("to", ())]:
                try:
                    ipaddress.ip_network(peer.get("ipBlock", {}).get("cidr", "0.0.0.0/0"))
                except ValueError as fault:
                    yield Finding("sources_are_networks", path, f"{name_of(found)}: {fault}")


RULES: tuple[Rule, ...] = (
    the_api_listens_where_it_is_asked,
    the_health_check_is_one,
    limits_are_those_of_the_spec,
    stores_listen_where_they_are_asked,
    the_application_is_told_the_same,
    the_firewall_lets_in_what_the_spec_lists,
    policies_let_in_what_the_firewall_does,
    both_ends_of_a_flow_agree,
    tls_is_as_new_everywhere,
    the_image_starts_as_the_pod_does,
    certificates_carry_every_name,
    sources_are_networks,
)
