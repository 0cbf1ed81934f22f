"""Rendering: what one spec costs, and whether a thousand cost a thousand times as much: `python -m benchmarks.render`.

Each spec is another one: the ways in which tests/manifests/specs.py differs from the default, each with a name, ports,
sizes and rules of its own. Steps are timed apart: loading (text to spec), rendering (spec to every document), judging
(the rules without which nothing is written). CPU time of this process, so that a busy host weighs little;
memory is what the process grows by while a batch passes. Aims: loading and rendering of one spec under
150 ms; the cost of a spec in the last batch at most 1.2 times that of the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.manifests.consistency import check_consistency
from synapse_ops.spec.loading import check_text
from tests.manifests.specs import CHANGES

BATCHES = (125, 250, 500, 1000)
RENDER_TARGET_S, GROWTH_TARGET = 0.150, 1.2
MIB = 1024 * 1024
EXAMPLE = Path(__file__).parents[1] / "examples" / "synapse" / "infrastructure.yaml"


@dataclass(frozen=True)
class Cost:
    """CPU seconds of one spec, and the bytes of its documents."""

    load_s: float
    render_s: float
    judge_s: float
    size_bytes: int


def different_specs(count: int, seed: int) -> Iterator[str]:
    """Yield the texts of `count` specs, no two alike, also between seeds."""
    changes = list(CHANGES.values())
    for number in range(count):
        spec: dict[str, Any] = json.loads(json.dumps(changes[number % len(changes)]))
        spec.setdefault("name", f"stack-{seed}-{number}")
        spec.setdefault("worker", {"processes": 1 + number % 7, "threads": 1 + seed % 5, "queue_size": 1 + number})
        spec.setdefault(
            "alerts",
            [{"name": f"busy_{n}", "condition": f"cpu > {50 + n}%", "duration": "5m"} for n in range(number % 9)],
        )
        spec["cleanup"] = {"logs": {"retention": f"{1 + number % 400}d"}}
        yield json.dumps(spec)


def cost_of(text: str) -> Cost:
    """Load, render and judge one spec. Exits when it does not load or does not hold together."""
    begun = time.process_time()
    loaded, faults = check_text(text, Path("spec.yaml"))
    if loaded is None:
        sys.exit(f"not a valid spec: {faults}")
    at_load = time.process_time()
    bundle = render_bundle(loaded.spec)
    at_render = time.process_time()
    errors = [one for one in check_consistency(bundle, loaded.spec) if one.severity == "error"]
    ended = time.process_time()
    if errors:
        sys.exit(f"the documents do not agree: {errors}")
    size = sum(len(document.data) for document in bundle.documents)
    return Cost(at_load - begun, at_render - at_load, ended - at_render, size)


def main() -> None:
    """Measure, print, and exit 1 when an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=BATCHES[-1], help="specs of the largest batch")
    most = parser.parse_args().most
    first = cost_of(EXAMPLE.read_text(encoding="utf-8"))
    print(f"the example spec, first of the process: {_steps(first.load_s, first.render_s, first.judge_s)}")
    again = [cost_of(EXAMPLE.read_text(encoding="utf-8")) for _ in range(5)]
    load_s, render_s, judge_s = (
        statistics.median(getattr(one, step) for one in again) for step in ("load_s", "render_s", "judge_s")
    )
    print(
        f"again, median of 5:                    {_steps(load_s, render_s, judge_s)}; {first.size_bytes / MIB:.1f} MiB"
    )
    per_spec: list[float] = []
    grown = 0
    for seed, count in enumerate(batch for batch in BATCHES if batch <= most):
        before = psutil.Process().memory_info().rss
        costs = [cost_of(text) for text in different_specs(count, seed)]
        grown = psutil.Process().memory_info().rss - before
        per_spec.append(statistics.fmean(one.load_s + one.render_s + one.judge_s for one in costs))
        steps = (statistics.fmean(getattr(one, step) for one in costs) for step in ("load_s", "render_s", "judge_s"))
        print(
            f"{count:5} specs: {per_spec[-1] * count:6.1f} s CPU, each {_steps(*steps)}; memory +{grown / MIB:.1f} MiB"
        )
    growth = per_spec[-1] / per_spec[0]
    print(f"a spec in the last batch costs {growth:.2f} of one in the first, aim {GROWTH_TARGET}")
    sys.exit(0 if load_s + render_s < RENDER_TARGET_S and growth <= GROWTH_TARGET else 1)


def _steps(load_s: float, render_s: float, judge_s: float) -> str:
    return f"load {load_s * 1000:.0f}, render {render_s * 1000:.0f}, judge {judge_s * 1000:.0f} ms"


if __name__ == "__main__":
    main()
