"""A spec as loaded: its values, where each came from, what has no effect, and digests that change only with meaning."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from synapse_ops.spec.document import Spec


@dataclass(frozen=True)
class LoadedSpec:
    """A valid spec. Plain and picklable.

    digest: sha256 of the effective values, defaults included; comments, order and spelling (60s, 1m) do not change it.
    block_digests: the same for each top-level key, so that a change of `tls` is a change of `tls` only.
    origins: field path -> `file:line` for what was written; what is not in it has its default.
    ignored: field path -> why the value has no effect.
    notes: what is valid and yet worth knowing, such as backups without encryption.
    """

    spec: Spec
    path: Path
    digest: str
    block_digests: Mapping[str, str]
    origins: Mapping[str, str]
    ignored: Mapping[str, str]
    notes: tuple[str, ...] = ()


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def digests_of(spec: Spec) -> tuple[str, dict[str, str]]:
    """Return the digest of the whole spec, and one for each top-level key. References count, secrets are never read."""
    document = spec.model_dump(mode="json")
    blocks = {block: _digest(value) for block, value in document.items()}
    return _digest(blocks), blocks
