"""Findings of outside tools that are accepted, each with its reason. None outlives its finding."""

from __future__ import annotations

from collections.abc import Mapping

_MOVING_TAG = (
    "kubernetes.image is a tag that moves by default, so that the first try needs no registry; "
    "an operator names a version or a digest there."
)

WAIVERS: Mapping[tuple[str, str], str] = {
    ("checkov", "CKV_K8S_14"): _MOVING_TAG,
    ("checkov", "CKV_K8S_43"): (
        "A digest is the operator's choice: kubernetes.image and docker.base_image take one. The stores' images are "
        "named by their minor version, so that security updates arrive."
    ),
    ("trivy", "KSV-0013"): _MOVING_TAG,
    ("trivy", "KSV-0125"): (
        "The rule knows the registries of cloud vendors only. The images are the stores' own projects'."
    ),
    ("kube-score", "container-image-tag"): _MOVING_TAG,
}
