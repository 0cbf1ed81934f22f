"""The kinds of backup, as operations: the only module that imports every subject.

A new kind is its record (domain/backup/kinds.py), a taker, a prover, a restore, and one row here.
Clients are imported when a row is used, so that a listing does not pay for Qdrant's engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.backup.kinds import BASE, DUMP, RDB, SNAPSHOT, Kind
from synapse_ops.domain.progress import ReportProgress, ignore_progress
from synapse_ops.errors import ConfigError
from synapse_ops.operations.backup.proving import DEFAULT_TIMEOUT_S, Proof, ProofReport, carry_out_proof
from synapse_ops.operations.backup.reading import foresee_hold, hold_for_reading
from synapse_ops.operations.stack import Stack

if TYPE_CHECKING:
    from synapse_ops.domain.backup.layout import BackupPlace
    from synapse_ops.domain.backup.retention import RetentionPolicy
    from synapse_ops.operations.backup.expiry_run import Wal
    from synapse_ops.operations.backup.restoring import RestorePlan, RestoreReport, RestoreRequest
    from synapse_ops.operations.backup.taking import BackupReport
    from synapse_ops.operations.repository import Repository
    from synapse_ops.spec import Spec
    from synapse_ops.spec.cron import Cron
    from synapse_ops.systems.qdrant.server import QdrantServer


LISTING_TIMEOUT_S = 10.0  # names alone: a page of the night must not wait for a server that hangs


@dataclass(frozen=True)
class Verbs:
    """What is done with the backups of one kind."""

    take: Callable[..., BackupReport]
    prove: Callable[[Proof], None]
    plan_restore: Callable[[RestoreRequest], RestorePlan]
    apply_restore: Callable[[RestoreRequest, Any], RestoreReport]


@dataclass(frozen=True)
class BackupKind:
    """One kind of backup.

    kind: its words and record. is_on: whether the spec has it backed up. schedule, retention: of the spec.
    repository: of the spec's destination. subjects: names to back up now, asked of the server where the spec does not
    say. verbs: imports the subject and its clients, so only when one is used. takes_server: a restore may name one.
    takes_moment: a restore may go to any.
    """

    kind: Kind
    is_on: Callable[[Spec], bool]
    schedule: Callable[[Any], Cron]
    retention: Callable[[Any], timedelta]
    repository: Callable[[Stack], Repository]
    subjects: Callable[[Stack], tuple[str, ...]]
    verbs: Callable[[], Verbs]
    takes_server: bool = False
    takes_moment: bool = False

    @property
    def name(self) -> str:
        return self.kind.name

    @property
    def word(self) -> str:
        return self.kind.word

    @property
    def noun(self) -> str:
        return self.kind.noun

    @property
    def items(self) -> str:
        return self.kind.items

    def policy(self, spec: Spec) -> RetentionPolicy:
        """Return the retention policy of the spec for this kind."""
        from synapse_ops.domain.backup.retention import RetentionPolicy

        return RetentionPolicy.of(spec, self.retention(spec))

    def plan_restore(self, request: RestoreRequest) -> RestorePlan:
        """Return what a restore would do; raises ConfigError for a server that this kind takes none of."""
        if request.server is not None and not self.takes_server:
            raise ConfigError(f"--server names the server of a new database, and this is a backup of a {self.noun}")
        if not self.takes_moment and (request.until is not None or request.goes_live):
            raise ConfigError(f"--until and --go-live are of the whole cluster, and this is a backup of a {self.noun}")
        plan = self.verbs().plan_restore(request)
        return replace(plan, notes=(*plan.notes, *foresee_hold(request.repository, request.place)))

    def apply_restore(self, request: RestoreRequest, plan: RestorePlan) -> RestoreReport:
        """Carry out a plan while the backup is held against expiry, where the keys can write."""
        with hold_for_reading(request.repository, request.place, "restore") as notes:
            report = self.verbs().apply_restore(request, plan)
        return replace(report, notes=(*report.notes, *notes))

    def prove(
        self,
        repository: Repository,
        *,
        place: BackupPlace | None = None,
        backup_id: str | None = None,
        subject: str | None = None,
        only_untried: bool = False,
        identities: tuple[str, ...] = (),
        work_dir: Path,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        progress: ReportProgress = ignore_progress,
    ) -> ProofReport | None:
        """Prove one backup of this kind; arguments and errors are those of `carry_out_proof`."""
        return carry_out_proof(
            repository,
            self.name,
            self.verbs().prove,
            place=place,
            backup_id=backup_id,
            subject=subject,
            only_untried=only_untried,
            identities=identities,
            work_dir=work_dir,
            timeout_s=timeout_s,
            progress=progress,
        )


def _plan_dump_restore(request: RestoreRequest) -> RestorePlan:
    from synapse_ops.operations.database.restore import plan_restore
    from synapse_ops.operations.database.restore_target import parse_target

    target = parse_target(request.target, request.server, request.open_stack)
    return plan_restore(request.repository, request.place, target, identities=request.identities)


def _apply_dump_restore(request: RestoreRequest, plan: Any) -> RestoreReport:
    from synapse_ops.operations.database.restore import apply_restore

    return apply_restore(
        request.repository,
        plan,
        identities=request.identities,
        work_dir=request.work_dir,
        timeout_s=request.timeout_s,
        progress=request.progress,
    )


def _dump_verbs() -> Verbs:
    from synapse_ops.operations.database.dump import dump_database
    from synapse_ops.operations.database.proof import prove_dump

    return Verbs(dump_database, prove_dump, _plan_dump_restore, _apply_dump_restore)


def _collections(stack: Stack) -> tuple[str, ...]:
    from synapse_ops.systems.qdrant.server import qdrant_nodes

    first, *_ = qdrant_nodes(stack.spec.qdrant, timeout_s=LISTING_TIMEOUT_S)
    with first:
        return first.collections()


@contextmanager
def qdrant_servers(request: RestoreRequest) -> Iterator[tuple[QdrantServer, ...]]:
    """Yield a client for each node of the spec, and close them."""
    from synapse_ops.systems.qdrant.server import qdrant_nodes

    if request.open_stack is None:
        raise ConfigError(
            "no server given: --to names only the new collection", hint="Name the spec of its server with --spec."
        )
    with ExitStack() as opened:
        yield tuple(opened.enter_context(server) for server in qdrant_nodes(request.open_stack().spec.qdrant))


def _plan_snapshot_restore(request: RestoreRequest) -> RestorePlan:
    from synapse_ops.operations.vectors.restore_plan import plan_vector_restore

    with qdrant_servers(request) as servers:
        return plan_vector_restore(request.repository, request.place, servers, request.target)


def _apply_snapshot_restore(request: RestoreRequest, plan: Any) -> RestoreReport:
    from synapse_ops.operations.vectors.restore import apply_vector_restore

    with qdrant_servers(request) as servers:
        return apply_vector_restore(
            request.repository,
            plan,
            servers,
            identities=request.identities,
            work_dir=request.work_dir,
            timeout_s=request.timeout_s,
            progress=request.progress,
        )


def _snapshot_verbs() -> Verbs:
    from synapse_ops.operations.vectors.proof import prove_snapshot
    from synapse_ops.operations.vectors.snapshot import snapshot_collection

    return Verbs(snapshot_collection, prove_snapshot, _plan_snapshot_restore, _apply_snapshot_restore)


def redis_address(spec: Spec) -> str:
    """Return the subject of Redis's backups: host:port, or the path of its socket."""
    from synapse_ops.systems.redis.server import location_of

    return location_of(spec.redis.host, spec.redis.port)


