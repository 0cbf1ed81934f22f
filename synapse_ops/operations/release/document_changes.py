"""What changed in a rendered document since it was rendered last, and which field of the spec made it change.

The bytes of each rendering, and the values that it was made from, are kept in the state directory by their digest. They
are a convenience: where they are gone, a change is still reported, only without its lines.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from synapse_ops.manifests.document import Document
from synapse_ops.spec import Spec

FOLDER = "documents"
_CONTEXT_LINES = 2
_SHOWN_VALUE = 120


@dataclass(frozen=True, slots=True)
class DocumentChange:
    """lines: a unified diff, without its head; empty when equal, or when the former bytes are not kept here."""

    path: str
    what: Literal["equal", "new", "changed", "gone"]
    lines: tuple[str, ...] = ()

    @property
    def added(self) -> int:
        return sum(line.startswith("+") for line in self.lines)

    @property
    def removed(self) -> int:
        return sum(line.startswith("-") for line in self.lines)


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A field of the spec with its former and its present value, as JSON; "nothing" where it was not there."""

    field: str
    was: str
    now: str


def keep_bytes(state_dir: Path, data: bytes) -> str:
    """Keep bytes by their sha256, and return that. Safe to repeat."""
    digest = hashlib.sha256(data).hexdigest()
    path = state_dir / FOLDER / digest
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        making = path.with_name(f"{digest}.{os.getpid()}.tmp")
        making.write_bytes(data)
        making.replace(path)
    return digest


def kept_bytes(state_dir: Path, digest: str) -> bytes | None:
    """Return what was kept under a digest; None when it is gone or is not what it should be."""
    try:
        data = (state_dir / FOLDER / digest).read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == digest else None


def values_of(spec: Spec, blocks: Sequence[str]) -> bytes:
    """Return the effective values of some top-level fields, as canonical JSON. Secrets are references and stay so."""
    return json.dumps(spec.model_dump(mode="json", include=set(blocks)), sort_keys=True).encode()


def document_changes(
    documents: Sequence[Document], former: Mapping[str, str], state_dir: Path
) -> tuple[DocumentChange, ...]:
    """Return one entry a document, then those that are gone. former: path -> sha256 of the last rendering."""
    found = [_change_of(document, former.get(str(document.path)), state_dir) for document in documents]
    paths = {str(document.path) for document in documents}
    return (*found, *(DocumentChange(path, "gone") for path in sorted(former) if path not in paths))


def _change_of(document: Document, former: str | None, state_dir: Path) -> DocumentChange:
    path = str(document.path)
    if former is None:
        return DocumentChange(path, "new")
    if former == document.digest:
        return DocumentChange(path, "equal")
    before = kept_bytes(state_dir, former)
    if before is None:
        return DocumentChange(path, "changed")
    lines = difflib.unified_diff(
        before.decode("utf-8", errors="replace").splitlines(),
        document.text.splitlines(),
        n=_CONTEXT_LINES,
        lineterm="",
    )
    return DocumentChange(path, "changed", tuple(lines)[2:])  # without the two lines that name the files


def field_changes(before: bytes | None, after: bytes) -> tuple[FieldChange, ...]:
    """Return the fields that differ between two `values_of`, sorted; nothing when the former are not kept."""
    if before is None:
        return ()
    was, now = dict(_leaves(json.loads(before))), dict(_leaves(json.loads(after)))
    return tuple(
        FieldChange(field, _shown(was.get(field, "nothing")), _shown(now.get(field, "nothing")))
        for field in sorted({*was, *now})
        if was.get(field) != now.get(field)
    )


def _leaves(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted field, JSON of its value); a list is one value, because its places mean nothing by themselves."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{field}.{key}" if field else key)
        return
    yield field, json.dumps(value, ensure_ascii=False)


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN_VALUE else f"{text[:_SHOWN_VALUE]}... ({len(text)} characters)"
