"""Prometheus text under the real server's names, as far as this server has such values."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synapse_ops.local.qdrant_server.endpoint import Server

Sample = tuple[dict[str, str], float]


def metrics_text(server: Server) -> str:
    """Return the whole page."""
    collections = server.store.open_collections()
    vectors = [
        ({"collection": one.name, "vector": vector}, count)
        for one in collections
        for vector, count in one.vector_counts().items()
    ]
    snapshots = server.snapshots
    families: list[tuple[str, str, str, list[Sample]]] = [
        ("app_info", "gauge", "information about qdrant server", [({"name": "qdrant", "version": server.version}, 1)]),
        ("collections_total", "gauge", "number of collections", [({}, len(collections))]),
        ("collections_vector_total", "gauge", "vectors in all collections", [({}, sum(n for _, n in vectors))]),
        ("collection_vectors", "gauge", "vectors grouped by vector name", list(vectors)),
        (
            "collection_points",
            "gauge",
            "approximate amount of points per collection",
            [({"id": one.name}, one.engine.info().points_count) for one in collections],
        ),
        ("cluster_enabled", "gauge", "is cluster support enabled", [({}, 0)]),
        ("rest_responses_total", "counter", "total number of responses", _responses(server)),
        ("memory_resident_bytes", "gauge", "bytes in physically resident pages", [({}, _resident_bytes())]),
    ]
    for name, kind, about, counter in (
        ("snapshot_creation_running", "gauge", "snapshot creations that are running", snapshots.running),
        ("snapshot_recovery_running", "gauge", "snapshot recoveries that are running", snapshots.recovering),
        ("snapshot_created_total", "counter", "snapshots created", snapshots.created),
    ):
        families.append((name, kind, about, [({"id": one.name}, counter[one.name]) for one in collections]))
    return "".join(_family(*family) for family in families)


def _responses(server: Server) -> list[Sample]:
    return [
        ({"method": method, "endpoint": endpoint, "status": str(status)}, count)
        for (method, endpoint, status), count in sorted(server.responses.items())
    ]


def _family(name: str, kind: str, about: str, samples: list[Sample]) -> str:
    lines = [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        lines.append(f"{name}{{{inner}}} {value}" if inner else f"{name} {value}")
    return "\n".join(lines) + "\n" if samples else ""


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - one line of the kernel's
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
