"""A release: the documents of one spec under one digest, in the object store and on this host.

It refuses by itself. The proofs that manifests.require_proofs asks for are read for exactly the digests of its
documents; one that is absent, failed or of other bytes stops it before anything is written. `release.json` comes last,
so that a release is there whole or not at all; only its list of proofs may grow later.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.attestation import ToolProof, obstacles
from synapse_ops.errors import IntegrityError, Refused
from synapse_ops.manifests.bundle import Bundle
from synapse_ops.operations.prove_release import known_tools, recorded_proofs
from synapse_ops.operations.render import write_directory
from synapse_ops.spec import LoadedSpec
from synapse_ops.systems.conditional_write import write_over

if TYPE_CHECKING:
    from synapse_ops.operations.stack import Stack
    from synapse_ops.systems.object_store import ObjectStore

RELEASE = "release.json"
FOLDER = "releases"
FORMAT = 1
_SHOWN = 20


@dataclass(frozen=True)
class Release:
    """A release that is kept. is_new: whether the store did not have it, or had it with other proofs."""

    bundle: Bundle
    proofs: tuple[ToolProof, ...]
    url: str
    directory: Path
    is_new: bool


def make_release(stack: Stack, bundle: Bundle) -> Release:
    """Keep a bundle as a release, in the store and in the state directory. Safe to repeat and to cut anywhere.

    Raises Refused when a required proof does not hold of exactly these bytes, IntegrityError when the store holds
    other bytes under one of its names.
    """
    store = stack.release_store()
    proofs = recorded_proofs(bundle, known_tools(), store, stack.state_dir)
    refuse_unproven(bundle, proofs, stack.spec.manifests.require_proofs)
    is_new = store_release(bundle, stack.loaded, store, proofs)
    directory = stack.state_dir / FOLDER / bundle.digest
    write_directory(bundle, directory)
    making = directory.with_name(f"{bundle.digest}.{os.getpid()}.tmp")
    making.write_bytes(_written(release_record(bundle, stack.loaded, proofs)))
    making.replace(directory.with_name(f"{bundle.digest}.json"))
    return Release(bundle, proofs, store.full_url(f"{bundle.digest}/{RELEASE}"), directory, is_new)


def refuse_unproven(bundle: Bundle, proofs: Sequence[ToolProof], required: Sequence[str]) -> None:
    """Raise Refused when one of the required proofs does not hold of exactly these bytes."""
    found = obstacles(proofs, required)
    if found:
        rest = len(found) - _SHOWN
        raise Refused(
            f"cannot release {bundle.digest[:12]}: {len(found)} proofs that manifests.require_proofs names do not hold",
            detail="\n".join([*found[:_SHOWN], *([f"and {rest} more"] if rest > 0 else [])]),
            hint="`synapse-ops prove-release` runs the tools on these documents and records what they find.",
        )


def release_record(bundle: Bundle, loaded: LoadedSpec, proofs: Sequence[ToolProof] = ()) -> dict[str, Any]:
    """Return what `release.json` says: each document by digest, the blocks it reads, and the tools' word on it."""
    by_path: dict[str, list[dict[str, Any]]] = {}
    for proof in proofs:
        if proof.attestation is not None:
            by_path.setdefault(proof.path, []).append(_proof_record(proof))
    documents = [
        {
            "path": str(document.path),
            "sha256": document.digest,
            "size_bytes": len(document.data),
            "media_type": document.media_type,
            "reads": sorted(document.reads),
            "proofs": by_path.get(str(document.path), []),
        }
        for document in bundle.documents
    ]
    return {
        "format": FORMAT,
        "digest": bundle.digest,
        "name": loaded.spec.name,
        "spec_digest": loaded.digest,
        "required_proofs": list(loaded.spec.manifests.require_proofs),
        "documents": documents,
    }


def _proof_record(proof: ToolProof) -> dict[str, Any]:
    assert proof.attestation is not None
    found = proof.attestation
    return {
        "tool": found.tool,
        "version": found.tool_version,
        "verdict": proof.verdict,
        "attested_at": found.attested_at.isoformat(),
        "attestation_sha256": found.digest(),
        "waived": [waiver.rule for waiver in found.waived],
    }


def store_release(bundle: Bundle, loaded: LoadedSpec, store: ObjectStore, proofs: Sequence[ToolProof] = ()) -> bool:
    """Write a release below its digest; returns False when it is there as it is. Safe to repeat and to cut anywhere.

    Raises IntegrityError when the store holds other bytes under one of its names.
    """
    prefix = f"{bundle.digest}/"
    record = release_record(bundle, loaded, proofs)
    kept = store.read_with_etag(f"{prefix}{RELEASE}")
    if kept is not None:
        former = json.loads(kept[0])
        if _proofs_of(former) != _proofs_of(record):
            write_over(store, f"{prefix}{RELEASE}", _written(record), etag=kept[1])
            return True
        return False
    for document in bundle.documents:
        store.put_bytes(f"{prefix}{document.path}", document.data)
    for document in bundle.documents:
        if hashlib.sha256(store.read_bytes(f"{prefix}{document.path}")).hexdigest() != document.digest:
            raise IntegrityError(f'"{store.full_url(prefix + str(document.path))}" does not hold what was written')
    store.put_bytes(f"{prefix}{RELEASE}", _written(record))
    return True


def _proofs_of(record: dict[str, Any]) -> Any:
    return [(document["path"], document.get("proofs", [])) for document in record["documents"]]


def _written(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode("utf-8")
