"""A backup that was taken before format version 2 is listed, proven by what it records, and restored.

version_1/ holds the objects of a real one, with a table of numbers, texts and arrays.
"""

from __future__ import annotations

from pathlib import Path

from synapse_ops.domain.backup.dump_record import DumpRecord
from synapse_ops.domain.backup.layout import BackupPlace
from synapse_ops.domain.backup.proof_record import Verdict
from synapse_ops.domain.database.fingerprint import Fingerprint
from synapse_ops.domain.database.structure import Structure
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup_kinds import DUMPS
from synapse_ops.operations.repository import Repository
from tests.operations.database.backups import KeptBackup

OBJECTS = {path.name: path.read_bytes() for path in (Path(__file__).parent / "version_1").iterdir()}
RECORD = DumpRecord.from_json(OBJECTS["backup.json"], key="backup.json")


def test_a_stored_backup_of_version_1_is_proven_by_the_methods_that_it_records(
    repository: Repository, work_dir: Path
) -> None:
    """Its rows are hashed anew by method 2, its entries compared with those that version 1 made."""
    place = BackupPlace(RECORD.identity, RECORD.kind, RECORD.subject, RECORD.backup_id)
    KeptBackup(place, OBJECTS).put(repository)

    report = DUMPS.prove(repository, work_dir=work_dir)

    assert report is not None
    assert report.record.differences == ()
    assert report.record.verdict is Verdict.PROVEN
    assert read_catalog(repository).backups[0].proven_at == report.record.finished_at


def test_it_is_of_version_1_and_its_bytes_are_kept() -> None:
    """What the test above rests on."""
    fingerprint = Fingerprint.from_json(OBJECTS["fingerprint.json"])
    structure = Structure.from_json(OBJECTS["structure.json"])

    assert (RECORD.format_version, fingerprint.method, structure.version) == (1, 2, 1)
    assert RECORD.to_json() == OBJECTS["backup.json"]
    assert fingerprint.to_json() == OBJECTS["fingerprint.json"]
    assert structure.to_json() == OBJECTS["structure.json"]
