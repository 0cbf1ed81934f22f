"""What all Kubernetes objects of the stack have in common: names, labels, selectors, and the hardened pod.

Selectors hold only a part's name and the stack's: they can never be changed, so nothing that changes may be in them.
Every pod fulfils the Pod Security Standard `restricted` and writes only where a volume is mounted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from synapse_ops.manifests.stack.parts import namespace, object_name
from synapse_ops.manifests.stack.processes import SECRETS_DIR, USER_ID
from synapse_ops.spec import Spec
from synapse_ops.spec.units import format_cores, format_size

Object = dict[str, Any]

MANAGER = "synapse-ops"
SCRATCH_LIMIT = "256Mi"
_LOCAL_DISK = {"requests": "64Mi", "limits": "1Gi"}  # logs and scratch on the node


def selector(spec: Spec, part: str) -> dict[str, str]:
    """Return the labels by which a part's pods are found, for ever."""
    return {"app.kubernetes.io/name": part, "app.kubernetes.io/instance": object_name(spec)}


def labels(spec: Spec, part: str) -> dict[str, str]:
    """Return a part's labels."""
    return selector(spec, part) | {
        "app.kubernetes.io/part-of": object_name(spec),
        "app.kubernetes.io/managed-by": MANAGER,
    }


def thing(spec: Spec, kind: str, api: str, part: str, /, *, name: str | None = None, **body: Any) -> Object:
    """Return one object. part: what its labels say; name: else `<stack>-<part>`."""
    return {
        "apiVersion": api,
        "kind": kind,
        "metadata": {
            "name": name or object_name(spec, part),
            "namespace": namespace(spec),
            "labels": labels(spec, part),
        },
        **body,
    }


def config_map(spec: Spec, part: str, data: Mapping[str, str]) -> Object:
    """Return an immutable ConfigMap whose name carries the hash of its contents.

    A change of configuration is a new name, hence a rollout; the former one stays, so that a rollback finds it.
    """
    mark = hashlib.sha256(json.dumps(dict(data), sort_keys=True).encode("utf-8")).hexdigest()[:10]
    name = f"{object_name(spec, part)}-{mark}"
    return thing(spec, "ConfigMap", "v1", part, name=name, immutable=True, data=dict(data))


def secret_name(spec: Spec) -> str:
    """Return the Secret that holds every password and key of the stack."""
    return object_name(spec, "secrets")


def tls_secret_name(spec: Spec) -> str:
    """Return the Secret of type kubernetes.io/tls."""
    return spec.kubernetes.entry.tls_secret or object_name(spec, "tls")


def part_resources(spec: Spec) -> Object:
    """Return `resources` of the spec."""
    limits, requests = spec.resources.limits, spec.resources.requests
    return {
        "requests": amounts(format_cores(requests.cpu), format_size(requests.memory), "requests"),
        "limits": amounts(format_cores(limits.cpu), format_size(limits.memory), "limits"),
    }


def helper_resources() -> Object:
    """Return what an exporter beside a part may use."""
    return {
        "requests": amounts("10m", "32Mi", "requests"),
        "limits": amounts("200m", "128Mi", "limits"),
    }


def amounts(cores: str, memory: str, which: str) -> dict[str, str]:
    """Return cores, memory and local disk. which: requests or limits."""
    return {"cpu": cores, "memory": memory, "ephemeral-storage": _LOCAL_DISK[which]}


def container(name: str, image: str, resources: Object, **more: Any) -> Object:
    """Return a container without any right that it does not need. more: in the words of the API."""
    mounts = [{"name": "scratch", "mountPath": "/tmp"}, *more.pop("volumeMounts", ())]  # noqa: S108 - its own
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": "Always",  # a node's cached copy must not outlive the right to pull it
        **more,
        "resources": resources,
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def pod_template(
    spec: Spec,
    part: str,
    containers: Sequence[Object],
    *,
    grace_s: int,
    volumes: Sequence[Object] = (),
    spread_by_revision: bool = True,
    **more: Any,
) -> Object:
    """Return the template of a part's pods: spread over nodes and zones, without an API token."""
    pull = spec.kubernetes.pull_secret
    return {
        "metadata": {"labels": labels(spec, part)},
        "spec": {
            "serviceAccountName": object_name(spec, part),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            **({"imagePullSecrets": [{"name": pull}]} if pull else {}),
            "terminationGracePeriodSeconds": grace_s,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER_ID,
                "runAsGroup": USER_ID,
                "fsGroup": USER_ID,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "affinity": _apart(spec, part),
            "topologySpreadConstraints": [_spread(spec, part, by_revision=spread_by_revision)],
            **more,
            "containers": list(containers),
            "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": SCRATCH_LIMIT}}, *volumes],
        },
    }


