"""How HTTPS reaches the API: an Ingress, or a Gateway with its HTTPRoute. Never a controller's own annotations.

The oldest TLS version is a setting of the controller, not of these objects; tls/ holds it for nginx and haproxy.
"""

from __future__ import annotations

from synapse_ops.manifests.kubernetes.objects import Object, selector, thing, tls_secret_name
from synapse_ops.manifests.stack.parts import API, HTTPS_PORT, INTERNAL_PATHS, object_name
from synapse_ops.manifests.stack.units import milliseconds
from synapse_ops.spec import Spec

ENTRY, NOTHING = "entry", "nothing"
_REFUSED = "/.refused"


def entry_objects(spec: Spec) -> list[Object]:
    """Return the objects of the chosen kind; none when nothing is to be reached by HTTPS."""
    kind = spec.kubernetes.entry.kind
    if kind == "none":
        return []
    return [_nothing(spec), _ingress(spec)] if kind == "ingress" else [_gateway(spec), _route(spec)]


def _nothing(spec: Spec) -> Object:
    """Return a Service without a pod: an Ingress cannot refuse a path, but what it sends here is answered by 503."""
    port = {"name": "nothing", "port": spec.kubernetes.service.port, "protocol": "TCP"}
    body = {"type": "ClusterIP", "selector": selector(spec, NOTHING), "ports": [port]}
    return thing(spec, "Service", "v1", NOTHING, spec=body)


def _ingress(spec: Spec) -> Object:
    entry = spec.kubernetes.entry
    service = {"name": object_name(spec, API), "port": {"number": spec.kubernetes.service.port}}
    nothing = {"name": object_name(spec, NOTHING), "port": {"number": spec.kubernetes.service.port}}
    told = dict.fromkeys(INTERNAL_PATHS, nothing) | {"/": service}
    paths = {
        "paths": [
            {"path": path, "pathType": "Prefix", "backend": {"service": backend}} for path, backend in told.items()
        ]
    }
    rules = [{"host": host, "http": paths} for host in entry.hosts] or [{"http": paths}]
    tls: Object = {"secretName": tls_secret_name(spec)}
    if entry.hosts:
        tls = {"hosts": list(entry.hosts)} | tls
    body: Object = {"tls": [tls], "rules": rules}
    if entry.class_name:
        body = {"ingressClassName": entry.class_name} | body
    return thing(spec, "Ingress", "networking.k8s.io/v1", ENTRY, spec=body)


def _gateway(spec: Spec) -> Object:
    entry = spec.kubernetes.entry
    tls = {"mode": "Terminate", "certificateRefs": [{"kind": "Secret", "name": tls_secret_name(spec)}]}
    listeners = []
    for index, host in enumerate(entry.hosts or (None,)):
        listener: Object = {"name": f"https-{index}", "protocol": "HTTPS", "port": HTTPS_PORT, "tls": tls}
        listener |= {} if host is None else {"hostname": host}
        listener["allowedRoutes"] = {"namespaces": {"from": "Same"}}
        listeners.append(listener)
    body = {"gatewayClassName": entry.class_name or "synapse", "listeners": listeners}
    return thing(spec, "Gateway", "gateway.networking.k8s.io/v1", ENTRY, spec=body)


def _route(spec: Spec) -> Object:
    entry = spec.kubernetes.entry
    passed = {
        "backendRefs": [{"name": object_name(spec, API), "port": spec.kubernetes.service.port}],
        "timeouts": {"request": _gateway_duration(milliseconds(spec.server.timeout))},
    }
    body: Object = {
        "parentRefs": [{"name": object_name(spec, ENTRY)}],
        "rules": [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": path}} for path in INTERNAL_PATHS],
                # the API's answer is 404: a route has no way to refuse, and without a backend controllers differ
                "filters": [
                    {
                        "type": "URLRewrite",
                        "urlRewrite": {"path": {"type": "ReplaceFullPath", "replaceFullPath": _REFUSED}},
                    }
                ],
                **passed,
            },
            {"matches": [{"path": {"type": "PathPrefix", "value": "/"}}], **passed},
        ],
    }
    if entry.hosts:
        body = {"hostnames": list(entry.hosts)} | body
    return thing(spec, "HTTPRoute", "gateway.networking.k8s.io/v1", ENTRY, spec=body)


def _gateway_duration(whole_ms: int) -> str:
    """Return a duration as the Gateway API writes it: hours, minutes, seconds, milliseconds; it knows no days.

    Source: Gateway API, GEP-2257. 0s is no limit.
    """
    rest, parts = whole_ms, []
    for unit, unit_ms in (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, rest = divmod(rest, unit_ms)
        parts += [f"{count}{unit}"] if count else []
    return "".join(parts) or "0s"
