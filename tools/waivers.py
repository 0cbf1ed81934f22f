"""Findings of outside tools that are accepted, each with its reason. None outlives its finding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Accepted:
    """reason: why a rule is not kept. holds: whether that is so in a document, by its text; else it is a finding."""

    reason: str
    holds: Callable[[str], bool] = lambda text: True


_MOVING_TAG = Accepted(
    "kubernetes.image is a tag that moves by default, so that the first try needs no registry; "
    "an operator names a version or a digest there."
)

_ONE_AT_A_TIME = Accepted(
    "Of the WAL receiver one writes at a time: a second would wait for the lease, and a new one begins when the old "
    "one has ended.",
    lambda text: "  type: Recreate\n" in text,
)

# needed by the default spec
WAIVERS: Mapping[tuple[str, str], Accepted] = {
    ("checkov", "CKV_K8S_14"): _MOVING_TAG,
    ("checkov", "CKV_K8S_43"): Accepted(
        "A digest is the operator's choice: kubernetes.image and docker.base_image take one. The stores' images are "
        "named by their minor version, so that security updates arrive."
    ),
    ("trivy", "KSV-0013"): _MOVING_TAG,
    ("trivy", "KSV-0125"): Accepted(
        "The rule knows the registries of cloud vendors only. The images are the stores' own projects'."
    ),
    ("kube-score", "container-image-tag"): _MOVING_TAG,
    ("kube-score", "deployment-strategy"): _ONE_AT_A_TIME,
    ("kube-score", "deployment-replicas"): _ONE_AT_A_TIME,
}

# needed where the spec says so
CHOSEN: Mapping[tuple[str, str], Accepted] = {
    ("kube-score", "service-targets-pod"): Accepted(
        "The Ingress sends /metrics to a Service that has no pod, since it cannot refuse a path: nobody answers there.",
        lambda text: "app.kubernetes.io/name: nothing\n" in text,
    ),
    ("kube-score", "service-type"): Accepted(
        "kubernetes.service.type is NodePort: where the cluster has no load balancer, one in front of the nodes needs "
        "it.",
        lambda text: "  type: NodePort\n" in text,
    ),
    ("kube-score", "horizontalpodautoscaler-replicas"): Accepted(
        "autoscaling.min_replicas is 1: the operator prefers an outage at a node's loss to a second pod's cost.",
        lambda text: "  minReplicas: 1\n" in text,
    ),
    ("kube-score", "pod-probes-identical"): Accepted(
        "Of `health` fewer than two checks are paths of the application: liveness and readiness ask the same, and "
        "liveness takes twice as many failures, so that what cannot serve is taken out of service first.",
        lambda text: "failureThreshold: 6\n" in text,
    ),
}
