"""The rights of Synapse Ops in the stack's namespace: to look, and to hold a lease.

It changes nothing in a cluster, so that it has no right to. Its own secrets are files below its pod, which need none.
"""

from __future__ import annotations

from synapse_ops.manifests.kubernetes.objects import Object, service_account, thing
from synapse_ops.manifests.stack.parts import OPS, namespace, object_name
from synapse_ops.spec import Spec

_LOOK = ["get", "list", "watch"]


def access_objects(spec: Spec) -> list[Object]:
    """Return the account of Synapse Ops, its role, and the binding of both."""
    rules = [
        _rule("apps", ["deployments", "statefulsets", "replicasets"]),
        _rule(
            "", ["pods", "pods/log", "services", "configmaps", "serviceaccounts", "events", "persistentvolumeclaims"]
        ),
        _rule("autoscaling", ["horizontalpodautoscalers"]),
        _rule("policy", ["poddisruptionbudgets"]),
        _rule("networking.k8s.io", ["networkpolicies", "ingresses"]),
        _rule("gateway.networking.k8s.io", ["gateways", "httproutes"]),
        _rule("coordination.k8s.io", ["leases"], ["get", "create", "update", "patch"]),
    ]
    subject = {"kind": "ServiceAccount", "name": object_name(spec, OPS), "namespace": namespace(spec)}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": object_name(spec, OPS)}
    api = "rbac.authorization.k8s.io/v1"
    return [
        service_account(spec, OPS),
        thing(spec, "Role", api, OPS, rules=rules),
        thing(spec, "RoleBinding", api, OPS, subjects=[subject], roleRef=reference),
    ]


def _rule(group: str, resources: list[str], verbs: list[str] = _LOOK) -> Object:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}
