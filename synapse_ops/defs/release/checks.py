"""The check of every rendered document: what the rules find in it.

It shows; the release guards itself. It can be evaluated alone.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from synapse_ops.defs.event_metadata import table
from synapse_ops.defs.in_run import operation_of
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.runbook_links import runbook_of_check

if TYPE_CHECKING:
    from synapse_ops.operations.release.render import Judged

RELEASE_KEY = dg.AssetKey("manifest_release")
CONSISTENT = "consistent"
_TEXT = (
    "Red while a rule finds an error in this document: a line that looks like a secret. A release is refused then. "
    "Notes are listed: two programs of a host on one port, more pools than connections."
)


def manifest_check(key: dg.AssetKey) -> dg.AssetCheckSpec:
    """Return the check of a document or of the release."""
    return dg.AssetCheckSpec(CONSISTENT, asset=key, description=_TEXT, metadata=runbook_of_check(CONSISTENT))


def document_checks(targets: Sequence[str]) -> dg.AssetChecksDefinition:
    """Return the checks of all documents, evaluated together over one rendering. The release evaluates its own."""
    keys = [dg.AssetKey(name) for name in targets]

    @dg.multi_asset_check(name="manifest_checks", specs=[manifest_check(key) for key in keys], can_subset=True)
    def checks(context: dg.AssetCheckExecutionContext, stack: StackResource) -> Iterator[dg.AssetCheckResult]:
        from synapse_ops.operations.release.render import judge

        with operation_of(context.run.run_id, context.instance):
            judged = judge(stack.open().spec)
        for key in keys:
            if dg.AssetCheckKey(key, CONSISTENT) in context.selected_asset_check_keys:
                yield manifest_result(key, judged)

    return checks


def manifest_result(key: dg.AssetKey, judged: "Judged") -> dg.AssetCheckResult:
    """Return what was found in a document, or in all of them: that is the release's."""
    found = judged.findings
    if key != RELEASE_KEY:
        found = tuple(row for row in found if row.path in judged.by_target[key.to_user_string()].by_path)
    errors = [row for row in found if row.severity == "error"]
    rows = ({"severity": row.severity, "document": row.path, "rule": row.rule, "message": row.message} for row in found)
    columns = dict.fromkeys(("severity", "document", "rule", "message"), "string")
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=CONSISTENT,
        passed=not errors,
        description=f"{errors[0].path}: {errors[0].message}" if errors else f"It breaks no rule; {len(found)} notes.",
        metadata={
            "errors": len(errors),
            "notes": len(found) - len(errors),
            "findings": table(rows, columns),
            **runbook_of_check(CONSISTENT),
        },
    )
