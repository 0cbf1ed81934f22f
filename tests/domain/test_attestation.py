"""What tools said of documents, and what a release may be used with."""

from datetime import UTC, datetime

import pytest

from synapse_ops.domain.attestation import (
    Attestation,
    Attestations,
    ToolOutcome,
    ToolProof,
    Waiver,
    attestation_of,
    digest_of,
    judge_proofs,
    obstacles,
)
from synapse_ops.errors import DocumentUnreadable

NOW = datetime(2026, 11, 24, 4, 0, tzinfo=UTC)
ONE, TWO = "1" * 64, "2" * 64


def attested(sha256: str = ONE, *, tool: str = "hadolint", verdict: str = "passed", finding: str = "") -> Attestation:
    outcome = ToolOutcome(tool, "1.0", verdict, (finding,) if finding else (), 0.5)  # type: ignore[arg-type]
    found = attestation_of("docker/Dockerfile", sha256, "", outcome, NOW)
    assert found is not None
    return found


def judged(*found: Attestation, tools: tuple[str, ...] = ("hadolint",), sha256: str = ONE) -> tuple[ToolProof, ...]:
    kept: Attestations = {(each.sha256, each.tool): each for each in found}
    return judge_proofs([("docker/Dockerfile", sha256)], {"docker/Dockerfile": tools}, kept, {})


def test_document_is_proven_by_an_attestation_of_its_own_bytes_only() -> None:
    """A changed document has no proof: the attestation of its former bytes says nothing of it."""
    [same], [changed] = judged(attested(ONE)), judged(attested(ONE), sha256=TWO)

    assert (same.verdict, same.reason) == ("proven", "")
    assert changed.verdict == "unproven"


def test_attestation_kept_under_another_digest_proves_nothing() -> None:
    """An object that was copied to another document's name is of other bytes, and says so."""
    [proof] = judge_proofs([("a", TWO)], {"a": ("hadolint",)}, {(TWO, "hadolint"): attested(ONE)}, {})

    assert proof.verdict == "unproven"
    assert "111111111111" in proof.reason


def test_two_documents_that_were_never_judged_together_prove_nothing_together() -> None:
    """A tool read A beside B, then A' beside B': of A beside B' it said nothing, though it knows the bytes of both."""
    tools = {"a": ("checkov",), "b": ("checkov",)}
    old, new = [("a", "1" * 64), ("b", "2" * 64)], [("a", "3" * 64), ("b", "4" * 64)]
    kept: dict[tuple[str, str], Attestation] = {}
    for release in (old, new):
        for path, sha256 in release:
            outcome = ToolOutcome("checkov", "1.0", "passed", (), 0.5)
            found = attestation_of(path, sha256, digest_of(release), outcome, NOW)
            assert found is not None
            kept[sha256, "checkov"] = found

    whole = judge_proofs(new, tools, kept, {"checkov": digest_of(new)})
    assert [proof.verdict for proof in whole] == ["proven", "proven"]
    mixed = [old[0], new[1]]
    apart = judge_proofs(mixed, tools, kept, {"checkov": digest_of(mixed)})
    assert [proof.verdict for proof in apart] == ["unproven", "unproven"]
    assert "beside other documents" in apart[0].reason


def test_failed_tool_refuses_and_names_its_first_finding() -> None:
    """A refusal repeats what the tool said, with the tool's version."""
    [proof] = judged(attested(verdict="failed", finding="DL3007 line 1"))

    assert proof.verdict == "refused"
    assert proof.reason == "hadolint 1.0: DL3007 line 1"


@pytest.mark.parametrize("verdict", ["absent", "timed-out"])
def test_tool_that_did_not_run_to_its_end_attests_nothing(verdict: str) -> None:
    """An absent tool and a stopped one leave the document unproven, never passed, and never undo a refusal."""
    outcome = ToolOutcome("hadolint", "", verdict, (), 0.0)  # type: ignore[arg-type]

    assert attestation_of("docker/Dockerfile", ONE, "", outcome, NOW) is None


def test_every_document_and_tool_is_judged_even_without_any_attestation() -> None:
    """Nothing recorded is unproven for each tool that applies, and for no other."""
    proofs = judge_proofs([("a", ONE), ("b", TWO)], {"a": ("x", "y")}, {}, {})

    assert [(proof.path, proof.tool, proof.verdict) for proof in proofs] == [
        ("a", "x", "unproven"),
        ("a", "y", "unproven"),
    ]


def test_release_without_required_proofs_is_stopped_by_nothing() -> None:
    """manifests.require_proofs is empty by default: a production host has no tools."""
    assert obstacles(judged(attested(verdict="failed", finding="x")), ()) == ()


@pytest.mark.parametrize("found", [(), (attested(verdict="failed", finding="x"),), (attested(TWO),)])
def test_required_proof_that_is_absent_failed_or_of_other_bytes_stops_the_release(
    found: tuple[Attestation, ...],
) -> None:
    """Each of the three is named with its document."""
    [obstacle] = obstacles(judged(*found), ("tools",))

    assert obstacle.startswith("tools: docker/Dockerfile is ")


def test_required_kind_that_no_tool_gives_stops_the_release() -> None:
    """Without any packet proof, `packets` is not fulfilled by silence."""
    [obstacle] = obstacles(judged(attested()), ("packets",))

    assert "no tool" in obstacle


def test_only_the_required_kinds_stop_the_release() -> None:
    """A form proof that is missing does not stop a release that asks for packets."""
    found = judged(attested(tool="nft-packets"), tools=("hadolint", "nft-packets"))

    assert obstacles(found, ("packets",)) == ()
    assert len(obstacles(found, ("tools", "packets"))) == 1


def test_attestation_survives_its_json_form_with_waivers() -> None:
    """What is stored is what was found, the accepted findings and their reasons included."""
    outcome = ToolOutcome("trivy", "1", "passed", (), 1.25, (Waiver(rule="KSV-0125", reason="own registry"),))
    found = attestation_of("kubernetes/api.yaml", ONE, "", outcome, NOW)
    assert found is not None

    assert Attestation.from_json(found.to_json(), key="x") == found


def test_torn_attestation_is_an_error_not_an_absence() -> None:
    """A document that cannot be read is damage: it is never taken for a proof, nor for none."""
    with pytest.raises(DocumentUnreadable):
        Attestation.from_json(attested().to_json()[:40], key="x")
