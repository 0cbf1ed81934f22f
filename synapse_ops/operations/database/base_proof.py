"""Proves a base backup: recovers it from the repository alone in a throwaway, and checks every page and index there.

A base backup is fuzzy: no reading of the source belongs to it. What is held to the source is each file, by the manifest
that the server made; each record of WAL, by its own checksum and by where replay ended; and each page and index of the
result, by checksums and amcheck. The target is the end of the archive, or a moment in between, by chance.
"""

from __future__ import annotations

import random
import time

from synapse_ops.domain.backup.base_record import BaseRecord
from synapse_ops.domain.backup.proof_record import BaseFindings
from synapse_ops.domain.database.recovery_plan import BaseCandidate, RecoveryPlan, plan_recovery
from synapse_ops.domain.database.recovery_target import RecoveryTarget
from synapse_ops.domain.database.wal_chain import WalArchive, reach
from synapse_ops.domain.progress import Progress
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
from synapse_ops.systems.postgres.programs import find_pg_tools

LATEST_SHARE = 0.5  # of the proofs; the others go to a moment in between


def prove_base(proof: Proof) -> None:
    """Recover the base backup to a moment, and check what came of it."""
    begun = time.monotonic()
    record = proof.read_record(BaseRecord)
    tools = find_pg_tools(record.source.server_version_num // 10000)
    archive = read_wal_archive(proof.repository, proof.place.identity, age_identities=proof.identities)
    base = BaseCandidate(proof.place, record)
    plan = plan_recovery([base], archive, _target(archive, base), timeline=archive.newest.timeline)
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
            databases = _check_databases(proof, recovered)
            proof.server_version = tools.version
            recovered.throwaway.server.stop("fast")
            _check_pages(proof, recovered)
    proof.findings["base"] = _findings(plan, recovered, databases)


def _target(archive: WalArchive, base: BaseCandidate) -> RecoveryTarget:
    """Return the end of the archive, or by chance a moment between the end of the base backup and the last commit."""
    last = reach(archive, archive.history(archive.newest.timeline), base.start).last_commit_at
    first = base.record.stopped_time
    chance = random.SystemRandom()
    if last is None or last <= first or chance.random() < LATEST_SHARE:
        return RecoveryTarget("latest")
    return RecoveryTarget("time", time=first + (last - first) * chance.random())


def _check_databases(proof: Proof, recovered: Recovered) -> tuple[str, ...]:
    """Check every page and index of every database that takes connections; what is wrong is named."""
    with connect(recovered.throwaway.conninfo("template1")) as connection, postgres_errors("the recovered databases"):
        rows = connection.execute("SELECT datname::text FROM pg_database WHERE datallowconn ORDER BY 1").fetchall()
    with proof.phase("amcheck"):
        for (name,) in rows:
            stage = f"checking pages and indexes of {name}"
            found = check_relations(
                recovered.throwaway.conninfo(name),
                on_relation=lambda done, total, stage=stage: proof.progress(  # type: ignore[misc]
                    Progress(stage, done, total, unit="relations")
                ),
            )
            proof.differences += [f"{name}: amcheck: {fault}" for fault in found.faults]
            proof.amcheck_relations += found.relations
    return tuple(name for (name,) in rows)


def _check_pages(proof: Proof, recovered: Recovered) -> None:
    with proof.phase("checksums"):
        server = recovered.throwaway.server
        proof.differences += corrupt_pages(
            server.data_dir, server.tools, server.identity, timeout_s=proof.deadline.remaining_s()
        )


def _findings(plan: RecoveryPlan, recovered: Recovered, databases: tuple[str, ...]) -> BaseFindings:
    return BaseFindings(
        target=str(plan.target),
        end_lsn=str(recovered.end),
        timeline=plan.history.timeline,
        wal_bytes=recovered.end - plan.base.start,
        databases=databases,
    )
