"""Two checks of every rendered document: what the rules find in it, and what outside tools said.

They show; the release guards itself. They can be evaluated alone; `tool_proofs` also is when a tool's word is recorded.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from synapse_ops.defs.event_metadata import table
from synapse_ops.defs.in_run import operation_of
from synapse_ops.defs.resources import StackResource

if TYPE_CHECKING:
    from synapse_ops.domain.attestation import ToolProof
    from synapse_ops.manifests.consistency import Finding
    from synapse_ops.operations.release_review import ReleaseReview

RELEASE_KEY = dg.AssetKey("manifest_release")
CONSISTENT, PROOFS = "consistent", "tool_proofs"

_TEXTS = {
    CONSISTENT: "Red while a rule finds an error in this document: a line that looks like a secret. A release is "
    "refused then. Notes are listed: two programs of a host on one port, more pools than connections.",
    PROOFS: "What outside tools attested of exactly these bytes. A warning: no word yet. Red: a tool refuses them, or "
    "manifests.require_proofs asks for a proof that is not there.",
}


def manifest_check_specs(key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """Return the two checks of a document or of the release."""
    return [dg.AssetCheckSpec(name, asset=key, description=text) for name, text in _TEXTS.items()]


def document_checks(targets: Sequence[str]) -> dg.AssetChecksDefinition:
    """Return the checks of all documents, evaluated together over one rendering. The release evaluates its own."""
    keys = [dg.AssetKey(name) for name in targets]
    specs = [spec for key in keys for spec in manifest_check_specs(key)]

    @dg.multi_asset_check(name="manifest_checks", specs=specs, can_subset=True)
    def checks(context: dg.AssetCheckExecutionContext, stack: StackResource) -> Iterator[dg.AssetCheckResult]:
        from synapse_ops.operations.release_review import review_release

        with operation_of(context.run.run_id, context.instance):
            found = review_release(stack.open())
        for key in keys:
            yield from manifest_results(key, found, context.selected_asset_check_keys)

    return checks


def manifest_results(
    key: dg.AssetKey, found: "ReleaseReview", wanted: Collection[dg.AssetCheckKey]
) -> list[dg.AssetCheckResult]:
    """Return what a review says of a document, or of the release: that is all documents. wanted: no other checks."""
    paths = found.paths_of(None if key == RELEASE_KEY else key.to_user_string())
    results = (
        _findings(key, CONSISTENT, [row for row in found.findings if row.path in paths]),
        _proofs(key, [row for row in found.proofs if row.path in paths], found.required, found.unread),
    )
    return [result for result in results if dg.AssetCheckKey(key, str(result.check_name)) in wanted]


def _findings(key: dg.AssetKey, name: str, found: "Sequence[Finding]") -> dg.AssetCheckResult:
    errors = [row for row in found if row.severity == "error"]
    rows = ({"severity": row.severity, "document": row.path, "rule": row.rule, "message": row.message} for row in found)
    columns = dict.fromkeys(("severity", "document", "rule", "message"), "string")
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=name,
        passed=not errors,
        description=f"{errors[0].path}: {errors[0].message}" if errors else f"no error, {len(found)} notes",
        metadata={"errors": len(errors), "notes": len(found) - len(errors), "findings": table(rows, columns)},
    )


def _proofs(
    key: dg.AssetKey, proofs: "Sequence[ToolProof]", required: Sequence[str], unread: str
) -> dg.AssetCheckResult:
    """unread: why the store could not be asked; then nothing has passed, whatever this host knows."""
    open_proofs = [proof for proof in proofs if proof.verdict != "proven"]
    refused = [proof for proof in open_proofs if proof.verdict == "refused"]
    lacking = [proof for proof in open_proofs if proof.kind in required and proof not in refused]
    is_red = bool(refused or lacking or (unread and required))
    unproven = len(open_proofs) - len(refused)
    counts = f"{len(proofs) - len(open_proofs)} proven, {len(refused)} refused, {unproven} unproven"
    if not proofs:
        counts = "no outside tool judges these documents"
    first, what = (refused or lacking or open_proofs)[:1], "required: " if lacking and not refused else ""
    rows = (
        {
            "document": proof.path,
            "tool": proof.tool,
            "verdict": proof.verdict,
            "reason": proof.reason,
            "waived": "; ".join(f"{row.rule}: {row.reason}" for row in proof.attestation.waived)
            if proof.attestation
            else "",
        }
        for proof in (*refused, *lacking, *(row for row in proofs if row not in refused and row not in lacking))
    )
    columns = dict.fromkeys(("document", "tool", "verdict", "reason", "waived"), "string")
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=PROOFS,
        passed=not open_proofs and not unread,
        severity=dg.AssetCheckSeverity.ERROR if is_red else dg.AssetCheckSeverity.WARN,
        description="; ".join(
            [*([unread] if unread else ()), counts, *(f"{what}{proof.path}: {proof.reason}" for proof in first)]
        ),
        metadata={
            "proven": len(proofs) - len(open_proofs),
            "refused": len(refused),
            "unproven": unproven,
            "proofs": table(rows, columns),
        },
    )
