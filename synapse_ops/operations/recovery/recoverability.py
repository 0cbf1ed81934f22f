"""Reads what can be restored now: each kind's repository once, and the spec for what was promised. Writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from synapse_ops.domain.backup.ages import SLACK, wal_promise
from synapse_ops.domain.backup.kinds import BASE, DUMP
from synapse_ops.domain.recovery.recoverability import (
    Evidence,
    NextStep,
    Objectives,
    Recoverability,
    Row,
    evidence_of,
)
from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.backup_kinds import BackupKind, kinds_of
from synapse_ops.operations.recovery.cluster_evidence import with_wal
from synapse_ops.operations.stack import Stack

if TYPE_CHECKING:
    from synapse_ops.operations.backup.catalog import Catalog
    from synapse_ops.spec import Spec

Read = Callable[[BackupKind], "Catalog"]


class Catalogs:
    """What the repositories hold, each read once; one that could not be read is not asked again."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._known: dict[str, Catalog | SynapseOpsError] = {}

    def read(self, kind: BackupKind) -> Catalog:
        """Return what lies in the repository of a kind. Raises what the first reading raised."""
        from synapse_ops.operations.backup.catalog import read_catalog

        if kind.name not in self._known:
            try:
                self._known[kind.name] = read_catalog(kind.repository(self._stack)).only(kind.name)
            except SynapseOpsError as error:
                self._known[kind.name] = error
        found = self._known[kind.name]
        if isinstance(found, SynapseOpsError):
            raise found
        return found


def read_recoverability(
    stack: Stack,
    now: datetime,
    *,
    kinds: Sequence[BackupKind] | None = None,
    expected: Mapping[str, Sequence[str]] | None = None,
    read: Read | None = None,
    with_spans: bool = False,
) -> Recoverability:
    """Return what can be restored of every subject of the spec, and of others that only the repository holds.

    kinds: only these; None: all that the spec has backed up. expected: names that must have backups, by kind; of
    another kind the spec or the server is asked. read: what lies in the repository of a kind, where the caller has read
    it. A repository that cannot be read is rows that say so. with_spans: what a picture needs, and reads more for.
    """
    rows = [
        row
        for kind in (kinds_of(stack.spec) if kinds is None else kinds)
        for row in _rows_of(
            kind, stack, (expected or {}).get(kind.name), read or Catalogs(stack).read, now, with_spans=with_spans
        )
    ]
    return Recoverability(tuple(rows), now, stack.spec.time_zone)


def _rows_of(
    kind: BackupKind, stack: Stack, expected: Sequence[str] | None, read: Read, now: datetime, *, with_spans: bool
) -> Iterator[Row]:
    wanted = expected if expected is not None else _ask_for_subjects(kind, stack)
    step = next_step(kind, stack.spec, now)
    promised, window = objectives_of(kind, stack.spec), kind.retention(stack.spec)
    try:
        catalog = read(kind)
    except SynapseOpsError as fault:
        unread = Evidence(unread=f"the repository could not be read: {fault.message}")
        for subject in wanted or ("",):
            yield Row(kind.word, subject, label_of(kind, subject), unread, promised, step, now, window)
        return
    held = catalog.subjects()
    names = sorted({*(held if wanted is None else wanted), *held})
    for subject in names:
        entries = catalog.of_subject(subject)
        evidence = evidence_of(entries, stack.spec.retention.proof_max_age, now)
        if kind.kind is BASE:
            evidence = with_wal(evidence, entries, stack, now, with_spans=with_spans)
        is_expected = wanted is None or subject in wanted
        yield Row(
            kind.word,
            subject,
            label_of(kind, subject),
            evidence,
            promised if is_expected else None,
            step if is_expected else None,
            now,
            window,
        )


def _ask_for_subjects(kind: BackupKind, stack: Stack) -> Iterable[str] | None:
    """Return the names that must have backups; None where the server does not say: then each that has some."""
    try:
        return kind.subjects(stack)
    except SynapseOpsError:
        return None


def label_of(kind: BackupKind, subject: str) -> str:
    """Return a subject as a sentence names it: a database by its name alone."""
    if not subject:
        return f"any {kind.noun}"
    if kind.kind is BASE:
        return "the whole PostgreSQL cluster"
    return subject if kind.kind is DUMP else f"{kind.noun} {subject}"


def objectives_of(kind: BackupKind, spec: Spec) -> Objectives:
    """Return what a subject of a kind is held to: `objectives.rpo`, or what its own schedule promises."""
    if kind.kind is BASE:
        promised = wal_promise(spec.backup.database.wal_archiving)
    else:
        promised = kind.schedule(spec).longest_gap(spec.time_zone) + SLACK
    return Objectives(rpo=spec.objectives.rpo or promised, rto=spec.objectives.rto)


def next_step(kind: BackupKind, spec: Spec, now: datetime) -> NextStep:
    """Return what the schedules do next about a kind."""
    steps = {"backup": kind.schedule(spec), "proof": spec.proof.schedule}
    return min(
        (NextStep(what, schedule.next_after(now, spec.time_zone)) for what, schedule in steps.items()),
        key=lambda step: step.at,
    )