def _take_rdb(stack: Stack, subject: str, **more: Any) -> BackupReport:
    from synapse_ops.operations.redis.snapshot import snapshot_redis

    address = redis_address(stack.spec)
    if subject != address:
        raise ConfigError(f'the spec has no Redis at "{subject}": redis.host and redis.port are {address}')
    return snapshot_redis(stack, **more)


def _rdb_verbs() -> Verbs:
    from synapse_ops.operations.redis.proof import prove_rdb
    from synapse_ops.operations.redis.restore import apply_rdb_restore, plan_rdb_restore

    return Verbs(_take_rdb, prove_rdb, plan_rdb_restore, apply_rdb_restore)


def _base_verbs() -> Verbs:
    from synapse_ops.operations.database.base_backup import take_base_backup
    from synapse_ops.operations.database.base_proof import prove_base
    from synapse_ops.operations.database.restore_cluster import apply_cluster_restore, plan_cluster_restore

    return Verbs(take_base_backup, prove_base, plan_cluster_restore, apply_cluster_restore)


DUMPS = BackupKind(
    kind=DUMP,
    is_on=lambda spec: True,
    schedule=lambda spec: spec.backup.database.schedule,
    retention=lambda spec: spec.backup.database.retention,
    repository=Stack.database_repository,
    subjects=lambda stack: stack.spec.database.databases,
    verbs=_dump_verbs,
    takes_server=True,
)
SNAPSHOTS = BackupKind(
    kind=SNAPSHOT,
    is_on=lambda spec: True,
    schedule=lambda spec: spec.backup.vectors.schedule,
    retention=lambda spec: spec.backup.vectors.retention,
    repository=Stack.vector_repository,
    subjects=_collections,
    verbs=_snapshot_verbs,
)
RDBS = BackupKind(
    kind=RDB,
    is_on=lambda spec: spec.backup.redis is not None,
    schedule=lambda spec: spec.backup.redis.schedule,
    retention=lambda spec: spec.backup.redis.retention,
    repository=Stack.redis_repository,
    subjects=lambda stack: (redis_address(stack.spec),),
    verbs=_rdb_verbs,
)
BASES = BackupKind(
    kind=BASE,
    is_on=lambda spec: spec.backup.database.wal_archiving != "off",
    retention=lambda spec: spec.backup.database.retention,
    schedule=lambda spec: spec.backup.database.schedule,
    repository=Stack.database_repository,
    subjects=lambda stack: (BASE.word,),
    verbs=_base_verbs,
    takes_moment=True,
)
KINDS = (DUMPS, SNAPSHOTS, RDBS, BASES)


