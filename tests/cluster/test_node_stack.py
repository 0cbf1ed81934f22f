"""The rendered stack of the example spec runs on a real kubelet: what a schema and an API server cannot know.

Images are those of tests/engine; each stand-in among them says so there. The spec differs from the example where two
cores need it (stack.py). No NetworkPolicy is enforced here: the connections that the stack makes are compared with
them.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from synapse_ops.manifests.stack.flows import flows
from tests.cluster import control_plane
from tests.cluster.applied import rendered
from tests.cluster.control_plane import NODE, Object, is_ready
from tests.cluster.stack import CLIENT, Stack, sockets_of

pytestmark = [pytest.mark.cluster, pytest.mark.node, pytest.mark.timeout(900)]

PATIENCE_S = 240.0  # for what hangs: quiet, nothing here takes longer than 70 s
until = partial(control_plane.until, timeout_s=PATIENCE_S)
FIRST_CHOSEN_PORT = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
PARTS = {"api", "worker", "db-primary", "db-standby", "redis", "qdrant", "synapse-ops", "wal-receiver"}


def test_every_part_of_the_stack_becomes_available_on_the_node(stack: Stack) -> None:
    pods = {part: stack.applied.pods(part) for part in PARTS}

    assert {part: len(found) for part, found in pods.items()} == dict.fromkeys(PARTS, 1) | {"api": 2, "worker": 2}
    assert all(is_ready(pod) and pod["spec"]["nodeName"] == NODE for found in pods.values() for pod in found)
    # it came before there was a primary, and waited
    assert {each["restartCount"] for each in pods["db-standby"][0]["status"]["containerStatuses"]} == {0}


def test_a_write_through_the_service_is_in_postgresql_and_qdrant_and_on_the_standby(stack: Stack) -> None:
    """From a pod, by the Service's name, through kube-proxy; then the row is read on the node that streams."""
    ask = (
        "import json, urllib.request as u;"
        "r = u.Request('http://synapse-api/generate', json.dumps({'prompt': 'told'}).encode(),"
        " {'Content-Type': 'application/json'});"
        "print(u.urlopen(r, timeout=10).read().decode())"
    )
    kept = json.loads(stack.execute("api", "api", "python", "-c", ask))

    found = stack.sql("db-primary", f"select prompt from documents where id = {int(kept['id'])}", "synapse")
    assert found == "told"
    until(lambda: stack.sql("db-standby", "select count(*) from documents", "synapse") == "1")
    vectors = json.loads(stack.get(f"http://synapse-api.{stack.namespace}/health/vectors"))
    assert vectors == {"status": "ok", "points": 1}


def test_the_standby_and_the_wal_receiver_stream_from_the_primary(stack: Stack) -> None:
    """Each by its own slot, over TLS, with the certificate's name verified."""
    query = """select application_name, state, ssl.version is not null from pg_stat_replication
      join pg_stat_ssl ssl using (pid) order by 1"""
    slots = "select slot_name, active from pg_replication_slots order by 1"

    assert stack.sql("db-primary", query).splitlines() == ["db-standby|streaming|t", "synapse-ops wal|streaming|t"]
    assert stack.sql("db-primary", slots).splitlines() == ["standby|t", "synapse_wal|t"]
    assert stack.sql("db-standby", "select pg_is_in_recovery()") == "t"


