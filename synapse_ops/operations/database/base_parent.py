"""What an incremental base backup is built on: the newest base backup of the server, where its chain may grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.backup.base_record import BaseRecord
from synapse_ops.domain.backup.catalog import DAMAGED
from synapse_ops.domain.backup.layout import KIND_BASE, BackupPlace
from synapse_ops.domain.backup.proof_record import Verdict
from synapse_ops.domain.database.base_chain import OLDEST_INCREMENTAL_MAJOR, why_full
from synapse_ops.errors import Refused, SynapseOpsError
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup.reading import BackupReader, ReadLog, read_backup_document
from synapse_ops.operations.database.cluster_copy import objects_of
from synapse_ops.systems.postgres.base_backup import MANIFEST

if TYPE_CHECKING:
    from synapse_ops.domain.backup.layout import Identity
    from synapse_ops.operations.repository import Repository
    from synapse_ops.operations.stack import Stack
    from synapse_ops.systems.postgres.identity import ServerFacts


@dataclass(frozen=True)
class Parent:
    """A base backup to build on. chain: it and what it rests on, the full one first. manifest: `backup_manifest`."""

    place: BackupPlace
    chain: tuple[BaseRecord, ...]
    manifest: bytes

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(one.backup_id for one in self.chain)


def read_chain(repository: Repository, place: BackupPlace, record: BaseRecord) -> tuple[BaseRecord, ...]:
    """Return a base backup and what it rests on, the full one first. Raises what `read_backup_document` raises."""
    rests_on = (replace(place, backup_id=one) for one in record.rests_on)
    return (*(read_backup_document(repository, one, ReadLog(), BaseRecord) for one in rests_on), record)


def readers_of(
    repository: Repository, place: BackupPlace, chain: Sequence[BaseRecord], **limits: Any
) -> list[tuple[BackupReader, BaseRecord]]:
    """Return a reader of each base backup, with its record. limits: as `BackupReader` takes them."""
    return [
        (BackupReader(repository, replace(place, backup_id=one.backup_id), one, objects_of(one), **limits), one)
        for one in chain
    ]


def choose_parent(
    stack: Stack, repository: Repository, identity: Identity, facts: ServerFacts, now: datetime
) -> tuple[Parent | None, str]:
    """Return what the next base backup is built on, None for a full one, and what is to be said of that.

    Raises Refused for a server that knows no incremental backups.
    """
    full_every = stack.spec.backup.database.base.full_every
    if full_every is None:
        return None, ""
    if facts.major < OLDEST_INCREMENTAL_MAJOR:
        raise Refused(
            f"incremental base backups need PostgreSQL {OLDEST_INCREMENTAL_MAJOR}, and this server is {facts.version}",
            hint="Set backup.database.base.full_every to null.",
        )
    entries = read_catalog(repository).only(KIND_BASE).backups
    newest = next((entry for entry in entries if entry.place.identity == identity), None)
    if newest is None or newest.last_verdict in {Verdict.DIFFERS, Verdict.UNPROVEN} or newest.doubt.startswith(DAMAGED):
        return None, ""
    place = newest.place
    try:
        record = read_backup_document(repository, place, ReadLog(), BaseRecord)
        chain = read_chain(repository, place, record)
        if why_full(chain, full_every, facts.timeline, now):
            return None, ""
        reader = BackupReader(repository, place, record, objects_of(record), identities=stack.age_identities())
        return Parent(place, chain, reader.read_document(MANIFEST, record.fingerprint_digest)), ""
    except SynapseOpsError as error:
        return None, f"a full one, for the manifest of {place.backup_id} could not be read: {error.message}"
