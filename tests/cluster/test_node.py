"""A real node: what it runs, that it takes nothing from the machine, and that it leaves nothing.

The pods run a program of ours (requirements/cluster/pod). What is rendered runs in test_node_stack.py.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from synapse_ops.systems.host.processes import ProcessMark
from tests.cluster import control_plane
from tests.cluster.control_plane import PROGRAMS, Object, is_ready
from tests.cluster.node import POD_IMAGE, STOP_TIMEOUT_S, Node, clear_left_overs, why_no_node

pytestmark = [pytest.mark.cluster, pytest.mark.node]

until = partial(control_plane.until, timeout_s=30.0)

NAMESPACE = "pods"
SETTINGS = [
    Path("/proc/sys") / name
    for name in (
        "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys",
        "kernel/keys/root_maxbytes", "net/ipv4/ip_forward", "net/netfilter/nf_conntrack_max",
    )
]  # fmt: skip
PROBE: dict[str, Any] = {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1, "failureThreshold": 2}

OWNER = """
import sys, time
from pathlib import Path
from tests.cluster.node import running_node
with running_node(Path(sys.argv[1])) as node:
    print(node.ground.folder, node.ground.first.pid, node.processes["kubelet"].pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def pods(node: Node) -> dict[str, Object]:
    """Two pods that answer requests, of one Service."""
    node.make_namespace(NAMESPACE)
    made = {name: pod(name, {"readinessProbe": PROBE}, labels={"part": "answers"}) for name in ("first", "second")}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "answers", "namespace": NAMESPACE},
        "spec": {"selector": {"part": "answers"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    node.plane.apply(*made.values(), service)
    return {name: node.plane.when(path(name), is_ready) for name in made}


def pod(name: str, more: dict[str, Any], **metadata: Any) -> Object:
    container = {"name": "answer", "image": POD_IMAGE, "args": ["answer"], "env": [{"name": "PORT", "value": "8000"}]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE} | metadata,
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container | more]},
    }


def path(name: str) -> str:
    return f"/api/v1/namespaces/{NAMESPACE}/pods/{name}"


def get(node: Node, url: str) -> str:
    """Return what a pod is answered, empty when it is not."""
    try:
        return node.execute(NAMESPACE, "first", "/pod", "get", url)
    except AssertionError:
        return ""


@pytest.mark.usefixtures("pods")
def test_a_pod_reaches_another_by_the_name_of_its_service(node: Node) -> None:
    """Through the cluster's name, the address of the Service and kube-proxy; both pods are reached, oneself too."""
    names = set()

    def both_answered() -> bool:
        names.add(get(node, "http://answers/path"))
        return {"first /path\n", "second /path\n"} <= names

    until(both_answered)
    assert get(node, f"http://answers.{NAMESPACE}.svc.cluster.local/") in ("first /\n", "second /\n")
    assert get(node, "http://absent/") == ""


@pytest.mark.usefixtures("pods")
def test_a_pod_that_is_not_ready_gets_no_request_until_it_is(node: Node) -> None:
    """A readiness probe that is answered 503 takes it out of the Service, and does not restart it."""
    node.execute(NAMESPACE, "second", "/pod", "touch", "/tmp/unwell")
    node.plane.when(path("second"), lambda found: not is_ready(found))
    until(lambda: all(get(node, "http://answers/") == "first /\n" for _ in range(8)))

    node.execute(NAMESPACE, "second", "/pod", "rm", "/tmp/unwell")

    found = node.plane.when(path("second"), is_ready)
    assert found["status"]["containerStatuses"][0]["restartCount"] == 0
    until(lambda: get(node, "http://answers/") == "second /\n")


def test_a_container_whose_liveness_probe_fails_is_started_again(node: Node, pods: dict[str, Object]) -> None:
    assert pods
    node.plane.apply(pod("unwell", {"livenessProbe": PROBE}))
    node.plane.when(path("unwell"), is_ready)

    node.execute(NAMESPACE, "unwell", "/pod", "touch", "/tmp/unwell")

    node.plane.when(path("unwell"), lambda found: found["status"]["containerStatuses"][0]["restartCount"] > 0)
    node.plane.when(path("unwell"), is_ready)  # the file was in the container that has gone


