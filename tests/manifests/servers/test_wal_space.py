"""WAL that waits for a reader leaves room on the volume that is rendered."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from synapse_ops.domain.database.wal_space import wal_space
from synapse_ops.manifests.servers.postgres import postgresql_conf
from synapse_ops.spec.loading import check_text

MIB = 1 << 20


@pytest.mark.parametrize("volume_bytes", [1 << 30, 20 << 30, 100 << 30])
def test_wal_that_nobody_reads_leaves_room_on_the_volume_that_is_rendered(volume_bytes: int) -> None:
    """10GB for a slot on a volume of 1Gi end in a panic of the primary; so do 4GB between two checkpoints."""
    loaded, faults = check_text(json.dumps({"kubernetes": {"storage": {"database": volume_bytes}}}), Path("spec.yaml"))
    assert loaded is not None, faults
    conf = postgresql_conf(loaded.spec, "primary")
    names = ("max_slot_wal_keep_size", "max_wal_size", "wal_keep_size")
    shown = {name: re.search(rf"^{name} = (\d+)(MB|GB)$", conf, re.MULTILINE) for name in names}
    size = {name: int(found[1]) << (30 if found[2] == "GB" else 20) for name, found in shown.items() if found}

    assert size["max_slot_wal_keep_size"] + size["max_wal_size"] <= volume_bytes / 2
    assert size["wal_keep_size"] < size["max_slot_wal_keep_size"]
    if volume_bytes == 100 << 30:
        assert [size[name] >> 30 for name in names] == [10, 4, 1]


def test_the_least_space_is_one_with_which_a_server_starts() -> None:
    """PostgreSQL wants max_wal_size to hold two segments of 16 MiB, and min_wal_size, 80MB, below it."""
    least = wal_space(MIB)

    assert (least.slot_bytes, least.keep_bytes, least.checkpoint_bytes) == (128 * MIB, 0, 80 * MIB)
