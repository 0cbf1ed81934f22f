"""The pages of Dagster's UI as the queries that it sends: taken from the installed webserver's own JavaScript.

A page is timed as its queries one after another over one connection; the UI sends some of them at once. The guard is in
between, as in use.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import dagster_webserver
import httpx

from synapse_ops.services.dagster.service import DagsterService

Query = tuple[str, Mapping[str, object]]
TIMEOUT_S = 120.0
_BEGIN = re.compile(r'\\n\s*(?:query|fragment) ([A-Z]\w*)[^{}"]*\{')
_SPREAD = re.compile(r"\.\.\.\s*([A-Z]\w*)")


def pages(assets: Sequence[Sequence[str]], partitioned: str) -> dict[str, list[Query]]:
    """Return the queries of each page. assets: paths of all keys. partitioned: the asset whose page is opened."""
    keys = {"assetKeys": [{"path": list(path)} for path in assets]}
    one = {"assetKey": {"path": [partitioned]}}
    kinds = ["MATERIALIZATION", "FAILED_TO_MATERIALIZE", "OBSERVATION"]
    location = {"name": "synapse_ops"}
    feed = {"limit": 30, "filter": {}, "view": "ROOTS"}
    tabs = {
        "queuedFilter": {"statuses": ["QUEUED"]},
        "inProgressFilter": {"statuses": ["NOT_STARTED", "STARTING", "STARTED", "CANCELING"]},
        "view": "ROOTS",
    }
    return {
        "start of the UI": [("LocationWorkspaceQuery", location), ("LocationWorkspaceAssetsQuery", location)],
        "asset catalog": [
            ("AssetRecordsQuery", {"limit": 1000}),
            ("AssetCatalogTableQuery", {"limit": 1000}),
            ("AssetHealthQuery", keys),
            ("AssetsFreshnessInfoQuery", keys),
        ],
        "lineage of all assets": [
            ("LocationWorkspaceAssetsQuery", location),
            ("AssetGraphLiveQuery", keys),
            ("AssetStaleStatusDataQuery", keys),
            ("AssetHealthQuery", keys),
        ],
        "runs": [("RunsFeedRootQuery", feed), ("RunFeedTabsCountQuery", tabs)],
        "a partitioned asset": [
            ("AssetViewDefinitionQuery", one),
            ("PartitionHealthQuery", one),
            ("LatestAssetPartitionsQuery", {**one, "limit": 50}),
            ("AssetOverviewMetadataEventsQuery", one),
            ("RecentAssetEventsQuery", {**one, "limit": 100, "eventTypeSelectors": kinds}),
            ("AssetChecksQuery", one),
            ("AssetHealthQuery", {"assetKeys": [one["assetKey"]]}),
        ],
    }


def measure_pages(
    service: DagsterService, assets: Sequence[Sequence[str]], partitioned: str, rounds: int, tell: Callable[[str], None]
) -> list[dict[str, object]]:
    """Return a row for each page: p50 and p95 of its seconds, its bytes, and its slowest query."""
    rows: list[dict[str, object]] = []
    origin = f"http://127.0.0.1:{service.port}"
    with httpx.Client(base_url=origin, headers={"Origin": origin}, timeout=TIMEOUT_S, trust_env=False) as client:
        client.get(service.new_url(), follow_redirects=True).raise_for_status()
        for page, queries in pages(assets, partitioned).items():
            totals, each = [], dict[str, list[float]]()
            size = 0
            for number in range(rounds + 1):
                spent, size = 0.0, 0
                for name, variables in queries:
                    took, length = _ask(client, name, variables)
                    spent, size = spent + took, size + length
                    each.setdefault(name, []).append(took)
                if number:  # the first one fills caches
                    totals.append(spent)
            slowest = max(each, key=lambda name: statistics.median(each[name]))
            row: dict[str, object] = {
                "page": page,
                "queries": len(queries),
                "p50_ms": round(statistics.median(totals) * 1000),
                "p95_ms": round(percentile(totals, 0.95) * 1000),
                "kib": round(size / 1024, 1),
                "slowest_query": slowest,
                "slowest_p50_ms": round(statistics.median(each[slowest]) * 1000),
            }
            rows.append(row)
            tell(f"page {page}: p50 {row['p50_ms']} ms, {row['kib']} KiB")
    return rows


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _ask(client: httpx.Client, name: str, variables: Mapping[str, object]) -> tuple[float, int]:
    body = {"operationName": name, "query": document(name), "variables": variables}
    began_s = time.perf_counter()
    reply = client.post("/graphql", json=body)
    took_s = time.perf_counter() - began_s
    found: dict[str, Any] = reply.json()
    if reply.status_code != httpx.codes.OK or "errors" in found:
        raise SystemExit(f"{name}: {reply.status_code} {str(found.get('errors'))[:500]}")
    return took_s, len(reply.content)


@cache
def document(name: str) -> str:
    """Return a query of the UI with all fragments that it uses."""
    found = _documents()
    wanted, parts = [name], dict[str, str]()
    while wanted:
        part = wanted.pop()
        if part in parts:
            continue
        if part not in found:
            raise SystemExit(f"this webserver's UI has no {part}: its version differs from the one measured")
        parts[part] = found[part]
        wanted += _SPREAD.findall(found[part])
    return "\n".join(parts.values())


@cache
def _documents() -> dict[str, str]:
    """Return every query and fragment in the UI's JavaScript, by name."""
    folder = Path(str(dagster_webserver.__file__)).parent / "webapp" / "build" / "_next" / "static"
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.js")):
        text = path.read_text(encoding="utf-8")
        for match in _BEGIN.finditer(text):
            end = _end_of_block(text, match.end() - 1)
            found.setdefault(match.group(1), text[match.start() : end].replace("\\n", "\n"))
    return found


def _end_of_block(text: str, start: int) -> int:
    depth = 0
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    return len(text)
