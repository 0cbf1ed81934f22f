"""The rights of Synapse Ops in the stack's namespace: what rollout, drift and failover do, and nothing else."""

from __future__ import annotations

from synapse_ops.manifests.kubernetes.objects import Object, namespace, secret_name, service_account, thing
from synapse_ops.manifests.parts import OPS, object_name
from synapse_ops.spec import Spec

_LOOK = ["get", "list", "watch"]
_APPLY = [*_LOOK, "create", "patch", "delete"]


def access_objects(spec: Spec) -> list[Object]:
    """Return the account of Synapse Ops, its role, and the binding of both."""
    rules = [
        _rule("apps", ["deployments", "statefulsets"], _APPLY),
        _rule("", ["services", "configmaps", "serviceaccounts"], _APPLY),
        _rule("", ["pods"], [*_LOOK, "delete"]),  # a fence ends the old primary's pod and sees that it is gone
        _rule("", ["events", "pods/log", "persistentvolumeclaims"], _LOOK),
        _rule("apps", ["replicasets"], _LOOK),
        _rule("autoscaling", ["horizontalpodautoscalers"], _APPLY),
        _rule("policy", ["poddisruptionbudgets"], _APPLY),
        _rule("networking.k8s.io", ["networkpolicies", "ingresses"], _APPLY),
        _rule("gateway.networking.k8s.io", ["gateways", "httproutes"], _APPLY),
        _rule("coordination.k8s.io", ["leases"], ["get", "create", "update", "patch"]),
        _rule("", ["secrets"], ["get"]) | {"resourceNames": [secret_name(spec)]},
    ]
    subject = {"kind": "ServiceAccount", "name": object_name(spec, OPS), "namespace": namespace(spec)}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": object_name(spec, OPS)}
    api = "rbac.authorization.k8s.io/v1"
    return [
        service_account(spec, OPS),
        thing(spec, "Role", api, OPS, rules=rules),
        thing(spec, "RoleBinding", api, OPS, subjects=[subject], roleRef=reference),
    ]


def _rule(group: str, resources: list[str], verbs: list[str]) -> Object:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}
