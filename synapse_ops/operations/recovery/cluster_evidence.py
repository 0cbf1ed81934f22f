"""How far the WAL carries a base backup: every moment from its end to the last byte that is stored without a gap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from synapse_ops.domain.backup.ages import data_time, wal_promise
from synapse_ops.domain.backup.base_record import BaseRecord
from synapse_ops.domain.backup.retention import counts_as_proven
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal_chain import WalArchive, reach
from synapse_ops.domain.database.wal_space import say_time_left
from synapse_ops.domain.recovery.recoverability import Evidence
from synapse_ops.domain.recovery.restorable_spans import restorable_spans
from synapse_ops.errors import ObjectMissing, SynapseOpsError
from synapse_ops.operations.backup.catalog import read_record
from synapse_ops.operations.database.wal_archive import read_wal_archive
from synapse_ops.operations.database.wal_status import read_time_left, read_wal_status

if TYPE_CHECKING:
    from synapse_ops.domain.backup.catalog import CatalogEntry
    from synapse_ops.operations.repository import Repository
    from synapse_ops.operations.stack import Stack


def with_wal(
    evidence: Evidence, entries: Sequence[CatalogEntry], stack: Stack, now: datetime, *, with_spans: bool = False
) -> Evidence:
    """Return the evidence of base backups with the WAL behind the newest proven one.

    with_spans: also that behind each older one, for which all of them are read.
    The last moment is now where the primary has nothing that is not stored; when the last bytes were stored where it
    has more; and the last commit that is stored where it does not answer.
    """
    proven = [entry for entry in entries if counts_as_proven(entry, now)]
    if not proven:
        return evidence
    newest = max(proven, key=data_time)
    repository = stack.database_repository()
    server_lsn, faults = None, list(evidence.faults)
    try:
        status = read_wal_status(stack)
        archive, server_lsn = status.archive, status.server_lsn
        if archive.identity != newest.place.identity:  # a restored server has a generation, and WAL, of its own
            faults.append(f"the server at {status.server} is another than the one whose base backup is proven")
            archive, server_lsn = read_wal_archive(repository, newest.place.identity), None
    except SynapseOpsError:  # a dead primary: what is stored says how far
        archive = read_wal_archive(repository, newest.place.identity)
    record = read_record(repository, newest.place)
    if not isinstance(record, BaseRecord):
        return evidence
    to_at = max(_last_moment(archive, record, server_lsn, faults, now, stack), record.stopped_time)
    spans = restorable_spans(_records(proven, archive, repository), archive, to_at) if with_spans else ()
    return replace(evidence, to_at=to_at, is_continuous=True, spans=spans, faults=tuple(faults))


def _records(entries: Iterable[CatalogEntry], archive: WalArchive, repository: Repository) -> Iterator[BaseRecord]:
    """Yield the base backups of the archive's server; one that is removed meanwhile restores nothing."""
    for entry in entries:
        if entry.place.identity == archive.identity:
            with suppress(ObjectMissing):
                record = read_record(repository, entry.place)
                if isinstance(record, BaseRecord):
                    yield record


def _last_moment(
    archive: WalArchive, record: BaseRecord, server_lsn: Lsn | None, faults: list[str], now: datetime, stack: Stack
) -> datetime:
    history = archive.history(archive.newest.timeline)
    reached = reach(archive, history, Lsn.parse(record.start_lsn))
    try:
        archive.refuse_lost_documents(leads_to_newest=True)
        archive.refuse_lost_wal(history, reached)
    except ObjectMissing as lost:  # as a restore would say it
        faults.append(f"{lost.message}; take a base backup")
        return reached.last_commit_at or record.stopped_time
    if server_lsn is not None and reached.stop >= server_lsn:
        return now
    if server_lsn is None:
        return reached.last_commit_at or record.stopped_time
    stored_at = archive.newest.stored_at or record.stopped_time
    lag = archive.read_at - stored_at
    if lag > wal_promise(stack.spec.backup.database.wal_archiving):
        left = say_time_left(read_time_left(stack))
        faults.append(f"{server_lsn - reached.stop} bytes of WAL are not stored{left}: is the WAL receiver running?")
    return now - lag
