"""Proves a base backup: recovers it from the repository alone in a throwaway, and checks every page and index there.

A base backup is fuzzy: no reading of the source belongs to it. What is held to the source is each file, by the manifest
that the server made; each record of WAL, by its own checksum and by where replay ended; and each page and index of the
result, by checksums and amcheck. The target is by turns the end of the archive and a moment in between.
"""

from __future__ import annotations

import random
import time

from synapse_ops.domain.backup.base_record import BaseRecord
from synapse_ops.domain.backup.proof_record import BaseFindings, DatabaseContent
from synapse_ops.domain.database.recovery_plan import BaseCandidate, RecoveryPlan, plan_recovery
from synapse_ops.domain.database.recovery_target import RecoveryTarget
from synapse_ops.domain.database.wal_chain import WalReach, reach
from synapse_ops.domain.progress import Progress
from synapse_ops.operations.backup.catalog import read_proofs
from synapse_ops.operations.backup.proving import Proof
from synapse_ops.operations.backup.reading import BackupReader
from synapse_ops.operations.database.cluster_copy import (
    Recovered,
    objects_of,
    recovered_cluster,
    stage_cluster,
)
from synapse_ops.operations.database.wal_archive import read_wal_archive
from synapse_ops.systems.postgres.amcheck import check_relations
from synapse_ops.systems.postgres.cluster_files import corrupt_pages
from synapse_ops.systems.postgres.connection import connect, postgres_errors
from synapse_ops.systems.postgres.fingerprint import read_fingerprint
from synapse_ops.systems.postgres.programs import find_pg_tools
from synapse_ops.systems.postgres.structure import read_structure


def prove_base(proof: Proof) -> None:
    """Recover the base backup to a moment, and check what came of it."""
    begun = time.monotonic()
    record = proof.read_record(BaseRecord)
    tools = find_pg_tools(record.source.server_version_num // 10000)
    archive = read_wal_archive(proof.repository, proof.place.identity, age_identities=proof.identities)
    base = BaseCandidate(proof.place, record)
    archive.refuse_lost_documents(leads_to_newest=True)
    history = archive.history(archive.newest.timeline)
    reached = reach(archive, history, base.start)
    archive.refuse_lost_wal(history, reached)
    plan = plan_recovery([base], archive, _target(proof, base, reached))
    with proof.throwaway(database_size_bytes=record.source.cluster_size_bytes, scratch_bytes=0) as directory:
        reader = BackupReader(proof.repository, proof.place, record, objects_of(record), **proof.limits())
        with proof.phase("read"):
            stage_cluster(reader, record, directory, tools, proof.deadline)
        began_s = time.monotonic()
        with recovered_cluster(
            proof.repository,
            archive,
            plan,
            directory,
            tools=tools,
            deadline=proof.deadline,
            age_identities=proof.identities,
            progress=proof.progress,
        ) as recovered:
            proof.phase_s["replay"] = round(time.monotonic() - began_s, 3)
            proof.restore_s = round(time.monotonic() - begun, 3)
            contents = _read_contents(proof, recovered)
            _check_indexes(proof, recovered, contents)
            proof.server_version = tools.version
            recovered.throwaway.server.stop("fast")
            _check_pages(proof, recovered)
    proof.findings["base"] = _findings(plan, recovered, contents)


def _target(proof: Proof, base: BaseCandidate, reached: WalReach) -> RecoveryTarget:
    """Return the end of the archive; after a proof that went there, a moment between the base backup and that end."""
    first, last = base.record.stopped_time, reached.last_commit_at
    if last is None or last <= first or not _went_to_the_end(proof):
        return RecoveryTarget("latest")
    return RecoveryTarget("time", time=first + (last - first) * random.SystemRandom().random())


def _went_to_the_end(proof: Proof) -> bool:
    """Say whether the newest proof of any base backup went to the end of the archive."""
    tried = [(entry.last_proof_at, entry.place) for entry in proof.entries if entry.last_proof_at is not None]
    if not tried:
        return False
    found = [one.base.target for one in read_proofs(proof.repository, max(tried)[1]) if one.base is not None]
    return bool(found) and found[-1] == "latest"


def _read_contents(proof: Proof, recovered: Recovered) -> tuple[DatabaseContent, ...]:
    """Read every row and name of every database that takes connections."""
    with connect(recovered.throwaway.conninfo("template1")) as connection, postgres_errors("the recovered databases"):
        rows = connection.execute("SELECT datname::text FROM pg_database WHERE datallowconn ORDER BY 1").fetchall()
    contents = []
    with proof.phase("contents"):
        for (name,) in rows:
            conninfo = recovered.throwaway.conninfo(name)
            content, structure = read_fingerprint(conninfo, progress=proof.progress), read_structure(conninfo)
            contents.append(
                DatabaseContent(
                    name=name,
                    tables=len(content.tables),
                    rows=content.row_count,
                    content_digest=content.digest(),
                    structure_digest=structure.digest(),
                )
            )
    return tuple(contents)


def _check_indexes(proof: Proof, recovered: Recovered, contents: tuple[DatabaseContent, ...]) -> None:
    """Check every page and index of every database; what is wrong is named."""
    with proof.phase("amcheck"):
        for name in (one.name for one in contents):
            stage = f"checking pages and indexes of {name}"
            found = check_relations(
                recovered.throwaway.conninfo(name),
                on_relation=lambda done, total, stage=stage: proof.progress(  # type: ignore[misc]
                    Progress(stage, done, total, unit="relations")
                ),
            )
            proof.differences += [f"{name}: amcheck: {fault}" for fault in found.faults]
            proof.amcheck_relations += found.relations


def _check_pages(proof: Proof, recovered: Recovered) -> None:
    with proof.phase("checksums"):
        server = recovered.throwaway.server
        proof.differences += corrupt_pages(
            server.data_dir, server.tools, server.identity, timeout_s=proof.deadline.remaining_s()
        )


def _findings(plan: RecoveryPlan, recovered: Recovered, contents: tuple[DatabaseContent, ...]) -> BaseFindings:
    return BaseFindings(
        target=str(plan.target),
        end_lsn=str(recovered.end),
        timeline=plan.history.timeline,
        wal_bytes=recovered.end - plan.base.start,
        databases=tuple(one.name for one in contents),
        contents=contents,
    )
