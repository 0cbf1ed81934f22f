"""What is to be said of the documents of a spec, without making anything of them: findings, and the recorded proofs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from synapse_ops.domain.attestation import ToolProof, obstacles
from synapse_ops.errors import Unreachable
from synapse_ops.manifests.bundle import bundle_of
from synapse_ops.manifests.consistency import Finding, check_consistency
from synapse_ops.manifests.targets import TARGETS
from synapse_ops.operations.prove_release import known_tools, recorded_proofs

if TYPE_CHECKING:
    from synapse_ops.operations.stack import Stack


@dataclass(frozen=True)
class ReleaseReview:
    """Findings and proofs of all documents.

    paths, digests: of each target's documents. required: manifests.require_proofs.
    unread: why the store of proofs could not be read, "" when it was; then `proofs` are those that this host knows.
    """

    findings: tuple[Finding, ...]
    proofs: tuple[ToolProof, ...]
    required: Sequence[str]
    paths: dict[str, frozenset[str]]
    digests: dict[str, str]
    unread: str = ""

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Return why the proofs do not let the release be made, one line a cause."""
        return (self.unread,) if self.unread and self.required else obstacles(self.proofs, self.required)

    def paths_of(self, target: str | None) -> frozenset[str]:
        """Return the documents of a target; None: of all, with whatever else a finding may name."""
        if target is not None:
            return self.paths[target]
        named = {finding.path for finding in self.findings}
        return frozenset(named.union(*self.paths.values()))


def review_release(stack: Stack) -> ReleaseReview:
    """Return the review of what the spec renders now. What is to be said without a store is said while it is away."""
    made = {target.name: target.render(stack.spec) for target in TARGETS}
    bundle = bundle_of(tuple(document for documents in made.values() for document in documents))
    unread = ""
    try:
        proofs = recorded_proofs(bundle, known_tools(), stack.release_store(), stack.state_dir)
    except Unreachable as error:
        unread = error.message
        proofs = recorded_proofs(bundle, known_tools(), None, stack.state_dir)
    return ReleaseReview(
        findings=check_consistency(bundle, stack.spec),
        proofs=proofs,
        required=stack.spec.manifests.require_proofs,
        unread=unread,
        paths={name: frozenset(str(document.path) for document in documents) for name, documents in made.items()},
        digests={name: bundle_of(documents).digest for name, documents in made.items()},
    )