def read_wal(repository: Repository) -> Wal:
    """Return the WAL of a repository, for an expiry: base backups and WAL expire together."""
    from synapse_ops.operations.database.wal_expiry import WalExpiry

    return WalExpiry(repository)


def kinds_of(spec: Spec) -> tuple[BackupKind, ...]:
    """Return the kinds that the spec has backed up."""
    return tuple(kind for kind in KINDS if kind.is_on(spec))


def kind_named(name: str) -> BackupKind:
    """Return the kind of a `backup.json`: dump, snapshot, rdb."""
    return next(kind for kind in KINDS if kind.name == name)


@dataclass(frozen=True, slots=True)
class Subject:
    """What a person named: one kind, and one subject of it or, with name None, all."""

    kind: BackupKind
    name: str | None

    def __str__(self) -> str:
        return self.kind.word if self.name is None else f"{self.kind.word}/{self.name}"


def parse_subject(text: str) -> Subject:
    """Return the subject written as `database/NAME`, `vectors/NAME`, `redis`, or a kind alone for all of its subjects.

    Raises ConfigError that lists the kinds.
    """
    word, slash, name = text.partition("/")
    kind = next((kind for kind in KINDS if kind.word == word), None)
    if kind is None or (slash and not name):
        raise ConfigError(
            f'"{text}" does not name what is backed up',
            detail=f"allowed: {', '.join(kind.kind.form for kind in KINDS)}; "
            f"or {', '.join(kind.word for kind in KINDS)} alone for all of them",
        )
    return Subject(kind, name or None)
