"""Renders what the prober runs from in containers: its spec for compose, its workload for the cluster.

A target of its own, because its documents hold the whole spec: any block's change renders them anew, and only them.
"""

from __future__ import annotations

from synapse_ops.manifests.compose.prober import SPEC_PATH
from synapse_ops.manifests.document import YAML, Document, text_document, yaml_document
from synapse_ops.manifests.kubernetes.prober import prober_objects
from synapse_ops.manifests.stack.prober import READS, prober_spec_text
from synapse_ops.spec import Spec


def render_prober(spec: Spec) -> tuple[Document, ...]:
    """Return the prober's documents."""
    return (
        text_document(SPEC_PATH, prober_spec_text(spec, "compose"), READS, media_type=YAML),
        yaml_document("kubernetes/43-synapse-ops.yaml", *prober_objects(spec), reads=READS),
    )
