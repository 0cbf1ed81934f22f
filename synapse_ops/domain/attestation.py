"""What outside tools found in rendered documents, and what that means for a release.

An attestation is about bytes: it is kept under the document's sha256, so that a changed document has none. That of a
tool which reads documents as one (READ_TOGETHER) names the digest of all that it was given: two that were never judged
together prove nothing together. Only a tool that ran to its end attests; one that is absent or was stopped leaves its
document unproven, which is never a pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from synapse_ops.domain.backup_record import Document, Sha256

ProofKind = Literal["tools", "rules", "packets", "tls", "chain"]
ToolVerdict = Literal["passed", "failed", "absent", "timed-out"]

# tools that prove more than form, by name; every other tool is of the kind "tools"
KIND_OF_TOOL: Mapping[str, ProofKind] = {
    "promtool-test-rules": "rules",
    "nft-packets": "packets",
    "tls-handshakes": "tls",
    "alert-chain": "chain",
}


# tools that judge several documents as one; every other tool judges each document by itself
READ_TOGETHER = frozenset({"promtool-test-rules", "nft-packets", "tls-handshakes", "checkov", "trivy", "kube-score"})


def kind_of(tool: str) -> ProofKind:
    """Return which entry of manifests.require_proofs asks for this tool."""
    return KIND_OF_TOOL.get(tool, "tools")


class Waiver(BaseModel):
    """A finding of a tool that is accepted, and the written reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    reason: str = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """What one tool found in one document. findings: empty when it passed. waived: found, and accepted."""

    tool: str
    version: str
    verdict: ToolVerdict
    findings: tuple[str, ...]
    duration_s: float
    waived: tuple[Waiver, ...] = ()


class Attestation(Document):
    """The outcome of one tool that ran to its end on one document; `path` is where the document lay in its release.

    judged_with: `judged_with` of what the tool read together; empty of one that judges each document by itself.
    """

    path: str
    judged_with: str = ""
    sha256: Sha256
    tool: str
    tool_version: str
    verdict: Literal["passed", "failed"]
    findings: tuple[str, ...] = ()
    waived: tuple[Waiver, ...] = ()
    duration_s: float = Field(ge=0)
    attested_at: AwareDatetime


@dataclass(frozen=True, slots=True)
class ToolProof:
    """The state of one tool's word on one document. reason: why it is not proven, "" when it is."""

    path: str
    sha256: str
    tool: str
    verdict: Literal["proven", "refused", "unproven"]
    reason: str
    attestation: Attestation | None

    @property
    def kind(self) -> ProofKind:
        return kind_of(self.tool)


Attestations = Mapping[tuple[str, str], Attestation]  # by (sha256 of the document, tool)


def judged_with(tool: str, documents: Iterable[tuple[str, str]]) -> str:
    """Return what an attestation of a tool names beside its own document; documents: all that it applies to.

    The sha256 (hex) of all (path, sha256) in order, empty for a tool that judges each document by itself.
    """
    if tool not in READ_TOGETHER:
        return ""
    return hashlib.sha256("".join(f"{sha256}  {path}\n" for path, sha256 in sorted(documents)).encode()).hexdigest()


def judge_proofs(
    documents: Iterable[tuple[str, str]], tools: Mapping[str, Sequence[str]], attestations: Attestations
) -> tuple[ToolProof, ...]:
    """Return the state of every proof that a bundle can have.

    documents: (path, sha256), each path once. tools: names of those that apply, by path. Result: in the documents'
    order, then the tools'. An attestation of other bytes than it is kept under, or beside others, proves nothing.
    """
    given: dict[str, list[tuple[str, str]]] = {}
    pairs = [(path, sha256, tool) for path, sha256 in documents for tool in tools.get(path, ())]
    for path, sha256, tool in pairs:
        given.setdefault(tool, []).append((path, sha256))
    together = {tool: judged_with(tool, documents) for tool, documents in given.items()}
    return tuple(
        _judge(path, sha256, tool, together[tool], attestations.get((sha256, tool))) for path, sha256, tool in pairs
    )


def _judge(path: str, sha256: str, tool: str, together: str, found: Attestation | None) -> ToolProof:
    if found is None:
        return ToolProof(path, sha256, tool, "unproven", f"{tool} has attested nothing of these bytes", None)
    if (found.sha256, found.tool) != (sha256, tool):
        reason = f"the attestation is {found.tool}'s, of {found.sha256[:12]}, not of {sha256[:12]}"
        return ToolProof(path, sha256, tool, "unproven", reason, None)
    if found.judged_with != together:
        reason = f"{tool} attested these bytes beside other documents than those of this release"
        return ToolProof(path, sha256, tool, "unproven", reason, None)
    if found.verdict == "failed":
        first = found.findings[0] if found.findings else "it named no finding"
        return ToolProof(path, sha256, tool, "refused", f"{tool} {found.tool_version}: {first}", found)
    return ToolProof(path, sha256, tool, "proven", "", found)


def obstacles(proofs: Sequence[ToolProof], required: Iterable[str]) -> tuple[str, ...]:
    """Return why a release may not be used, one line a cause; empty when it may.

    required: manifests.require_proofs. A kind that no tool gives is an obstacle too.
    """
    found: list[str] = []
    for kind in required:
        of_kind = [proof for proof in proofs if proof.kind == kind]
        if not of_kind:
            found.append(f"{kind}: no tool of this kind applies to any document")
        found += [
            f"{kind}: {proof.path} is {proof.verdict}: {proof.reason}" for proof in of_kind if proof.verdict != "proven"
        ]
    return tuple(found)


def attestation_of(
    path: str, sha256: str, judged_with: str, outcome: ToolOutcome, now: AwareDatetime
) -> Attestation | None:
    """Return what is to be recorded of an outcome; None for a tool that did not run to its end."""
    if outcome.verdict not in ("passed", "failed"):
        return None
    return Attestation(
        path=path,
        judged_with=judged_with,
        sha256=sha256,
        tool=outcome.tool,
        tool_version=outcome.version,
        verdict=outcome.verdict,
        findings=outcome.findings,
        waived=outcome.waived,
        duration_s=round(outcome.duration_s, 3),
        attested_at=now,
    )
