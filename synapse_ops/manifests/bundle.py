"""All documents of one spec, and the digest that names them as a release.

The digest is over paths and contents only: two specs that mean the same documents are the same release.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from synapse_ops.errors import SynapseOpsError
from synapse_ops.manifests.document import Document
from synapse_ops.manifests.targets import TARGETS
from synapse_ops.spec import Spec


@dataclass(frozen=True)
class Bundle:
    """documents: in ascending order of path, each path once."""

    documents: tuple[Document, ...]

    @cached_property
    def digest(self) -> str:
        """The sha256 over `<digest>  <path>` of each document, one a line, as `sha256sum` prints it."""
        return hashlib.sha256(self.index().encode("utf-8")).hexdigest()

    def index(self) -> str:
        """Return one line a document, that `sha256sum --check` reads."""
        return "".join(f"{document.digest}  {document.path}\n" for document in self.documents)

    @cached_property
    def by_path(self) -> Mapping[str, Document]:
        return {str(document.path): document for document in self.documents}


def bundle_of(documents: tuple[Document, ...]) -> Bundle:
    """Return the bundle. Raises SynapseOpsError when two targets claim one path."""
    ordered = tuple(sorted(documents, key=lambda document: str(document.path)))
    paths = [str(document.path) for document in ordered]
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise SynapseOpsError(f"two targets render {', '.join(twice)}")
    return Bundle(ordered)


def render_bundle(spec: Spec) -> Bundle:
    """Return every document of the spec."""
    return bundle_of(tuple(document for target in TARGETS for document in target.render(spec)))
