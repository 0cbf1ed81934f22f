"""Renders what our own services run from: their spec for compose, their workloads for the cluster, a unit for hosts.

A target of its own, because its documents hold the whole spec: any block's change renders them anew, and only them.
"""

from __future__ import annotations

from synapse_ops.manifests.compose import prober, wal_receiver
from synapse_ops.manifests.document import YAML, Document, text_document, yaml_document
from synapse_ops.manifests.kubernetes.prober import prober_objects
from synapse_ops.manifests.kubernetes.wal_receiver import wal_receiver_objects
from synapse_ops.manifests.stack.container_spec import READS
from synapse_ops.manifests.stack.parts import has_wal_receiver
from synapse_ops.manifests.stack.prober import prober_spec_text
from synapse_ops.manifests.stack.systemd import UNIT_PATH, wal_receiver_unit
from synapse_ops.manifests.stack.wal_receiver import receiver_spec_text
from synapse_ops.spec import Spec


def render_services(spec: Spec) -> tuple[Document, ...]:
    """Return the documents of the prober, and of the WAL receiver where there is one."""
    documents = [
        text_document(prober.SPEC_PATH, prober_spec_text(spec, "compose"), READS, media_type=YAML),
        yaml_document("kubernetes/43-synapse-ops.yaml", *prober_objects(spec), reads=READS),
    ]
    if has_wal_receiver(spec):
        documents += [
            text_document(wal_receiver.SPEC_PATH, receiver_spec_text(spec, "compose"), READS, media_type=YAML),
            yaml_document("kubernetes/44-wal-receiver.yaml", *wal_receiver_objects(spec), reads=READS),
            text_document(UNIT_PATH, wal_receiver_unit(), READS),
        ]
    return tuple(documents)
