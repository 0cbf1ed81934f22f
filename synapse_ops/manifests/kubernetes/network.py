"""Network policies: everything is denied, then each flow of flows.py is let through at both of its ends."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from synapse_ops.manifests.kubernetes.objects import Object, selector, thing
from synapse_ops.manifests.stack.flows import ENTRY, MONITORING, STORES, Flow, flows, inbound, outbound
from synapse_ops.manifests.stack.parts import (
    API,
    OPS,
    QDRANT,
    WAL_RECEIVER,
    WORKER,
    database_parts,
    has_wal_receiver,
    is_address,
    is_ours,
    qdrant_nodes,
)
from synapse_ops.spec import Spec

_NAMESPACE = "kubernetes.io/metadata.name"  # set by the API server itself, so that nobody can claim another's
# 5353 is where OpenShift's pods take what arrives at 53: a policy judges the pod's port
_DNS = [{"protocol": protocol, "port": port} for port in (53, 5353) for protocol in ("UDP", "TCP")]
_BY_FAMILY = {4: "0.0.0.0/0", 6: "::/0"}


def policies(spec: Spec) -> list[Object]:
    """Return the policies, one a part that runs here."""
    found = flows(spec)
    services = (OPS, WAL_RECEIVER) if has_wal_receiver(spec) else (OPS,)
    parts = [API, WORKER, *services, *(part for part in STORES if _runs_here(spec, part))]
    return [_deny_all(spec), _names(spec), *(_policy(spec, part, found) for part in parts)]


def _runs_here(spec: Spec, part: str) -> bool:
    if part not in STORES:
        return True
    is_there = STORES[part] != "database" or part in database_parts(spec)
    return is_there and is_ours(spec, STORES[part], "kubernetes")  # type: ignore[arg-type]


def _deny_all(spec: Spec) -> Object:
    body: Object = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    return thing(spec, "NetworkPolicy", "networking.k8s.io/v1", "default-deny", spec=body)


def _names(spec: Spec) -> Object:
    """Every pod may ask DNS, wherever the cluster has it: NodeLocal DNS is an address of the node, which no selector
    finds, and some clusters have a namespace of their own for it.
    """
    body = {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": _DNS}]}
    return thing(spec, "NetworkPolicy", "networking.k8s.io/v1", "dns", spec=body)


def _policy(spec: Spec, part: str, found: Iterable[Flow]) -> Object:
    arriving = [flow for flow in found if flow.target == part and _runs_here(spec, flow.source)]
    leaving = [flow for flow in found if flow.source == part]
    ingress = [_rule("from", _sources(spec, flow), flow.port) for flow in arriving]
    ingress = [rule for rule in ingress if rule is not None]
    if part == API:
        ingress += _from_outside(spec)
    egress = [_rule("to", _targets(spec, flow), flow.port) for flow in leaving]
    egress += [_rule("to", _blocks([way.host or ""]), way.port) for way in outbound(spec) if way.source == part]
    if part in (API, WORKER):
        egress += [_rule("to", _called(each.destination), each.port) for each in spec.firewall.egress]
    rules = {"ingress": ingress, "egress": _once([rule for rule in egress if rule is not None])}
    body: Object = {
        "podSelector": {"matchLabels": selector(spec, part)},
        "policyTypes": ["Ingress", "Egress"],
        # the API server stores no empty list: with one each apply would be a change
        **{direction: found for direction, found in rules.items() if found},
    }
    return thing(spec, "NetworkPolicy", "networking.k8s.io/v1", part, spec=body)


def _rule(key: str, peers: list[Object], port: int) -> Object | None:
    return {key: peers, "ports": [{"protocol": "TCP", "port": port}]} if peers else None


def _once(rules: list[Object]) -> list[Object]:
    return [rule for index, rule in enumerate(rules) if rule not in rules[:index]]


def _sources(spec: Spec, flow: Flow) -> list[Object]:
    if flow.source == MONITORING:
        return [_in_namespace(spec.kubernetes.monitoring_namespace)]
    if flow.source == ENTRY:
        has_entry = spec.kubernetes.entry.kind != "none"
        return [_in_namespace(spec.kubernetes.entry.controller_namespace)] if has_entry else []
    return [{"podSelector": {"matchLabels": selector(spec, flow.source)}}]


def _targets(spec: Spec, flow: Flow) -> list[Object]:
    if _runs_here(spec, flow.target):
        return [{"podSelector": {"matchLabels": selector(spec, flow.target)}}]
    if flow.target == QDRANT:
        return _blocks([node.host for node in qdrant_nodes(spec)])
    return _blocks([getattr(spec, STORES[flow.target]).host])


def _blocks(hosts: Iterable[str]) -> list[Object]:
    """Return the networks of hosts. Policies know no names: where there is one, only the port can be narrowed."""
    hosts = tuple(dict.fromkeys(hosts))
    if not all(is_address(host) for host in hosts):
        return [{"ipBlock": {"cidr": network}} for network in _BY_FAMILY.values()]
    addresses = [ipaddress.ip_address(host) for host in hosts]
    return [{"ipBlock": {"cidr": f"{address}/{address.max_prefixlen}"}} for address in addresses]


def _called(destination: str | None) -> list[Object]:
    """Return the networks of an entry of `firewall.egress`. The internet is not the node's own services: a cloud gives
    its credentials away at a link-local address.
    """
    if destination is not None:
        return [{"ipBlock": {"cidr": destination}}]
    return [
        {"ipBlock": {"cidr": _BY_FAMILY[4], "except": ["169.254.0.0/16"]}},
        {"ipBlock": {"cidr": _BY_FAMILY[6], "except": ["fe80::/10"]}},
    ]


def _in_namespace(name: str) -> Object:
    return {"namespaceSelector": {"matchLabels": {_NAMESPACE: name}}}


def _from_outside(spec: Spec) -> list[Object]:
    """Return who may reach the API past the Service: the networks that `firewall.inbound` gives the Service's port."""
    if spec.kubernetes.service.type == "ClusterIP":
        return []
    sources = [flow.source for flow in inbound(spec) if flow.port == spec.kubernetes.service.port]
    rule = _rule("from", [{"ipBlock": {"cidr": source}} for source in sources], spec.server.port)
    return [] if rule is None else [rule]
