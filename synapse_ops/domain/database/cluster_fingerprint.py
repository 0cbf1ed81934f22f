"""The content of every database of a cluster at one WAL position: what a copy recovered to it must equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from synapse_ops.domain.canonical_json import canonical_json, reading
from synapse_ops.domain.database import fingerprint as fingerprints
from synapse_ops.domain.database.fingerprint import Fingerprint
from synapse_ops.domain.database.lsn import Lsn

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class ClusterFingerprint:
    """lsn: the end of the last record that is in it. databases: by name, each that takes connections."""

    lsn: Lsn
    databases: Mapping[str, Fingerprint]

    @property
    def table_count(self) -> int:
        return sum(len(one.tables) for one in self.databases.values())

    @property
    def row_count(self) -> int:
        return sum(one.row_count for one in self.databases.values())

    def to_json(self) -> bytes:
        """Return the canonical bytes: sorted keys, UTF-8, one final newline."""
        databases = {name: json.loads(one.to_json()) for name, one in self.databases.items()}
        return canonical_json(FORMAT_VERSION, {"lsn": str(self.lsn), "databases": databases})

    def digest(self) -> str:
        """Return the sha256 (hex) of the canonical bytes."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def from_json(cls, data: bytes) -> ClusterFingerprint:
        """Return what `to_json` wrote; raises DocumentUnreadable for anything else."""
        with reading(data, "a fingerprint of a cluster", FORMAT_VERSION) as body:
            databases = {name: json.dumps(one).encode() for name, one in body["databases"].items()}
            return cls(Lsn.parse(body["lsn"]), {name: Fingerprint.from_json(one) for name, one in databases.items()})


def compare(expected: ClusterFingerprint, actual: Mapping[str, Fingerprint]) -> tuple[str, ...]:
    """Return every named difference, in a stable order; empty means equal. actual: of the copy's databases."""
    found: list[str] = []
    for name in sorted(expected.databases.keys() | actual.keys()):
        if name not in actual:
            found.append(f"database {name}: missing")
        elif name not in expected.databases:
            found.append(f"database {name}: not on the standby")
        else:
            found += [f"{name}: {words}" for words in fingerprints.compare(expected.databases[name], actual[name])]
    return tuple(found)
