"""What outside tools found in rendered documents, and what that means for a release.

An attestation is about bytes: it is kept under the document's sha256, so that a changed document has none. That of a
tool which opens other documents as well names the digest of those: beside others it proves nothing. Only a tool that
ran to its end attests; one that is absent or was stopped leaves its document unproven, which is never a pass.
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

    judged_with: `digest_of` all that the tool opens whichever document it judges; empty of one that opens only that.
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


def digest_of(documents: Iterable[tuple[str, str]]) -> str:
    """Return the sha256 (hex) of documents, given as (path, sha256) in any order; "" of none."""
    lines = "".join(f"{sha256}  {path}\n" for path, sha256 in sorted(documents))
    return hashlib.sha256(lines.encode()).hexdigest() if lines else ""


def judge_proofs(
    documents: Iterable[tuple[str, str]],
    tools: Mapping[str, Sequence[str]],
    attestations: Attestations,
    judged_with: Mapping[str, str],
) -> tuple[ToolProof, ...]:
    """Return the state of every proof that a bundle can have.

    documents: (path, sha256), each path once. tools: names of those that apply, by path. judged_with: by tool, the
    `digest_of` what it opens of this bundle; a tool that opens only what it judges may lack. Result: in the documents'
    order, then the tools'. An attestation of other bytes than it is kept under, or beside others, proves nothing.
    """
    return tuple(
        _judge(path, sha256, tool, judged_with.get(tool, ""), attestations.get((sha256, tool)))
        for path, sha256 in documents
        for tool in tools.get(path, ())
    )


def _judge(path: str, sha256: str, tool: str, judged_with: str, found: Attestation | None) -> ToolProof:
    if found is None:
        return ToolProof(path, sha256, tool, "unproven", f"{tool} has attested nothing of these bytes", None)
    if (found.sha256, found.tool) != (sha256, tool):
        reason = f"the attestation is {found.tool}'s, of {found.sha256[:12]}, not of {sha256[:12]}"
        return ToolProof(path, sha256, tool, "unproven", reason, None)
    if found.judged_with != judged_with:
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
