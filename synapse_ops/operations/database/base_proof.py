"""Proves a base backup: recovers it from the repository alone in a throwaway, and checks every page and index there.

A base backup is fuzzy: no reading of its source belongs to its files. What is held to the source is each file, by the
manifest that the server made; each record of WAL, by its own checksum and by where replay ended; each page and index of
the result, by checksums and amcheck; and, where a standby was read behind the backup (exact_position.py), every row:
replay stands still at that position, and is compared. Then it goes on, by turns to the end of the archive and to a
moment in between.
"""

from __future__ import annotations

import random
import time
from datetime import timedelta
from functools import partial

from synapse_ops.domain.backup.base_record import BaseRecord, ExactPosition
from synapse_ops.domain.backup.proof_record import BaseFindings, DatabaseContent, ExactComparison
from synapse_ops.domain.database.base_chain import members_bytes
from synapse_ops.domain.database.cluster_fingerprint import ClusterFingerprint, compare
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.recovery_plan import BaseCandidate, RecoveryPlan, plan_recovery
from synapse_ops.domain.database.recovery_target import RecoveryTarget, proof_target
from synapse_ops.domain.database.wal_chain import WalArchive, WalReach, reach
from synapse_ops.domain.progress import Progress
from synapse_ops.operations.backup.catalog import read_proofs
from synapse_ops.operations.backup.proving import Proof
from synapse_ops.operations.backup.reading import BackupReader
from synapse_ops.operations.database.base_parent import read_chain, readers_of
from synapse_ops.operations.database.cluster_copy import (
    Recovered,
    objects_of,
    recovered_cluster,
    stage_cluster,
)
from synapse_ops.operations.database.exact_position import FINGERPRINT
from synapse_ops.operations.database.wal_archive import read_wal_archive
from synapse_ops.systems.postgres.amcheck import check_relations
from synapse_ops.systems.postgres.cluster_files import corrupt_pages
from synapse_ops.systems.postgres.connection import connect
from synapse_ops.systems.postgres.fingerprint import read_fingerprint
from synapse_ops.systems.postgres.identity import list_databases
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
    plan = plan_recovery([base], archive, _target(proof, base, archive, reached))
    chain = read_chain(proof.repository, proof.place, record)
    with proof.throwaway(
        database_size_bytes=record.source.cluster_size_bytes, scratch_bytes=members_bytes(chain)
    ) as directory:
        reader = BackupReader(proof.repository, proof.place, record, objects_of(record), **proof.limits())
        earlier = readers_of(proof.repository, proof.place, chain[:-1], **{**proof.limits(), "log": None})
        with proof.phase("read"):
            stage_cluster([*earlier, (reader, record)], directory, tools, proof.deadline)
        recover = partial(
            recovered_cluster,
            proof.repository,
            archive,
            directory=directory,
            tools=tools,
            deadline=proof.deadline,
            age_identities=proof.identities,
            progress=proof.progress,
        )
        contents, exact = None, None
        if record.exact is not None:
            expected = ClusterFingerprint.from_json(reader.read_document(FINGERPRINT, record.exact.digest))
            exact_plan = _exact_plan(archive, base, expected.lsn)
            if exact_plan is not None:
                with recover(exact_plan, stands_still=True) as recovered:
                    exact = _compare(proof, recovered, expected, record.exact)
                    if not recovered.is_paused:  # it was promoted there, and its WAL goes no further
                        plan, contents = exact_plan, _check(proof, recovered, begun)
        if contents is None:
            with recover(plan) as recovered:
                contents = _check(proof, recovered, begun)
    proof.findings["base"] = _findings(plan, archive, recovered, contents, exact)


def _exact_plan(archive: WalArchive, base: BaseCandidate, lsn: Lsn) -> RecoveryPlan | None:
    """Return how to get to the position at which the standby was read; None where a later timeline leaves it aside."""
    if archive.history(archive.newest.timeline).timeline_at(lsn) != base.record.timeline:
        return None
    return plan_recovery([base], archive, RecoveryTarget("lsn", lsn=lsn))


