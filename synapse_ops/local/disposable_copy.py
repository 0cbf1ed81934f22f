"""A disposable copy of the embedded stack for a drill: own ports, own data, own store, and gone afterwards.

It lies in `drills/<name>` of the state directory. What a killed drill left is swept by the next one: its servers end
with the thread that started them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from synapse_ops.domain.progress import ReportProgress
from synapse_ops.local.embedded_stack import RunningStack, reset_stack, start_stack
from synapse_ops.local.layout import find_layout
from synapse_ops.operations.recovery.drills import FOLDER
from synapse_ops.spec import Spec, load_spec
from synapse_ops.spec.units import format_duration

WITHOUT = frozenset({"ops", "redis", "qdrant"})  # what a failover of PostgreSQL does not need


@contextmanager
def disposable_copy(state_dir: Path, name: str, spec: Spec, progress: ReportProgress) -> Iterator[RunningStack]:
    """Run a new copy while the block runs: primary, standby, store, application and prober. Leaves nothing.

    spec: whose rules of failover the copy has; but it always fails over by itself, and as often as it is asked.
    The caller holds the lock of drills of this name. Raises what `start_stack` raises, and ConfigError.
    """
    folder = find_layout(state_dir).root / FOLDER / name
    reset_stack(folder)
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        # JSON is YAML: `start_stack` adds the addresses
        find_layout(folder).spec_file.write_text(json.dumps(spec_of_copy(spec)), encoding="utf-8")
        copy = start_stack(
            folder, die_with_us=True, without=WITHOUT if _waits(spec) else WITHOUT | {"wal"}, progress=progress
        )
        load_spec(copy.spec_path)  # else its prober would be silent for ever
        yield copy
    finally:
        reset_stack(folder)


def _waits(spec: Spec) -> bool:
    """Whether commits wait for the standby, which the WAL receiver sees to."""
    return spec.failover.synchronous == "standby"


def spec_of_copy(spec: Spec) -> dict[str, Any]:
    """Return a spec that sends no alarm."""
    rules = spec.failover
    return {
        "name": f"{spec.name}-drill"[-40:].strip("-"),
        "backup": {"database": {"wal_archiving": "continuous" if _waits(spec) else "off"}},
        "objectives": {"rto": format_duration(spec.objectives.rto)},  # a failover may not take longer
        "failover": {
            "automatic": True,
            "cool_down": "0s",
            "max_per_hour": 60,
            "timeout": format_duration(rules.timeout),
            "primary_start_timeout": format_duration(rules.primary_start_timeout),
            "max_lag_bytes": rules.max_lag_bytes,
            "synchronous": rules.synchronous,
        },
    }
