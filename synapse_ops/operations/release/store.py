"""A release: the documents of one spec under one digest, in the object store and on this host.

`release.json` comes last, so that a release is there whole or not at all. No file in it is rewritten.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_ops.errors import IntegrityError
from synapse_ops.manifests.bundle import Bundle
from synapse_ops.operations.release.render import write_directory
from synapse_ops.spec import LoadedSpec

if TYPE_CHECKING:
    from synapse_ops.operations.stack import Stack
    from synapse_ops.systems.s3.store import ObjectStore

RELEASE = "release.json"
FOLDER = "releases"
FORMAT = 1


@dataclass(frozen=True)
class Release:
    """A release that is kept. is_new: whether the store did not have it."""

    bundle: Bundle
    url: str
    directory: Path
    is_new: bool


def make_release(stack: Stack, bundle: Bundle) -> Release:
    """Keep a bundle as a release, in the store and in the state directory. Safe to repeat and to cut anywhere.

    Raises IntegrityError when the store holds other bytes under one of its names.
    """
    store = stack.release_store()
    is_new = store_release(bundle, stack.loaded, store)
    directory = stack.state_dir / FOLDER / bundle.digest
    write_directory(bundle, directory)
    making = directory.with_name(f"{bundle.digest}.{os.getpid()}.tmp")
    making.write_bytes(_written(release_record(bundle, stack.loaded)))
    making.replace(directory.with_name(f"{bundle.digest}.json"))
    return Release(bundle, store.full_url(f"{bundle.digest}/{RELEASE}"), directory, is_new)


def release_record(bundle: Bundle, loaded: LoadedSpec) -> dict[str, Any]:
    """Return what `release.json` says: each document by digest, and the blocks it reads."""
    documents = [
        {
            "path": str(document.path),
            "sha256": document.digest,
            "size_bytes": len(document.data),
            "media_type": document.media_type,
            "reads": sorted(document.reads),
        }
        for document in bundle.documents
    ]
    return {
        "format": FORMAT,
        "digest": bundle.digest,
        "name": loaded.spec.name,
        "spec_digest": loaded.digest,
        "documents": documents,
    }


def store_release(bundle: Bundle, loaded: LoadedSpec, store: ObjectStore) -> bool:
    """Write a release below its digest; returns False when it is there as it is. Safe to repeat and to cut anywhere.

    Raises IntegrityError when the store holds other bytes under one of its names.
    """
    prefix = f"{bundle.digest}/"
    if store.head(f"{prefix}{RELEASE}") is not None:
        return False
    for document in bundle.documents:
        store.put_bytes(f"{prefix}{document.path}", document.data)
    for document in bundle.documents:
        if hashlib.sha256(store.read_bytes(f"{prefix}{document.path}")).hexdigest() != document.digest:
            raise IntegrityError(f'"{store.full_url(prefix + str(document.path))}" does not hold what was written')
    store.put_bytes(f"{prefix}{RELEASE}", _written(release_record(bundle, loaded)))
    return True


def _written(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode("utf-8")
