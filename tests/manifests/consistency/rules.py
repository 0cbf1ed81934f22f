"""Every rule that documents of a valid spec fulfil: those of the package, and those that only a renderer can break.

The rules below this folder read rendered bytes and find each number and name in every place where it must be the same.
No spec can break them, so they judge the renderers, here, over many specs; mutants.py breaks each of them once.
"""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from synapse_ops.manifests.bundle import Bundle
from synapse_ops.manifests.consistency import Finding, check_consistency
from synapse_ops.spec import Spec
from tests.manifests.consistency import access, kubernetes, places, prober, safety, wal_receiver
from tests.manifests.consistency.findings import Rule, View
from tests.manifests.consistency.kubernetes_schemas import kubernetes_objects_hold
from tests.manifests.consistency.monitoring import monitoring_faults


def monitoring_documents_hold(view: View) -> Iterator[Finding]:
    """Prometheus, Alertmanager, Grafana and Logstash files parse, and name metrics and pages that exist."""
    for path, message in monitoring_faults(view.bundle.documents):
        yield Finding("monitoring_documents_hold", path, message)


RENDERER_RULES: tuple[Rule, ...] = (
    *kubernetes.RULES,
    *places.RULES,
    *safety.RULES,
    *access.RULES,
    *prober.RULES,
    *wal_receiver.RULES,
    monitoring_documents_hold,
    kubernetes_objects_hold,
)


def errors_in(bundle: Bundle, spec: Spec) -> list[Finding]:
    """Return what any rule finds wrong with a bundle: those of the package first, notes left out."""
    view = View(bundle, spec)
    found = [finding for rule in RENDERER_RULES for finding in _judged(rule, view)]
    return [row for row in (*check_consistency(bundle, spec), *found) if row.severity == "error"]


def _judged(rule: Rule, view: View) -> Iterator[Finding]:
    """Yield what a rule finds; one that cannot read the documents has found something, too."""
    try:
        yield from rule(view)
    except (LookupError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        what = f"{type(error).__name__} {error}".strip()
        yield Finding(rule.__name__, "*", f"something that every bundle has is missing or malformed: {what}")
