"""The closing tables of the demo: read from the repositories, the prober's history and what the runs recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from synapse_ops.cli.tables import format_bytes
from synapse_ops.errors import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from synapse_ops.domain.backup.catalog import CatalogEntry
    from synapse_ops.operations.backup.expire import ExpiryPlan
    from synapse_ops.operations.backup_kinds import BackupKind
    from synapse_ops.operations.health.report import HealthReport
    from synapse_ops.operations.stack import Stack

SHOWN_BACKUPS = 3  # of each subject, the newest first


@dataclass(frozen=True)
class Protected:
    """What one repository holds. unproven: newest backups without proof, and subjects without a backup."""

    rows: tuple[tuple[str, ...], ...]
    backups: int
    plan: ExpiryPlan
    unproven: tuple[str, ...]

    @property
    def totals(self) -> str:
        totals = self.plan.totals
        left_overs = sum(row.taken_at is None and not row.removes for row in self.plan.entries)
        waiting = f"; {counted(left_overs, 'left-over')} of interrupted work in its grace" if left_overs else ""
        kept, expired = totals.kept - left_overs, totals.expired
        return f"{counted(self.backups, 'backup')}; plan {self.plan.digest} keeps {kept} and expires {expired}{waiting}"


def read_protected(kind: BackupKind, stack: Stack, subjects: tuple[str, ...], now: datetime) -> Protected:
    """Return rows and plan of one repository. subjects: what must have a proven newest backup."""
    from synapse_ops.operations.backup.catalog import read_catalog
    from synapse_ops.operations.backup.expire import make_expiry_plan
    from synapse_ops.operations.backup_kinds import read_wal

    repository = kind.repository(stack)
    catalog = read_catalog(repository).only(kind.name)
    plan = make_expiry_plan(repository, kind.policy(stack.spec), now, kind=kind.name, wal=read_wal)
    reasons = {row.place: row.reason for row in plan.entries}
    rows: list[tuple[str, ...]] = []
    unproven: list[str] = []
    for subject in subjects:
        entries = catalog.of_subject(subject)
        if not entries:
            unproven.append(f"{subject}: no backup")
        elif entries[0].proven_at is None:
            unproven.append(f"{subject}: {entries[0].doubt}")
        for entry in entries[:SHOWN_BACKUPS]:
            url = repository.store.full_url(entry.place.prefix)
            rows.append(_cells(kind, url, entry, reasons.get(entry.place, "not in the plan"), now))
    return Protected(tuple(rows), len(catalog.backups), plan, tuple(unproven))


def _cells(kind: BackupKind, url: str, entry: CatalogEntry, reason: str, now: datetime) -> tuple[str, ...]:
    name = "" if entry.place.subject == kind.word else f" {entry.place.subject}"
    taken_at = entry.database_time or entry.started_at
    return (
        f"{kind.noun}{name}\n{entry.item_count:,} {kind.items}",
        url,
        f"{format_bytes(entry.source_size_bytes)}\n-> {format_bytes(entry.size_bytes)} stored",
        f"{(now - taken_at).total_seconds():.0f} s",
        f"{entry.restore_s:.1f} s" if entry.proven_at and entry.restore_s is not None else f"NOT: {entry.doubt}",
        reason,
    )


def protected_table(found: tuple[Protected, ...]) -> RenderableType:
    """Return the table of all repositories."""
    return _table(
        "What is protected now",
        ("what", "where", "size", "RPO now", "proven by a restore in", "retention keeps it because"),
        (row for protected in found for row in protected.rows),
    )


def health_table(report: HealthReport) -> RenderableType:
    """Return one row for each state, with the names of what is in it and, unless it is well, why."""
    from synapse_ops.domain.health.states import State

    def rows() -> Iterator[tuple[str, ...]]:
        for state in State:
            found = report.of(state)
            if not found:
                continue
            names = ", ".join(row.probe.name for row in found)
            reasons = "\n".join(f"{row.probe.name}: {row.condition.reason}" for row in found if not row.is_healthy)
            yield f"{len(found)} {state}", names, reasons or "every one answered within its timeout"

    return _table("Health checks, each at its own interval", ("state", "what", "why"), rows())


def cleanup_table(recorded: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """recorded: what the cleanup's assets said, by kind. Columns: kind, what was done, what that freed."""

    def rows() -> Iterator[tuple[str, ...]]:
        for kind, metadata in recorded.items():
            done = [
                f"{name.removeprefix('done_').replace('_', '-')} {count:,}"
                for name, count in metadata.items()
                if name.startswith("done_")
            ]
            freed, digest = format_bytes(int(metadata["freed_bytes"])), str(metadata["plan_digest"])
            yield kind, ", ".join(done) or "nothing was old enough", f"{metadata['skipped']:,}", freed, digest

    columns = ("what", "done", "skipped: changed since the plan", "freed", "exactly the plan")
    return _table("Cleaned up", columns, rows())


def _table(title: str, columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> RenderableType:
    from rich.table import Table

    table = Table(title=f"\n{title}", title_justify="left", show_lines=True)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