def _compare(proof: Proof, recovered: Recovered, expected: ClusterFingerprint, exact: ExactPosition) -> ExactComparison:
    """Compare every row with what the standby had; what differs is named by database and table."""
    with proof.phase("compare"):
        names = _databases(recovered)
        actual = {name: read_fingerprint(recovered.throwaway.conninfo(name), progress=proof.progress) for name in names}
        proof.differences += compare(expected, actual)
    return ExactComparison(lsn=exact.lsn, node=exact.node, tables=exact.table_count, rows=exact.row_count)


def _check(proof: Proof, recovered: Recovered, begun: float) -> tuple[DatabaseContent, ...]:
    """Check pages and indexes where replay has ended, and return what the databases hold there."""
    proof.restore_s = round(time.monotonic() - begun - proof.phase_s.get("compare", 0.0), 3)
    proof.phase_s["replay"] = round(proof.restore_s - proof.phase_s["read"], 3)
    server = recovered.throwaway.server
    proof.server_version = server.tools.version
    contents = _read_contents(proof, recovered)
    _check_indexes(proof, recovered, contents)
    server.stop("fast")
    with proof.phase("checksums"):
        proof.differences += corrupt_pages(
            server.data_dir, server.tools, server.identity, timeout_s=proof.deadline.remaining_s()
        )
    return contents


def _databases(recovered: Recovered) -> tuple[str, ...]:
    """Return the databases that take connections."""
    with connect(recovered.throwaway.conninfo("template1")) as connection:
        return list_databases(connection)


def _target(proof: Proof, base: BaseCandidate, archive: WalArchive, reached: WalReach) -> RecoveryTarget:
    """Return the end of the archive, both sides of its newest promotion, or a moment in between: they take turns."""
    first, position = base.record.stopped_time, base.stop
    if base.record.exact is not None:  # replay does not go back; commit times may, by a little
        first = max(first, base.record.exact.last_commit_at + timedelta(seconds=1))
        position = max(position, Lsn.parse(base.record.exact.lsn))
    newest = archive.newest
    fork = archive.history(newest.timeline).begins_at
    is_behind = position < fork < reached.stop
    return proof_target(
        _target_before(proof),
        first=first,
        last=reached.last_commit_at,
        fork=fork if is_behind else None,
        promoted_at=newest.claim.claimed_at if is_behind and newest.claim is not None else None,
        between=random.SystemRandom().random(),
    )


def _target_before(proof: Proof) -> str:
    """Return the target of the newest proof of any base backup; empty where there is none."""
    tried = [(entry.last_proof_at, entry.place) for entry in proof.entries if entry.last_proof_at is not None]
    if not tried:
        return ""
    found = [one.base.target for one in read_proofs(proof.repository, max(tried)[1]) if one.base is not None]
    return found[-1] if found else ""


def _read_contents(proof: Proof, recovered: Recovered) -> tuple[DatabaseContent, ...]:
    """Read every row and name of every database that takes connections."""
    contents = []
    with proof.phase("contents"):
        for name in _databases(recovered):
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


def _findings(
    plan: RecoveryPlan,
    archive: WalArchive,
    recovered: Recovered,
    contents: tuple[DatabaseContent, ...],
    exact: ExactComparison | None,
) -> BaseFindings:
    last_commit_at, behind_s = recovered.last_commit_at, None
    if plan.target.kind == "latest" and last_commit_at is not None:
        behind_s = round(max(0.0, (archive.read_at - last_commit_at).total_seconds()), 3)
    return BaseFindings(
        target=str(plan.target),
        end_lsn=str(recovered.end),
        timeline=plan.history.timeline,
        wal_bytes=recovered.end - plan.base.start,
        databases=tuple(one.name for one in contents),
        contents=contents,
        exact=exact,
        last_commit_at=last_commit_at,
        rpo_observed_s=behind_s,
    )