@pytest.mark.usefixtures("pods")
def test_kubectl_reads_the_log_of_a_pod_and_forwards_a_port_to_it(node: Node) -> None:
    """The API server asks the kubelet as a client whose certificate it trusts."""
    assert node.plane.kubectl(f"--namespace={NAMESPACE}", "logs", "first") == "answers on port 8000\n"

    with subprocess.Popen(
        [PROGRAMS / "kubectl", f"--kubeconfig={node.plane.folder / 'admin'}", f"--namespace={NAMESPACE}",
         "port-forward", "pod/second", ":8000"],
        stdout=subprocess.PIPE, text=True,
    ) as forward:  # fmt: skip
        assert forward.stdout is not None
        said = re.search(r"127\.0\.0\.1:(\d+)", forward.stdout.readline())
        assert said is not None
        answer = httpx.get(f"http://127.0.0.1:{said[1]}/there", trust_env=False)
        forward.send_signal(signal.SIGINT)

    assert answer.text == "second /there\n"


def test_a_claim_gets_a_volume_that_outlives_its_pod_and_goes_with_the_claim(
    node: Node, pods: dict[str, Object]
) -> None:
    assert pods
    claim: Object = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data", "namespace": NAMESPACE},
        "spec": {"accessModes": ["ReadWriteOncePod"], "resources": {"requests": {"storage": "1Mi"}}},
    }
    writer = pod("writer", {"volumeMounts": [{"name": "data", "mountPath": "/data"}]})
    writer["spec"]["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    node.plane.apply(claim, writer)
    folder = node.make_volume(NAMESPACE, "data")
    node.plane.when(path("writer"), is_ready)

    node.execute(NAMESPACE, "writer", "/pod", "touch", "/data/written")

    node.plane.kubectl(f"--namespace={NAMESPACE}", "delete", "pod/writer", "--wait")
    assert [each.name for each in folder.iterdir()] == ["written"]
    node.plane.kubectl(f"--namespace={NAMESPACE}", "delete", "pvc/data", "--wait")
    until(lambda: not folder.exists())


def test_a_pod_is_limited_to_the_memory_that_it_may_have(node: Node, pods: dict[str, Object]) -> None:
    """The kernel's own limit, in a cgroup below the node's."""
    assert pods
    node.plane.apply(pod("limited", {"resources": {"limits": {"memory": "64Mi"}}}))
    found = node.plane.when(path("limited"), is_ready)

    kept = [
        each.read_text().strip()
        for name in ("memory.limit_in_bytes", "memory.max")
        for each in node.ground.cgroup.glob(f"**/pod{found['metadata']['uid']}/{name}")
    ]

    assert kept == [str(64 << 20)]


def test_tests_that_are_killed_leave_nothing_but_what_the_next_start_removes(tmp_path: Path) -> None:
    """Processes, mounts and the network go with the kernel; folders and cgroups with the next start. Settings stay."""
    reason = why_no_node()
    if reason is not None:
        pytest.skip(reason)
    before = [setting.read_text() for setting in SETTINGS if setting.exists()]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path], cwd=root, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        folder, *pids = owner.stdout.readline().split()
        marks = [mark for pid in pids if (mark := ProcessMark.of(int(pid))) is not None]
        links = set(Path("/sys/class/net").iterdir())
        during = [setting.read_text() for setting in SETTINGS if setting.exists()]
        owner.kill()

    assert len(marks) == 2, (tmp_path / "kubelet.log").read_text()[-2000:]
    assert all(mark.wait_gone(STOP_TIMEOUT_S) for mark in marks)
    until(lambda: len(links - set(Path("/sys/class/net").iterdir())) == 1)
    assert folder not in Path("/proc/mounts").read_text()
    assert before == during == [setting.read_text() for setting in SETTINGS if setting.exists()]
    clear_left_overs()
    assert not Path(folder).exists()
    assert not [
        *Path("/sys/fs/cgroup").glob(f"{Path(folder).name}"),
        *Path("/sys/fs/cgroup").glob(f"*/{Path(folder).name}"),
    ]
