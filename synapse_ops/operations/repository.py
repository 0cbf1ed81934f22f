"""A repository as operations see it: the store, and where this host may keep a cache. Needs no spec and no Dagster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from synapse_ops.systems.certificates import refuse_unless_authorities
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess


@dataclass(frozen=True)
class Repository:
    """One S3 prefix that holds backups.

    cache_dir: parsed documents by ETag; may be thrown away at any time; None = no cache.
    state_dir: this host's own files (locks where the store has no conditional writes); None = none are kept.
    """

    store: ObjectStore
    cache_dir: Path | None = None
    state_dir: Path | None = None

    @property
    def url(self) -> str:
        return self.store.url


def open_repository(url: str, access: StoreAccess, *, state_dir: Path | None = None) -> Repository:
    """Return the repository at `s3://bucket/prefix/`; contacts nothing yet.

    Raises ConfigError for another URL form, and for invalid certificates.
    """
    if access.ca_file is not None and (access.endpoint or "https:").startswith("https:"):
        refuse_unless_authorities(access.ca_file)
    cache_dir = state_dir / "cache" if state_dir is not None else None
    return Repository(ObjectStore(url, access), cache_dir=cache_dir, state_dir=state_dir)
