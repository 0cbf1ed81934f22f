"""Every target that is rendered: its name is that of its asset, its reads are the spec/<block> assets it depends on.

A new target is one line here; that `reads` is exactly what its renderer touches is proven by a test, not by care.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from synapse_ops.manifests.document import Document
from synapse_ops.manifests.monitoring_targets import MONITORING
from synapse_ops.spec import Spec


@dataclass(frozen=True, slots=True)
class Target:
    """render is pure. module: the renderer's, for the code version. description: what an operator reads in the UI."""

    name: str
    render: Callable[[Spec], tuple[Document, ...]]
    reads: frozenset[str]
    module: str
    description: str


TARGETS: tuple[Target, ...] = (*(Target(*row) for row in MONITORING),)