def headless_service(spec: Spec, part: str, ports: Sequence[Object], *, name: str | None = None) -> Object:
    """Return the Service whose name is the addresses of a part's pods, ready or not: a standby is cloned from and
    fenced by name, and a scraped pod that vanished from DNS would be unknown, never down (`up == 0`).
    """
    body = {
        "type": "ClusterIP",
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": selector(spec, part),
        "ports": list(ports),
    }
    return thing(spec, "Service", "v1", part, name=name, spec=body)


def service_port(name: str, port: int) -> Object:
    """Return a Service's port that leads to the container's port of that name."""
    return {"name": name, "port": port, "targetPort": name, "protocol": "TCP"}


def stateful_set(
    spec: Spec, part: str, pod: Object, size_bytes: int, *, volume: str, is_shared: bool = False
) -> Object:
    """Return a part of one pod that keeps its volume, mounted by this name.

    is_shared: other pods of its node may mount the volume; else none: two servers on one data directory would destroy
    it.
    """
    claim: Object = {
        "accessModes": ["ReadWriteOnce" if is_shared else "ReadWriteOncePod"],
        "resources": {"requests": {"storage": format_size(size_bytes)}},
    }
    if spec.kubernetes.storage.class_name:
        claim["storageClassName"] = spec.kubernetes.storage.class_name
    body = {
        "replicas": 1,
        "serviceName": object_name(spec, part),
        "podManagementPolicy": "OrderedReady",
        "revisionHistoryLimit": 5,
        "updateStrategy": {"type": "RollingUpdate"},
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
        "selector": {"matchLabels": selector(spec, part)},
        "template": pod,
        "volumeClaimTemplates": [{"metadata": {"name": volume}, "spec": claim}],
    }
    name = object_name(spec, part, longest=52)  # a pod's controller-revision label adds 11
    return thing(spec, "StatefulSet", "apps/v1", part, name=name, spec=body)


def _apart(spec: Spec, part: str) -> Object:
    """Two pods of a part rather not on one node: preferred, so that a small cluster still runs them all."""
    term = {"labelSelector": {"matchLabels": selector(spec, part)}, "topologyKey": "kubernetes.io/hostname"}
    return {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]
        }
    }


def _spread(spec: Spec, part: str, *, by_revision: bool) -> Object:
    found: Object = {
        "maxSkew": 1,
        "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector(spec, part)},
    }
    if by_revision:  # else pods of the outgoing release count, and the new ones end up lopsided
        found["matchLabelKeys"] = ["pod-template-hash"]
    return found


def secrets_volume(spec: Spec, names: Sequence[str]) -> tuple[Object, Object]:
    """Return the volume with these secrets as files, and its mount. `tls.*` and `ca.crt` come from the TLS Secret."""
    groups: dict[str, list[str]] = {}
    for name in names:
        of_tls = name in ("tls.crt", "tls.key", "ca.crt")
        groups.setdefault(tls_secret_name(spec) if of_tls else secret_name(spec), []).append(name)
    sources = [
        {"secret": {"name": secret, "items": [{"key": key, "path": key} for key in keys]}}
        for secret, keys in groups.items()
    ]
    volume = {"name": "secrets", "projected": {"defaultMode": 0o440, "sources": sources}}
    return volume, {"name": "secrets", "mountPath": SECRETS_DIR, "readOnly": True}


def config_volume(name: str, config: Object, directory: str) -> tuple[Object, Object]:
    """Return the volume of a ConfigMap and its mount."""
    volume = {"name": name, "configMap": {"name": config["metadata"]["name"]}}
    return volume, {"name": name, "mountPath": directory, "readOnly": True}


def service_account(spec: Spec, part: str) -> Object:
    """Return a part's own account; its pods carry no token of it."""
    return thing(spec, "ServiceAccount", "v1", part, automountServiceAccountToken=False)


def disruption_budget(spec: Spec, part: str) -> Object:
    """Return a budget of one pod at a time: `minAvailable` would make a node with a single pod undrainable."""
    return thing(
        spec,
        "PodDisruptionBudget",
        "policy/v1",
        part,
        spec={
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selector(spec, part)},
        },
    )