def test_no_process_of_the_stack_has_a_right_that_the_kernel_could_take(stack: Stack) -> None:
    """As the kernel has it: a numeric user, no capability, no new privileges, seccomp, a root that is read-only."""
    wrong, seen = [], 0
    for pod in (pod for part in PARTS for pod in stack.applied.pods(part)):
        for container, pids in stack.processes(pod).items():
            assert pids, (pod["metadata"]["name"], container)
            for pid in pids:
                try:
                    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                    mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
                except FileNotFoundError:  # a probe's command has ended
                    continue
                seen += 1
                root = next(line.split()[5] for line in mounts if line.split()[4] == "/")
                has = {
                    name: status[name].split()[0]
                    for name in ("Uid", "Gid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
                }
                has["root"] = root.split(",")[0]
                if has != {"Uid": "10001", "Gid": "10001", "CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1",
                           "Seccomp": "2", "root": "ro"}:  # fmt: skip
                    wrong.append((pod["metadata"]["name"], container, has))

    assert not wrong
    assert seen > 20


def test_every_target_of_the_rendered_prometheus_answers_with_metrics(stack: Stack) -> None:
    """Names, ports and Host headers as Prometheus would use them, from a pod of another namespace."""
    file = stack.applied.folder / "prometheus" / "prometheus.kubernetes.yml"
    jobs: list[Object] = YAML(typ="safe").load(file)["scrape_configs"]
    targets = {
        target
        for job in jobs
        for found in job.get("static_configs", ())
        for target in found["targets"]
        if f".{stack.namespace}.svc:" in target
    }
    targets |= {
        f"{name}:{found['port']}" for job in jobs for found in job.get("dns_sd_configs", ()) for name in found["names"]
    }

    silent = {target for target in targets if "# TYPE" not in stack.get(f"http://{target}/metrics")}

    assert not silent
    assert len(targets) >= 11


def test_the_prober_finds_every_server_of_the_stack_healthy(stack: Stack) -> None:
    """With the rendered spec, Secrets and names, and certificates of two days, which it finds short."""

    def states() -> dict[str, str]:
        address = f"http://synapse-synapse-ops.{stack.namespace}.svc:9109/health.json"
        return {name: each["state"] for name, each in json.loads(stack.get(address))["probes"].items()}

    expected = dict.fromkeys(
        ("api", "db", "server/db-primary", "server/db-standby", "server/replication", "server/redis", "server/qdrant",
         "server/object-store", "server/disk"), "healthy",
    ) | {"server/certificates": "degraded"}  # fmt: skip
    until(lambda: states() == expected, timeout_s=PATIENCE_S)


def test_the_wal_receiver_stores_what_is_written(stack: Stack) -> None:
    """What `synapse_ops_wal_durable_lsn_bytes` says is in the object store reaches the primary's position."""
    position = int(stack.sql("db-primary", "select pg_current_wal_lsn() - '0/0'::pg_lsn"))

    def durable() -> float:
        lines = stack.get(f"http://synapse-wal-receiver.{stack.namespace}.svc:9110/metrics").splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("synapse_ops_wal_durable_lsn_bytes "))

    until(lambda: durable() >= position)


def test_each_connection_that_the_stack_makes_is_one_of_the_flow_list(stack: Stack) -> None:
    """Nothing enforces a NetworkPolicy here. What they allow is that list (tests/manifests/consistency); what the
    kernel shows of connections between the pods must be in it, or a cluster that enforces them would cut it off.
    """
    pods = [(part, pod) for part in PARTS for pod in stack.applied.pods(part)]
    part_of = {pod["status"]["podIP"]: part for part, pod in pods}
    service = stack.node.plane.api.get(stack.applied.path("Service", "api")).json()["spec"]["clusterIP"]
    listed = {(flow.source, flow.target, flow.port) for flow in flows(stack.applied.spec)}
    expected = {(part, "db-primary", 5432) for part in ("db-standby", "wal-receiver", "api", "synapse-ops")}
    expected |= {("synapse-ops", "redis", 6379), ("synapse-ops", "qdrant", 6333), ("synapse-ops", "api", 8000)}
    seen = set[tuple[str, str, int]]()

    def look() -> bool:
        for part, pod in pods:
            pids = [pid for found in stack.processes(pod).values() for pid in found]
            for own, other, port in sockets_of(pids):
                # whoever connects has a port of the kernel's choice
                if other == service:
                    seen.add((part, "api", stack.applied.spec.server.port))
                elif other in part_of and own < FIRST_CHOSEN_PORT <= port:
                    seen.add((part_of[other], part, own))
                elif other in part_of and port < FIRST_CHOSEN_PORT <= own:
                    seen.add((part, part_of[other], port))
        return seen >= expected

    until(look)

    assert not {flow for flow in seen - listed if flow[0] != flow[1]}


def test_an_update_of_the_api_loses_no_request(stack: Stack, tmp_path: Path) -> None:
    """New pods are ready before old ones go, and those end after the Service has left them (`preStop`)."""
    url, end, told = f"http://synapse-api.{stack.namespace}/health", "/tmp/asked", list[str]()
    asking = threading.Thread(
        target=lambda: told.append(stack.node.execute(CLIENT, CLIENT, "/pod", "ask", url, end)), daemon=True
    )
    before = {pod["metadata"]["name"] for pod in stack.applied.pods("api")}
    asking.start()
    changed = stack.spec | {"worker": {"queue_size": 99}}
    update = rendered(stack.node.plane, tmp_path, "real", changed)

    update.apply()

    def is_done() -> bool:
        pods = stack.applied.pods("api")
        return len(pods) == 2 and all(is_ready(pod) and pod["metadata"]["name"] not in before for pod in pods)

    until(is_done, timeout_s=PATIENCE_S)
    # the old pods have a time to end in
    until(lambda: not before & {pod["metadata"]["name"] for pod in _all_pods(stack)}, timeout_s=PATIENCE_S)
    stack.node.execute(CLIENT, CLIENT, "/pod", "touch", end)
    asking.join(30)
    failed = [line for line in told[0].splitlines() if line.startswith("failed")]
    assert not failed
    assert int(told[0].split()[0]) > 20


