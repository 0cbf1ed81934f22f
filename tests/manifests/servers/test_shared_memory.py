"""/dev/shm of a node holds what its own settings may ask for, in compose and in the cluster."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import yaml

from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.manifests.servers.postgres import shared_memory
from synapse_ops.spec.loading import check_text
from synapse_ops.spec.units import parse_size


def settings_of(conf: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+) = (\S+)$", conf, re.MULTILINE))


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
    told = settings_of(conf)
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


def test_a_real_server_asks_for_what_is_reckoned(fresh_database: Callable[..., str]) -> None:
    """The largest that one join takes, with the rendered settings, times every connection of the application. Segments
    grow by doubling: what is taken is more than what is used.
    """
    loaded, faults = check_text("resources: {limits: {memory: 1Gi}}\n", Path("spec.yaml"))
    assert loaded is not None, faults
    told = settings_of(render_bundle(loaded.spec).by_path["postgres/primary/postgresql.conf"].text)
    names = ("work_mem", "hash_mem_multiplier", "max_parallel_workers_per_gather", "maintenance_work_mem")
    largest, done = 0, threading.Event()
    with psycopg.connect(fresh_database(), autocommit=True) as connection:
        for name in names:
            connection.execute(f"set {name} = '{told[name]}'".encode())
        for name in ("parallel_setup_cost", "parallel_tuple_cost", "min_parallel_table_scan_size", "enable_mergejoin"):
            connection.execute(f"set {name} = 0".encode())
        connection.execute("create table a as select g as id, repeat('x', 40) || g as t from generate_series(1, 4e5) g")
        connection.execute("create table b as select * from a")
        connection.execute("analyze a, b")

        def join() -> None:
            try:
                connection.execute("select from a join b using (id) where b.t <> a.t || 'x' limit 1 offset 300000")
            finally:
                done.set()

        maps = Path(f"/proc/{connection.info.backend_pid}/maps")
        thread = threading.Thread(target=join)
        thread.start()
        while not done.wait(0.001):
            found = re.findall(r"^(\w+)-(\w+) .* /dev/shm/PostgreSQL\.", maps.read_text(), re.MULTILINE)
            largest = max(largest, sum(int(end, 16) - int(start, 16) for start, end in found))
        thread.join(10)

    reckoned = int(told["work_mem"].removesuffix("kB")) * 1024 * 2 * 3
    assert reckoned / 2 < largest < reckoned * 1.5
    maintenance = int(told["maintenance_work_mem"].removesuffix("kB")) << 10
    assert largest * loaded.spec.database.max_connections + maintenance < shared_memory(loaded.spec)
