"""The objects of a dump, every byte verified: the archive in scratch space, the documents parsed.

The dump is staged to a file although pg_restore could read a pipe, because a file can be restored in parallel and this
was measured: 929 MiB with foreign keys and a GIN index, 2 cores: 12.1-13.9 s from a pipe, 11.2 s from a pipe with the
indexes in parallel, 9.2-9.5 s staged with two jobs. It costs the compressed size in scratch space, which is checked
beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from synapse_ops.domain.backup.dump_record import DumpRecord
from synapse_ops.domain.backup.layout import BACKUP, BackupPlace
from synapse_ops.domain.database.fingerprint import Fingerprint
from synapse_ops.domain.database.globals_script import GlobalsScript, parse_globals, split_statements
from synapse_ops.domain.database.structure import Structure
from synapse_ops.errors import ChecksumMismatch, DocumentUnreadable
from synapse_ops.operations.backup.reading import BackupReader
from synapse_ops.operations.repository import Repository

DUMP, GLOBALS, FINGERPRINT, STRUCTURE = "database.dump", "globals.sql", "fingerprint.json", "structure.json"
SUPPLEMENT = "supplement.sql"


def objects_of(record: DumpRecord) -> tuple[str, ...]:
    """Return the names of the objects that a dump consists of."""
    return (DUMP, GLOBALS, FINGERPRINT, STRUCTURE, *([SUPPLEMENT] if record.format_version > 1 else []))


@dataclass(frozen=True)
class StagedBackup:
    """A dump whose every byte has been verified. archive: pg_dump's custom format, decrypted, in scratch space.

    superuser: the one that initdb makes, in the source as in a new cluster. supplement: statements for the restored
    database, after pg_restore.
    """

    archive: Path
    globals_script: GlobalsScript
    fingerprint: Fingerprint
    structure: Structure
    superuser: str
    supplement: tuple[str, ...]


def stage_backup(reader: BackupReader, place: BackupPlace, record: DumpRecord, scratch_dir: Path) -> StagedBackup:
    """Read and verify every object of a dump into memory and `scratch_dir`; raises what the reader raises.

    reader: made for the objects of `objects_of`.
    """
    script = _parse_globals(place, reader.read_bytes(GLOBALS))
    supplement: tuple[str, ...] = ()
    if record.format_version > 1:
        supplement = tuple(
            one.text for one in split_statements(_text(place, SUPPLEMENT, reader.read_bytes(SUPPLEMENT)))
        )
    fingerprint = Fingerprint.from_json(reader.read_document(FINGERPRINT, record.fingerprint_digest))
    structure = Structure.from_json(reader.read_document(STRUCTURE, record.structure_digest))
    _check_counts(place, record, fingerprint)
    archive = scratch_dir / DUMP
    with archive.open("wb") as sink:
        reader.read(DUMP, sink)
    superuser = record.source.bootstrap_role or script.bootstrap_role
    return StagedBackup(archive, script, fingerprint, structure, superuser, supplement)


def _check_counts(place: BackupPlace, record: DumpRecord, fingerprint: Fingerprint) -> None:
    said, counted = (record.table_count, record.row_count), (len(fingerprint.tables), fingerprint.row_count)
    if said != counted:
        raise ChecksumMismatch(
            f"{place.key(BACKUP)} records {said[0]} tables and {said[1]} rows,"
            f" its fingerprint {counted[0]} and {counted[1]}"
        )


def _parse_globals(place: BackupPlace, data: bytes) -> GlobalsScript:
    return parse_globals(_text(place, GLOBALS, data))


def _text(place: BackupPlace, name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as fault:
        raise DocumentUnreadable(f"cannot read {place.key(name)}: {fault.reason} at byte {fault.start}") from fault


def read_globals(
    repository: Repository, place: BackupPlace, record: DumpRecord, identities: tuple[str, ...]
) -> GlobalsScript:
    """Read and verify the roles and tablespaces of a dump alone; raises as `stage_backup` does."""
    reader = BackupReader(repository, place, record, objects_of(record), identities=identities)
    return _parse_globals(place, reader.read_bytes(GLOBALS))
