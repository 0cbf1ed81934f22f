"""/dev/shm of a node holds what its own settings may ask for, in compose and in the cluster."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.spec.loading import check_text
from synapse_ops.spec.units import parse_size


@pytest.mark.parametrize(("memory", "connections"), [("1Gi", 20), ("4Gi", 20), ("64Gi", 20), ("64Gi", 400)])
def test_each_connection_may_join_in_parallel(memory: str, connections: int) -> None:
    """Three of eight such joins failed in the usual 256m: "could not resize shared memory segment". What does not fit
    beside shared_buffers fails as a query; beyond the memory limit the kernel would kill the server.
    """
    text = json.dumps(
        {"resources": {"limits": {"memory": memory}}, "database": {"max_connections": connections, "pool_size": 5}}
    )
    loaded, faults = check_text(text, Path("spec.yaml"))
    assert loaded is not None, faults
    documents = render_bundle(loaded.spec).by_path
    conf = documents["postgres/primary/postgresql.conf"].text
    told = dict(re.findall(r"^(\w+) = (\S+)$", conf, re.MULTILINE))
    size = {name: int(value.removesuffix("kB")) << 10 for name, value in told.items() if value.endswith("kB")}
    workers, multiplier = int(told["max_parallel_workers_per_gather"]), int(told["hash_mem_multiplier"])
    join = size["work_mem"] * multiplier * (workers + 1)
    wanted = join * int(told["max_connections"]) + size["maintenance_work_mem"]
    limit = parse_size(memory)
    services = yaml.load(documents["docker/compose.yaml"].text, yaml.CSafeLoader)["services"]
    sets = [
        found
        for found in yaml.load_all(documents["kubernetes/30-database.yaml"].text, yaml.CSafeLoader)
        if found["kind"] == "StatefulSet"
    ]

    for node in ("db-primary", "db-standby"):
        [found] = [each for each in sets if each["metadata"]["name"] == f"synapse-{node}"]
        volumes = {each["name"]: each for each in found["spec"]["template"]["spec"]["volumes"]}
        given = {parse_size(services[node]["shm_size"].replace("m", "Mi"))}
        given.add(parse_size(volumes["memory"]["emptyDir"]["sizeLimit"]))
        [room] = given
        assert room >= min(wanted, limit - size["shared_buffers"]) - (1 << 20)
        assert room + size["shared_buffers"] <= limit
        assert room >= 8 * join  # of the report
