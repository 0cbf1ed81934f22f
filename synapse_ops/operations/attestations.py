"""Attestations of outside tools: kept by the document's digest, in the state directory and beside the releases.

A tool's newest word on the same bytes counts. Reading never guesses: one that is torn is an error, one that is not
there is absent. Nothing is removed here: an attestation names bytes, and those do not change.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from synapse_ops.domain.attestation import Attestation, Attestations

if TYPE_CHECKING:
    from synapse_ops.systems.object_store import ObjectStore

FOLDER = "attestations"
NEWEST = f"{FOLDER}/newest.json"  # who waits for a proof asks for this one object, and not for each of its documents
_READERS = 8  # one listing a document; a store answers each in some ten milliseconds


def keep_attestations(found: Sequence[Attestation], store: ObjectStore | None, state_dir: Path) -> None:
    """Write each attestation to both places, over an older one of the same tool and bytes, then NEWEST, which names
    them all. Safe to repeat.
    """
    if not found:
        return
    written = [(_key(attestation.sha256, attestation.tool), attestation.to_json()) for attestation in found]
    names = sorted(f"{attestation.digest()} {key}" for attestation, (key, _) in zip(found, written, strict=True))
    written.append((NEWEST, (json.dumps(names, indent=1) + "\n").encode()))
    for key, data in written:
        path = state_dir / key
        path.parent.mkdir(parents=True, exist_ok=True)
        making = path.with_suffix(f".{os.getpid()}.tmp")
        making.write_bytes(data)
        making.replace(path)
    if store is not None:
        for key, data in written:
            store.put_bytes(key, data)


def newest_recording(store: ObjectStore, state_dir: Path) -> str:
    """Return a text that is another one after each recording in either place, "" while nothing was recorded.

    Raises Unreachable when the store does not answer.
    """
    path, kept = state_dir / NEWEST, store.read_with_etag(NEWEST)
    words = [path.read_bytes() if path.exists() else b"", kept[0] if kept else b""]
    return hashlib.sha256(b"\0".join(words)).hexdigest()[:32] if any(words) else ""


def read_attestations(digests: Iterable[str], store: ObjectStore | None, state_dir: Path) -> Attestations:
    """Return what is recorded of exactly these digests, the newest of both places.

    Raises DocumentUnreadable for one that is torn, Unreachable when the store does not answer.
    """
    found: dict[tuple[str, str], Attestation] = {}
    wanted = sorted(set(digests))
    kept = [pair for digest in wanted for pair in _in_state(state_dir, digest)]
    if store is not None:
        reading = store
        with ThreadPoolExecutor(_READERS, thread_name_prefix="attestations") as pool:
            for pairs in pool.map(lambda digest: _in_store(reading, digest), wanted):
                kept += pairs
    for place, attestation in kept:
        former = found.get(place)
        if former is None or former.attested_at < attestation.attested_at:
            found[place] = attestation
    return found


def _key(sha256: str, tool: str) -> str:
    return f"{FOLDER}/{sha256}/{tool}.json"


def _in_state(state_dir: Path, digest: str) -> list[tuple[tuple[str, str], Attestation]]:
    files = sorted((state_dir / FOLDER / digest).glob("*.json"))
    return [((digest, file.stem), Attestation.from_json(file.read_bytes(), key=str(file))) for file in files]


def _in_store(store: ObjectStore, digest: str) -> list[tuple[tuple[str, str], Attestation]]:
    prefix = f"{FOLDER}/{digest}/"
    names = sorted(found.key for found in store.list_objects(prefix))
    return [
        (
            (digest, name.removeprefix(prefix).removesuffix(".json")),
            Attestation.from_json(store.read_bytes(name), key=store.full_url(name)),
        )
        for name in names
    ]
