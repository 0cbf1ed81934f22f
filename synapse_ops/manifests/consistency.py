"""The proof that the documents of a bundle agree with one another and with the spec: every rule, in one list.

A convention is what one hopes for; these rules read the rendered bytes and find each number and name in every place
where it must be the same. tests/manifests breaks each of them once and sees it found.
"""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from synapse_ops.manifests import (
    consistency_access,
    consistency_hosts,
    consistency_kubernetes,
    consistency_places,
    consistency_prober,
    consistency_safety,
)
from synapse_ops.manifests.bundle import Bundle
from synapse_ops.manifests.findings import Finding, Rule, View
from synapse_ops.manifests.kubernetes_gate import kubernetes_objects_hold
from synapse_ops.manifests.monitoring_gates import monitoring_faults
from synapse_ops.spec import Spec

__all__ = ["GATES", "RULES", "Finding", "check_consistency"]


def monitoring_documents_hold(view: View) -> Iterator[Finding]:
    """Prometheus, Alertmanager, Grafana and Logstash files parse, and name metrics and pages that exist."""
    for path, message in monitoring_faults(view.bundle.documents):
        yield Finding("monitoring_documents_hold", path, message)


# judge documents by themselves, as their readers would; the other rules compare documents
GATES: tuple[Rule, ...] = (monitoring_documents_hold, kubernetes_objects_hold)

RULES: tuple[Rule, ...] = (
    *consistency_kubernetes.RULES,
    *consistency_places.RULES,
    *consistency_hosts.RULES,
    *consistency_safety.RULES,
    *consistency_access.RULES,
    *consistency_prober.RULES,
    *GATES,
)


def check_consistency(bundle: Bundle, spec: Spec) -> tuple[Finding, ...]:
    """Return what does not agree, in the order of the rules; no error among them means that the bundle may be used."""
    view = View(bundle, spec)
    return tuple(finding for rule in RULES for finding in _judged(rule, view))


def _judged(rule: Rule, view: View) -> Iterator[Finding]:
    """Yield what a rule finds; one that cannot read the documents has found something, too."""
    try:
        yield from rule(view)
    except (LookupError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        what = f"{type(error).__name__} {error}".strip()
        yield Finding(rule.__name__, "*", f"something that every bundle has is missing or malformed: {what}")
