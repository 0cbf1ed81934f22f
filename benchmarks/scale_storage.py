"""What the benchmark of scale reads from Dagster's own storage, and how it tells its progress."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg

from benchmarks.scale_site import Site

Rows = list[dict[str, object]]


def ask(site: Site, statement: str, values: Sequence[object] = ()) -> list[Any]:
    """Ask Dagster's storage."""
    url = (site.state_dir / "secrets" / "dagster-storage.url").read_text(encoding="utf-8").strip()
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement, list(values)).fetchall()


def newest_event(site: Site) -> int:
    return int(ask(site, "SELECT coalesce(max(id), 0) FROM event_logs")[0][0])


def events_since(site: Site, newest: int) -> Rows:
    """Return how many events of each kind and asset were written after one, and how large they are on average."""
    rows = ask(
        site,
        "SELECT coalesce(dagster_event_type, 'log line'), coalesce(asset_key, ''), count(*), avg(octet_length(event)) "
        "FROM event_logs WHERE id > %s GROUP BY 1, 2 ORDER BY sum(octet_length(event)) DESC LIMIT 12",
        [newest],
    )
    return [
        {"kind": kind, "asset": asset, "rows": count, "mean_bytes": round(mean)} for kind, asset, count, mean in rows
    ]


def table_sizes(site: Site) -> Rows:
    rows = ask(
        site,
        "SELECT relname, n_live_tup, pg_total_relation_size(relid) FROM pg_stat_user_tables ORDER BY 3 DESC LIMIT 6",
    )
    return [{"table": name, "rows": count, "mib": round(size / 2**20, 1)} for name, count, size in rows]


def tell(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)