def test_a_pod_whose_database_is_away_gets_no_request_and_is_not_restarted(stack: Stack) -> None:
    """Readiness asks /health/db: 503 takes the pod out of the Service, and back when the database answers again."""
    pod = stack.applied.pods("api")[0]
    name, address = pod["metadata"]["name"], pod["status"]["podIP"]
    path = f"/api/v1/namespaces/{stack.namespace}/pods/{name}"

    def run(command: str) -> str:
        return stack.node.execute(stack.namespace, name, "sh", "-c", command, container="api")

    run("cp /tmp/conninfo /tmp/kept; sed 's/synapse-db-[a-z]*:/absent:/g' /tmp/kept >/tmp/conninfo")
    stack.sql("db-primary", f"select pg_terminate_backend(pid) from pg_stat_activity where client_addr = '{address}'")
    try:
        stack.node.plane.when(path, lambda found: not is_ready(found), timeout_s=PATIENCE_S)
        until(lambda: address not in _serving(stack))
        assert stack.get(f"http://synapse-api.{stack.namespace}/health/db")
    finally:
        run("cat /tmp/kept >/tmp/conninfo")
    found = stack.node.plane.when(path, is_ready, timeout_s=PATIENCE_S)
    until(lambda: address in _serving(stack))
    assert [each["restartCount"] for each in found["status"]["containerStatuses"]] == [0, 0]


def test_an_api_that_hangs_is_started_again_while_the_other_pod_serves(stack: Stack) -> None:
    """Liveness asks /health: three times without an answer, and the container is ended and started."""
    pod = stack.applied.pods("api")[0]
    name = pod["metadata"]["name"]
    for pid in stack.processes(pod)["api"]:
        os.kill(pid, signal.SIGSTOP)

    def restarts(found: Object) -> int:
        return next(int(each["restartCount"]) for each in found["status"]["containerStatuses"] if each["name"] == "api")

    path = f"/api/v1/namespaces/{stack.namespace}/pods/{name}"
    before = restarts(pod)
    stack.node.plane.when(path, lambda found: restarts(found) > before, timeout_s=PATIENCE_S)
    stack.node.plane.when(path, is_ready, timeout_s=PATIENCE_S)


def test_a_killed_primary_passes_its_start_gate_and_the_standby_streams_again(stack: Stack) -> None:
    """It asks the standby and the prober, in the cluster, whether another took its place (docs/failover.md)."""
    pod = stack.applied.pods("db-primary")[0]
    begun = stack.sql("db-primary", "select pg_postmaster_start_time()")

    for pid in stack.processes(pod)["postgres"]:
        os.kill(pid, signal.SIGKILL)

    def is_back() -> bool:
        try:
            return stack.sql("db-primary", "select pg_postmaster_start_time()") not in (begun, "")
        except AssertionError:
            return False

    until(is_back, timeout_s=PATIENCE_S)
    assert stack.sql("db-primary", "select pg_is_in_recovery()") == "f"
    until(lambda: "db-standby" in stack.sql("db-primary", "select application_name from pg_stat_replication"))
    stack.await_available()


def _serving(stack: Stack) -> set[str]:
    """Return the addresses of pods to which the API's Service leads."""
    found: list[Any] = stack.node.plane.api.get(
        f"/apis/discovery.k8s.io/v1/namespaces/{stack.namespace}/endpointslices",
        params={"labelSelector": "kubernetes.io/service-name=synapse-api"},
    ).json()["items"]
    return {
        address
        for each in found
        for endpoint in each["endpoints"] or ()
        if endpoint["conditions"]["ready"]
        for address in endpoint["addresses"]
    }


def _all_pods(stack: Stack) -> Iterator[Object]:
    found = stack.node.plane.api.get(f"/api/v1/namespaces/{stack.namespace}/pods").json()["items"]
    yield from found
