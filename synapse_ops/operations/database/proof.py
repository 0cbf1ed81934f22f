"""Proves a dump: restores it into a throwaway server and compares it exactly (operations/backup/proving.py)."""

from __future__ import annotations

import time

from synapse_ops.domain.backup.dump_record import DumpRecord, limited
from synapse_ops.domain.database import fingerprint as fingerprints
from synapse_ops.domain.database import structure as structures
from synapse_ops.domain.progress import Progress
from synapse_ops.operations.backup.proving import Proof
from synapse_ops.operations.backup.reading import BackupReader
from synapse_ops.operations.database.restore_into_throwaway import restore_into_throwaway
from synapse_ops.operations.database.staged_dump import StagedBackup, objects_of, stage_backup
from synapse_ops.operations.database.throwaway_server import Throwaway, throwaway_server
from synapse_ops.systems.postgres.amcheck import check_relations
from synapse_ops.systems.postgres.connection import connect, postgres_errors
from synapse_ops.systems.postgres.deparse import same_definitions
from synapse_ops.systems.postgres.fingerprint import read_fingerprint
from synapse_ops.systems.postgres.programs import find_pg_tools
from synapse_ops.systems.postgres.structure import read_structure

FINGERPRINT_WORKERS = 2


def prove_dump(proof: Proof) -> None:
    """Restore the dump, compare content and structure, and check every page and index."""
    begun = time.monotonic()
    deadline = proof.deadline
    record = proof.read_record(DumpRecord)
    tools = find_pg_tools(record.source.server_version_num // 10000)
    size_bytes = record.source.database_size_bytes
    with proof.throwaway(database_size_bytes=size_bytes, scratch_bytes=record.stored_bytes) as directory:
        reader = BackupReader(proof.repository, proof.place, record, objects_of(record), **proof.limits())
        with proof.phase("read"):
            staged = deadline.run(lambda: stage_backup(reader, proof.place, record, directory.scratch_dir))
        with throwaway_server(
            directory, tools=tools, superuser=staged.superuser, database_size_bytes=size_bytes, deadline=deadline
        ) as throwaway:
            with proof.phase("restore"):
                restore_into_throwaway(
                    throwaway,
                    staged,
                    record,
                    scratch_dir=directory.scratch_dir,
                    deadline=deadline,
                    progress=proof.progress,
                )
            proof.restore_s = round(time.monotonic() - begun, 3)
            _compare(throwaway, staged, record.source.database, proof)


def _compare(throwaway: Throwaway, staged: StagedBackup, database: str, proof: Proof) -> None:
    """Compare content and structure, then check every page and index; what differs is named."""
    conninfo = throwaway.conninfo(database)
    with proof.phase("compare"):
        method = staged.fingerprint.method
        actual = read_fingerprint(conninfo, workers=FINGERPRINT_WORKERS, progress=proof.progress, method=method)
        proof.differences += fingerprints.compare(staged.fingerprint, actual)
        with same_definitions(conninfo) as is_same:
            copy = read_structure(conninfo, version=staged.structure.version)
            proof.differences += structures.compare(staged.structure, copy, is_same=is_same)
        proof.not_in_backup = limited(structures.changed_members(staged.structure, copy))
    with proof.phase("amcheck"):
        stage = f"checking pages and indexes of {database}"
        found = check_relations(
            conninfo, on_relation=lambda done, total: proof.progress(Progress(stage, done, total, unit="relations"))
        )
        proof.differences += [f"amcheck: {fault}" for fault in found.faults]
        proof.differences += _server_faults(conninfo)
    proof.server_version = throwaway.server.tools.version
    proof.amcheck_relations = found.relations


def _server_faults(conninfo: str) -> list[str]:
    """Return what the throwaway itself has to report: checksums off, or pages that failed theirs."""
    with connect(conninfo) as connection, postgres_errors("the throwaway's checksums"):
        row = connection.execute(
            "SELECT current_setting('data_checksums'), coalesce(sum(checksum_failures), 0) FROM pg_stat_database"
        ).fetchone()
    if row is None or row[0] != "on":
        return ["throwaway server: data checksums are off"]
    return [f"throwaway server: {row[1]} pages failed their checksum"] if row[1] else []
