"""Rows and vectors held against each other: what one store has and the other lacks. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

MOST_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """One table and its collection. rows, points: counts; without_point, without_row: keys, as text, sorted."""

    table: str
    collection: str
    rows: int
    points: int
    without_point: tuple[str, ...]
    without_row: tuple[str, ...]

    @property
    def sentence(self) -> str:
        missing, orphans = len(self.without_point), len(self.without_row)
        if not missing and not orphans:
            return (
                f"{self.table}: every one of {self.rows} rows has its point in {self.collection}, and no point is left"
            )
        examples = [*self.without_point[:MOST_SHOWN], *self.without_row[:MOST_SHOWN]]
        return (
            f"{self.table}: {missing} of {self.rows} rows have no point in {self.collection}, "
            f"{orphans} of {self.points} points have no row, such as {', '.join(examples)}"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "table": self.table,
            "collection": self.collection,
            "rows": self.rows,
            "points": self.points,
            "rows_without_point": len(self.without_point),
            "points_without_row": len(self.without_row),
        }


def reconcile(table: str, collection: str, keys: Collection[str], ids: Collection[str]) -> Reconciliation:
    """Return what is not in both. keys: of the rows, ids: of the points, as text; each without duplicates."""
    rows, points = set(keys), set(ids)
    return Reconciliation(
        table, collection, len(rows), len(points), tuple(sorted(rows - points)), tuple(sorted(points - rows))
    )
