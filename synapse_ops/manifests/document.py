"""One rendered document: where it lies in a release, its bytes, and which blocks of the spec it was made from.

Documents hold references to secrets, never secrets: no renderer resolves one. A document is a function of the spec
alone: no clock, host name, locale, environment or order of hashing enters it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import PurePosixPath

YAML = "application/yaml"
JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Document:
    """path: relative, below the release. reads: names of the spec's top-level fields that the bytes depend on."""

    path: PurePosixPath
    data: bytes
    media_type: str
    reads: frozenset[str]

    @property
    def digest(self) -> str:
        """The sha256 of the bytes, in hex."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def text(self) -> str:
        return self.data.decode("utf-8")


def text_document(path: str, text: str, reads: frozenset[str], *, media_type: str = TEXT) -> Document:
    """Return a document of lines; a missing last newline is added."""
    return Document(PurePosixPath(path), (text.rstrip("\n") + "\n").encode("utf-8"), media_type, reads)


def yaml_document(path: str, *values: object, reads: frozenset[str], about: str = "") -> Document:
    """Return a YAML document of one or more values; `about` is a comment of one or more lines at its head."""
    from synapse_ops.manifests.yaml_text import write_yaml

    head = "".join(f"# {line}\n" for line in about.splitlines())
    return text_document(path, head + "---\n".join(write_yaml(value) for value in values), reads, media_type=YAML)


def json_document(path: str, value: object, reads: frozenset[str]) -> Document:
    """Return a JSON document, indented, keys in the order given."""
    return text_document(path, json.dumps(value, indent=2, ensure_ascii=False), reads, media_type=JSON)
