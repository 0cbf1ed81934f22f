"""A rendering as metadata of its asset: a preview, the difference to the last one, and the fields that caused it.

Rendered documents hold references to secrets and never secrets, so that any part of one may be shown.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from synapse_ops.defs.event_metadata import Metadata, table

if TYPE_CHECKING:
    from synapse_ops.manifests.bundle import Bundle
    from synapse_ops.operations.release.document_changes import DocumentChange
    from synapse_ops.operations.release.store import Release
    from synapse_ops.operations.stack import Stack

DIGEST = "digest"
DIGESTS = "document_digests"
INPUTS = "inputs_sha256"
CODE = "renderer_version"

PREVIEW_DOCUMENTS = 8
PREVIEW_LINES = 40
DIFF_LINES = 200  # of all documents of an asset together; the count beside it is of all lines
_FENCE = "````"  # no document holds four of them in a row


def last_rendering(instance: dg.DagsterInstance, key: dg.AssetKey) -> Mapping[str, Any]:
    """Return what the newest materialisation said of itself; empty when there is none."""
    event = instance.get_latest_materialization_event(key)
    found = event.asset_materialization if event is not None else None
    if found is None:
        return {}
    return {name: found.metadata[name].value for name in (DIGEST, DIGESTS, INPUTS, CODE) if name in found.metadata}


def stale_pages(digests: Mapping[str, str], instance: dg.DagsterInstance) -> list[str]:
    """Return the documents' assets whose newest materialisation shows other bytes, or none. digests: by asset."""
    return [
        name for name, digest in digests.items() if last_rendering(instance, dg.AssetKey(name)).get(DIGEST) != digest
    ]


def document_metadata(
    made: "Bundle", reads: frozenset[str], stack: "Stack", former: Mapping[str, Any], *, code_version: str
) -> Metadata:
    """Return what the page of a document shows, and keep its bytes and its inputs for the next difference."""
    from synapse_ops.operations.release.document_changes import document_changes, keep_bytes, kept_bytes, values_of

    changes = document_changes(made.documents, former.get(DIGESTS, {}), stack.state_dir)
    values = values_of(stack.spec, sorted(reads))
    before = kept_bytes(stack.state_dir, former[INPUTS]) if INPUTS in former else None
    because = _because(before, values, former, code_version)
    for document in made.documents:
        keep_bytes(stack.state_dir, document.data)
    what = {change.path: change for change in changes}
    rows = (
        {
            "document": path,
            "change": what[path].what,
            "lines": f"+{what[path].added} -{what[path].removed}" if what[path].lines else "",
            "size_bytes": len(document.data),
            "sha256": document.digest[:12],
        }
        for path, document in made.by_path.items()
    )
    columns = {"document": "string", "change": "string", "lines": "string", "size_bytes": "int", "sha256": "string"}
    return {
        "because": dg.MetadataValue.md(because),
        "diff": dg.MetadataValue.md(_diff(changes)),
        "preview": dg.MetadataValue.md(_preview(made)),
        "documents": table(rows, columns),
        "changed_documents": sum(change.what != "equal" for change in changes),
        "added_lines": sum(change.added for change in changes),
        "removed_lines": sum(change.removed for change in changes),
        "size_bytes": sum(len(document.data) for document in made.documents),
        "reads": ", ".join(sorted(reads)),
        DIGEST: made.digest,
        DIGESTS: dg.MetadataValue.json({path: document.digest for path, document in made.by_path.items()}),
        INPUTS: keep_bytes(stack.state_dir, values),
        CODE: code_version,
    }


def _because(before: bytes | None, values: bytes, former: Mapping[str, Any], code_version: str) -> str:
    """Return which fields of the blocks it reads changed since the last rendering, and whether the renderer did."""
    from synapse_ops.operations.release.document_changes import field_changes

    if not former:
        return "the first rendering"
    found = [f"- `{change.field}`: `{change.was}` → `{change.now}`" for change in field_changes(before, values)]
    if before is None:
        found.append("- what it was made from last is not kept on this host, so that no field can be named")
    if former.get(CODE) != code_version:
        found.append(f"- the renderer: `{former.get(CODE)}` → `{code_version}`")
    return "\n".join(found) or "none of its inputs changed: the rendering was requested"


def _diff(changes: "tuple[DocumentChange, ...]") -> str:
    """Return the difference of all documents, cut after its first lines."""
    parts, left = [], DIFF_LINES
    for change in changes:
        if change.what == "equal" or (change.what == "changed" and left <= 0):
            continue
        parts.append(f"**{change.path}**: {change.what}")
        if change.lines:
            shown = "\n".join(change.lines[:left])
            parts.append(f"{_FENCE}diff\n{shown}\n{_FENCE}")
            left -= len(change.lines)
        elif change.what == "changed":
            parts.append("its former bytes are not kept on this host")
    if left < 0:
        parts.append(f"... and {-left} lines more")
    return "\n\n".join(parts) or "equal to the last rendering"


def _preview(made: "Bundle") -> str:
    """Return the first lines of the first documents."""
    parts = []
    for document in made.documents[:PREVIEW_DOCUMENTS]:
        lines = document.text.splitlines()
        rest = f"\n... {len(lines) - PREVIEW_LINES} lines more" if len(lines) > PREVIEW_LINES else ""
        shown = "\n".join(lines[:PREVIEW_LINES])
        parts.append(f"**{document.path}**\n\n{_FENCE}{_language(document.path.suffix)}\n{shown}{rest}\n{_FENCE}")
    more = len(made.documents) - PREVIEW_DOCUMENTS
    return "\n\n".join([*parts, *([f"... and {more} documents more"] if more > 0 else [])])


def _language(suffix: str) -> str:
    return {".yaml": "yaml", ".yml": "yaml", ".json": "json", ".sh": "sh"}.get(suffix, "")


def release_metadata(release: "Release", former: Mapping[str, Any]) -> Metadata:
    """Return what the release's page shows: where it is, and what changed since the last one."""
    digests = {str(document.path): document.digest for document in release.bundle.documents}
    before: Mapping[str, str] = former.get(DIGESTS, {})
    changed = sorted(path for path in {*digests, *before} if digests.get(path) != before.get(path))
    rows = (
        {"document": str(document.path), "sha256": document.digest[:12], "reads": ", ".join(sorted(document.reads))}
        for document in release.bundle.documents
    )
    return {
        DIGEST: release.bundle.digest,
        "url": dg.MetadataValue.path(release.url),
        "directory": dg.MetadataValue.path(str(release.directory)),
        "is_new": release.is_new,
        "changed": dg.MetadataValue.md("\n".join(f"- `{path}`" for path in changed) if before else "the first release"),
        "changed_documents": len(changed),
        "document_count": len(digests),
        "size_bytes": sum(len(document.data) for document in release.bundle.documents),
        "documents": table(rows, {"document": "string", "sha256": "string", "reads": "string"}),
        DIGESTS: dg.MetadataValue.json(digests),
    }
