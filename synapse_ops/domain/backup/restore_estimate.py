"""How long a restore will take and how much disk it needs: decided from what was measured, never hoped.

Both numbers are shown before anything is done, and both err on the careful side: a prediction that is too long costs a
raised eyebrow, one that is too short costs the objective.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import median

from synapse_ops.domain.backup.catalog import CatalogEntry

HISTORY_LIMIT = 20  # the machine of a year ago says little about today's; 20 daily proofs are three weeks
DISTINCT_RATIO = 1.1  # two sizes closer than 10 % say more about noise than about the slope
EMPTY_CLUSTER_BYTES = 96 * 1024 * 1024  # initdb's own files, one more template copy and the log
REBUILD_FACTOR = 1.15  # sort files of the largest index builds; a fresh copy itself is never larger than its source


def predict_restore_s(history: Sequence[tuple[int, float]], size_bytes: int) -> float | None:
    """Return the seconds that restoring a database of `size_bytes` will take, or None without any history.

    history: (size_bytes, restore_s) of former restores on this repository, newest first; only the first 20 count.
    Method: the Theil-Sen line (median of all pairwise slopes, then the median intercept), because one restore on a busy
    machine must not bend it, as a least-squares line would be. Slope and intercept are never negative. Where no two
    sizes differ by 10 % no slope can be measured: the median time then holds for smaller databases too (it may all be
    start-up), and grows in proportion for larger ones.
    Source: P. K. Sen, 1968, "Estimates of the regression coefficient based on Kendall's tau".
    """
    points = [(size, seconds) for size, seconds in history[:HISTORY_LIMIT] if size > 0 and seconds >= 0]
    if not points:
        return None
    slopes = [
        (second[1] - first[1]) / (second[0] - first[0])
        for first, second in combinations(sorted(points), 2)
        if second[0] >= first[0] * DISTINCT_RATIO
    ]
    if not slopes:
        typical_size = median(size for size, _ in points)
        return median(seconds for _, seconds in points) * max(1.0, size_bytes / typical_size)
    slope = max(0.0, median(slopes))
    intercept = max(0.0, median(seconds - slope * size for size, seconds in points))
    return intercept + slope * size_bytes


def predict_from(entries: Iterable[CatalogEntry], size_bytes: int) -> float | None:
    """Return what `predict_restore_s` does, by the proofs of `entries`: backups of one kind, newest first."""
    history = [(entry.source_size_bytes, entry.restore_s) for entry in entries if entry.restore_s is not None]
    return predict_restore_s(history, size_bytes)


def disk_needed_bytes(database_size_bytes: int, *, wal_limit_bytes: int) -> int:
    """Return the free bytes that a restore of a database of this size asks for before it begins.

    wal_limit_bytes: the server's max_wal_size; WAL may reach it between two checkpoints, never more than is written.
    """
    wal_bytes = min(wal_limit_bytes, database_size_bytes)
    return int(database_size_bytes * REBUILD_FACTOR) + wal_bytes + EMPTY_CLUSTER_BYTES


def wal_limit_for(database_size_bytes: int) -> int:
    """Return a max_wal_size (256 MiB to 4 GiB, in bytes) that spares a restore checkpoints and a host its disk."""
    least, most = 256 * 1024 * 1024, 4 * 1024 * 1024 * 1024
    return max(least, min(most, database_size_bytes))
